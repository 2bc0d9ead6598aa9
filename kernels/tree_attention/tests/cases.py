"""A case of tree attention: a few numbers that say what is asked, and the tensors made from them.

Whatever the kernel may not read is NaN: the keys left of the padding, the spare keys behind the tree, and what lies
between the strides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import oracle
import torch
import trees

# Of averages of standard normal values. In half precision: the rounding of the result, and of the probabilities.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """Shapes and options; `parents` has one tree a batch row, all of one size."""

    parents: tuple[tuple[int, ...], ...]
    prefix: int = 40
    kv_heads: int = 2
    group: int = 2
    dim: int = 64
    value_dim: int | None = None
    dtype: torch.dtype = torch.float32
    pad: tuple[int, ...] | None = None
    scale: float | None = None
    window: int | None = None
    depth: tuple[tuple[int, ...], ...] | None = None
    softcap: float | None = None
    sinks: bool = False
    spare: int = 5
    layout: str = "contiguous"
    prefix_on_device: bool = False
    seed: int = 0

    @property
    def nodes(self) -> int:
        return len(self.parents[0])

    def inputs(self, device: str | torch.device = "cpu") -> Inputs:
        """The tensors of this case; the same each time."""
        return Inputs(self, device)


class Inputs:
    """What is handed to the kernel for a case, and what it must answer."""

    def __init__(self, case: Case, device: str | torch.device = "cpu") -> None:
        self.case = case
        self.device = torch.device(device)
        draw = torch.Generator().manual_seed(case.seed)
        heads, batch = case.kv_heads * case.group, len(case.parents)
        length = case.prefix + case.nodes + case.spare
        value_dim = case.dim if case.value_dim is None else case.value_dim
        self.q = self._laid_out((batch, heads, case.nodes, case.dim))
        self.k = self._laid_out((batch, case.kv_heads, length, case.dim))
        self.v = self._laid_out((batch, case.kv_heads, length, value_dim))
        self.q.copy_(torch.randn(self.q.shape, generator=draw))
        for row in range(batch):
            live = slice(0 if case.pad is None else case.pad[row], case.prefix + case.nodes)
            for cache in (self.k, self.v):
                cache[row, :, live] = torch.randn(cache[row, :, live].shape, generator=draw).to(cache)
        self.ancestors = self._with_gaps(trees.words(self.parents))
        self.sinks = self._with_gaps(torch.randn(heads, generator=draw).to(self.q)) if case.sinks else None

    @property
    def parents(self) -> list[list[int]]:
        return [list(tree) for tree in self.case.parents]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `tree_attention`; those that the case leaves alone are not named."""
        case = self.case
        prefix = torch.tensor([case.prefix], device=self.device) if case.prefix_on_device else case.prefix
        named = {
            "pad": self._tensor(case.pad),
            "scale": case.scale,
            "window": case.window,
            "depth": self._tensor(case.depth),
            "softcap": case.softcap,
            "sinks": self.sinks,
        }
        return {"prefix_len": prefix} | {name: given for name, given in named.items() if given is not None}

    def run(self, function: Callable[..., torch.Tensor]) -> torch.Tensor:
        return function(self.q, self.k, self.v, self.ancestors, **self.options)

    @cached_property
    def expected(self) -> torch.Tensor:
        """The oracle's answer, float64 on the CPU."""
        case = self.case
        return oracle.tree_attention(
            self.q,
            self.k,
            self.v,
            self.parents,
            prefix_len=case.prefix,
            pad=None if case.pad is None else list(case.pad),
            scale=case.scale,
            window=case.window,
            depth=None if case.depth is None else [list(row) for row in case.depth],
            softcap=case.softcap,
            sinks=self.sinks,
        )

    def check(self, out: torch.Tensor) -> None:
        """Shape, dtype, layout and values of an answer."""
        assert out.shape == self.expected.shape
        assert out.dtype == self.case.dtype
        assert out.is_contiguous()
        tolerance = TOLERANCE[self.case.dtype]
        torch.testing.assert_close(out.cpu().double(), self.expected, rtol=tolerance, atol=tolerance)

    def _laid_out(self, shape: tuple[int, int, int, int]) -> torch.Tensor:
        """NaN of this shape, in the layout of the case; the last dimension is always contiguous."""
        batch, heads, length, dim = shape
        empty = {"dtype": self.case.dtype, "device": self.device}
        if self.case.layout == "contiguous":
            return torch.full(shape, torch.nan, **empty)
        if self.case.layout == "length before heads":  # as a projection makes them
            return torch.full((batch, length, heads, dim), torch.nan, **empty).transpose(1, 2)
        if self.case.layout == "a slice":  # of a cache for more rows, heads and keys, and of a fused projection
            larger = torch.full((batch + 1, heads + 1, length + 7, dim + 8), torch.nan, **empty)
            return larger[1:, :heads, 3 : 3 + length, :dim]
        raise ValueError(f"There is no layout {self.case.layout!r}.")

    def _tensor(self, numbers: tuple[Any, ...] | None) -> torch.Tensor | None:
        return None if numbers is None else self._with_gaps(torch.tensor(numbers))

    def _with_gaps(self, plain: torch.Tensor) -> torch.Tensor:
        """On the device; where the layout of the case is a slice, a slice of something larger, full of threes."""
        plain = plain.to(self.device)
        if self.case.layout != "a slice":
            return plain
        larger = plain.new_full([size + 1 for size in plain.shape] + [2] * (plain.dim() == 1), 3)
        view = larger[tuple(slice(1, None) for _ in plain.shape)]
        return (view[:, 1] if plain.dim() == 1 else view).copy_(plain)


def batch_of(*parents: list[int]) -> tuple[tuple[int, ...], ...]:
    """One tree a row, as `Case` wants them."""
    return tuple(tuple(tree) for tree in parents)
