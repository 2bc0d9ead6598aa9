"""Each fault that is seeded into the embedded head is found, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.seeded_faults import FAULTS, SeededFault, findings_of, found, seed

from hf_eagle3 import embedded
from hf_eagle3.doctor import Teacher, examine

# Those that few answers show; the others need as many as the doctor takes by itself.
QUICK = (
    "none: the head as it is",
    "d2t stored as ids, all in bounds, no t2d",
    "rope scaled linearly by 4",
    "float16 that overflows in the file",
    "weights file cut in the middle",
    "a target of another vocabulary",
    "a target of another width",
    "two at once: boundaries one later, norms swapped",
)


def _name(fault: SeededFault) -> str:
    return fault.name.replace(" ", "-")


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.name in QUICK], ids=_name)
def test_a_seeded_fault_is_found(fault: SeededFault, teacher: Teacher, tmp_path: Path) -> None:
    head = seed(fault, embedded.head_folder(), tmp_path / "head")
    diagnosis = examine(head, teacher.target, teacher.tokenizer, teacher=teacher, real_prompts=0)
    assert found(fault, diagnosis), findings_of(diagnosis)
    assert diagnosis.healthy == (not fault.kinds and not fault.faults)


@pytest.fixture(scope="module")
def whole_teachers() -> dict[str, Teacher]:
    return {dtype: Teacher(*embedded.load(getattr(torch, dtype))) for dtype in ("bfloat16", "float16")}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=_name)
def test_every_seeded_fault_is_found(fault: SeededFault, whole_teachers: dict[str, Teacher], tmp_path: Path) -> None:
    teacher = whole_teachers[fault.dtype]
    head = seed(fault, embedded.head_folder(), tmp_path / "head")
    diagnosis = examine(head, teacher.target, teacher.tokenizer, teacher=teacher, real_prompts=0)
    assert found(fault, diagnosis), findings_of(diagnosis)
