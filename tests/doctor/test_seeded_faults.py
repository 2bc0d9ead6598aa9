"""Each fault that is seeded into the embedded head is found, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.seeded_faults import FAULTS, SeededFault, findings_of, found, seed

from hf_eagle3 import embedded, load_head
from hf_eagle3.doctor import Examination, Teacher
from hf_eagle3.doctor.prescription import write_in_place

# Those that few answers show; the others need as many as the doctor takes by itself.
QUICK = (
    "none: the head as it is",
    "float16 that overflows in the file",
    "weights file cut in the middle",
    "a target of another vocabulary",
    "a target of another width",
    "two at once: d2t stored as ids, boundaries one later",
)


def _name(fault: SeededFault) -> str:
    return fault.name.replace(" ", "-")


def _first(tensor: torch.Tensor, rows: int, like: torch.Tensor) -> torch.Tensor:
    return tensor[:rows] if tensor.shape != like.shape else tensor


def _check(fault: SeededFault, teacher: Teacher, folder: Path) -> None:
    """The fault is found, and what is recommended, once written, makes the head what it was."""
    head = seed(fault, embedded.head_folder(), folder)
    examination = Examination(head, teacher.target, teacher.tokenizer, teacher=teacher, real_prompts=0)
    diagnosis = examination.run()
    assert found(fault, diagnosis), findings_of(diagnosis)
    assert diagnosis.healthy == (not fault.kinds and not fault.faults)
    if fault.kinds:
        write_in_place(examination.subject, examination.reading)
        mended, healthy = load_head(head), load_head(embedded.head_folder())
        for name in ("target_boundaries", "rope_parameters", "norm_before_residual", "norm_output"):
            assert getattr(mended.config, name) == getattr(healthy.config, name), name
        kept = len(mended.d2t)  # one of the faults drops the last tokens of the draft vocabulary
        expected = healthy.state_dict()
        for name, tensor in mended.state_dict().items():
            assert name == "t2d" or torch.equal(tensor, _first(expected[name], kept, tensor)), name


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.name in QUICK], ids=_name)
def test_a_seeded_fault_is_found_and_mended(fault: SeededFault, teacher: Teacher, tmp_path: Path) -> None:
    _check(fault, teacher, tmp_path / "head")


@pytest.fixture(scope="module")
def whole_teachers() -> dict[str, Teacher]:
    return {dtype: Teacher(*embedded.load(getattr(torch, dtype))) for dtype in ("bfloat16", "float16")}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=_name)
def test_every_seeded_fault_is_found(fault: SeededFault, whole_teachers: dict[str, Teacher], tmp_path: Path) -> None:
    _check(fault, whole_teachers[fault.dtype], tmp_path / "head")
