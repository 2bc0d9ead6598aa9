"""In which dtypes a device multiplies by itself."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from hf_eagle3.native_products import has_bf16, multiplies_natively, usual_dtype

HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("able", "native"),
    [
        ({"avx2": True, "avx512_f": False}, ()),
        ({"avx512_f": True, "avx512_bf16": False}, ()),
        ({"avx512_bf16": True}, (torch.bfloat16,)),
        ({"amx_tile": True, "amx_bf16": True}, (torch.bfloat16,)),
        ({"avx512_bf16": True, "avx512_fp16": True}, HALF),
        ({"amx_fp16": True}, (torch.float16,)),
        ({"neon": True, "bf16": False, "fp16_arith": True}, (torch.float16,)),
        ({"neon": True, "bf16": True, "fp16_arith": True}, HALF),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(monkeypatch: pytest.MonkeyPatch, able, native) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tuple(dtype for dtype in HALF if multiplies_natively(dtype)) == native
    assert all(multiplies_natively(dtype) for dtype in (torch.float32, torch.float64))
    assert has_bf16() == (torch.bfloat16 in native)
    assert usual_dtype() == (torch.bfloat16 if torch.bfloat16 in native else torch.float32)


def test_a_torch_that_cannot_be_asked_warns_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert all(multiplies_natively(dtype) for dtype in HALF)


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_is_asked_and_not_the_cpu_beside_it(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not has})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has and not including_emulation)
    assert multiplies_natively(torch.bfloat16, "cuda:1") == has_bf16() == has
    assert asked[0] == torch.device("cuda:1")
    assert usual_dtype("cuda") == (torch.bfloat16 if has else torch.float32)
    assert multiplies_natively(torch.float16, "cuda")  # every one that torch runs on multiplies in it


def test_other_accelerators_count_as_able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert usual_dtype("mps") == usual_dtype("xpu") == torch.bfloat16
