"""The kernels compiled ahead of time for sm_80 and sm_90, which needs no GPU: nothing is spilled, the chips hold them.

The calls are those of real layers, with the tiles that the table gives for the chip. Each test prints what the kernels
take (`-rP` shows it).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

if sys.platform != "linux":
    pytest.skip("Triton is for Linux only", allow_module_level=True)

from compile_only import A100, B200, H100, RTX_4090, RTX_5090, Chip, Usage, compiling_for, loops_of
from subject import module

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
kernel = module("kernel")


@dataclass(frozen=True)
class Layer:
    """A verification in one layer of a model: 60 nodes over 8k keys, eight kv heads."""

    dim: int
    dtype: torch.dtype
    options: bool
    group: int = 4
    nodes: int = 60
    prefix: int = 8192

    def arguments(self) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """Uninitialised, for nothing reads them. Options: padding, window, softcap, sinks, prefix on the device."""
        heads, of_dtype = 8 * self.group, {"dtype": self.dtype}
        q = torch.empty(1, self.nodes, heads, self.dim, **of_dtype).transpose(1, 2)
        k, v = (torch.empty(1, 8, self.prefix + self.nodes, self.dim, **of_dtype) for _ in range(2))
        words = torch.empty(1, self.nodes, -(-self.nodes // 32), dtype=torch.int32)
        if not self.options:
            return [q, k, v, words], {"prefix_len": self.prefix}
        number = torch.empty(1, dtype=torch.int64)
        more = {"window": 4096, "softcap": 50.0, "sinks": torch.empty(heads, **of_dtype)}
        return [q, k, v, words], {"prefix_len": number, "pad": number, **more}

    def __str__(self) -> str:
        options = "all options" if self.options else "plain"
        return f"{self.dim}, {str(self.dtype).removeprefix('torch.')}, {self.nodes} x {self.group}, {options}"


_BF16, _FP32 = torch.bfloat16, torch.float32
_SOME = [
    (H100, Layer(64, _BF16, options=False)),
    (A100, Layer(128, _BF16, options=False)),
    (H100, Layer(128, _BF16, options=False)),
    (A100, Layer(128, _BF16, options=True)),
    (H100, Layer(128, _BF16, options=True)),
    (H100, Layer(80, _BF16, options=True)),
    (A100, Layer(256, _BF16, options=False)),
    (H100, Layer(256, _BF16, options=True)),
    (H100, Layer(128, _FP32, options=False)),
    (A100, Layer(64, _FP32, options=True)),
]
_HALVES = [
    Layer(dim, dtype, on) for dim, dtype, on in product((64, 80, 128, 256), (_BF16, torch.float16), (False, True))
]
_FULL = [Layer(dim, _FP32, on) for dim, on in product((64, 80, 128, 256), (False, True))]
_SHAPES = [
    Layer(128, _BF16, on, *shape) for on, shape in product((False, True), ((1, 60), (8, 60), (7, 33), (4, 1), (4, 6)))
]
_REST = [case for case in product((A100, H100), [*_HALVES, *_FULL, *_SHAPES]) if case not in _SOME]
_REST += product(
    (RTX_4090, RTX_5090, B200), [Layer(128, _BF16, False), Layer(256, _BF16, True), Layer(128, _FP32, True)]
)


def _named(cases: list[tuple[Chip, Layer]]) -> dict[str, Any]:
    return {"argvalues": cases, "ids": [f"{chip.name}, {layer}" for chip, layer in cases]}


@pytest.mark.parametrize(("chip", "layer"), **_named(_SOME))
def test_table_s_tiles_do_not_spill(chip: Chip, layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check(chip, _compiled(chip, layer, tmp_path, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "layer"), **_named(_REST))
def test_table_s_other_tiles_do_not_spill(
    chip: Chip, layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(chip, _compiled(chip, layer, tmp_path, monkeypatch))


@pytest.mark.parametrize("chip", [A100, H100], ids=lambda chip: chip.name)
def test_what_the_loops_wait_for(chip: Chip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix is read ahead: no turn waits for all that it has asked for. And threads add up pieces each by
    itself, for a barrier in every turn would cost more than the few numbers that it moves."""
    kernels = {usage.kernel: usage for usage in _compiled(chip, Layer(128, _BF16, False), tmp_path, monkeypatch)}
    (over_prefix,) = (loop for loop in _loops(kernels["prefix_kernel"]) if _count(loop, "LDGSTS"))
    assert _count(over_prefix, "LDGDEPBAR")
    assert not _count(over_prefix, r"DEPBAR\.LE SB0, 0x0\b")
    (over_pieces,) = (loop for loop in _loops(kernels["tree_kernel"]) if not _count(loop, "HMMA"))
    assert _count(over_pieces, r"LDG\.E\.128")
    assert not _count(over_pieces, r"BAR\.SYNC")


def _loops(usage: Usage) -> list[list[str]]:
    """Without the endless one behind the end."""
    return [loop for loop in loops_of(usage.binary) if len(loop) > 1]


def _count(loop: list[str], pattern: str) -> int:
    return sum(bool(re.search(pattern, instruction)) for instruction in loop)


def _compiled(chip: Chip, layer: Layer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Usage]:
    monkeypatch.setattr(kernel, "device_of", lambda index: (f"sm_{chip.capability}", chip.processors))
    for jitted in (kernel.prefix_kernel, kernel.tree_kernel):
        monkeypatch.setattr(jitted, "device_caches", type(jitted.device_caches)(jitted.create_binder))
    states, options = layer.arguments()
    with compiling_for(chip, cache) as compiled:
        kernel.tree_attention_kernel(*states, **options)
    return compiled


def _check(chip: Chip, compiled: list[Usage]) -> None:
    print(*compiled, sep="\n")
    assert len({usage.kernel for usage in compiled}) == 2
    for usage in compiled:
        assert not usage.spills, str(usage)
        assert usage.shared <= chip.shared_limit, str(usage)
