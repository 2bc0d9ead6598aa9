"""What is measured: shapes of real models' attention layers, contexts, trees, batches and dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Shape:
    """One attention layer.

    Args:
        window: of a sliding layer, whose cache holds `window - 1` keys before the tree's; None if all are seen.
    """

    name: str
    q_heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-3.1-8b", 32, 8, 128),  # Qwen3-8B's too
        Shape("qwen3-1.7b", 16, 8, 128),
        Shape("qwen3-32b", 64, 8, 128),
        Shape("gemma-3-4b", 8, 4, 256),
        Shape("gemma-3-4b-sliding", 8, 4, 256, window=1024),
        Shape("tiny", 4, 2, 16),
        Shape("tiny-sliding", 4, 2, 16, window=24),
    )
}


@dataclass(frozen=True)
class Case:
    """One call of the kernel.

    Args:
        context: keys, the tree's nodes included; a sliding layer holds fewer.
        nodes: of each row's tree.
    """

    shape: Shape
    context: int
    nodes: int
    batch: int = 1
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= self.context:
            raise ValueError(f"A context of {self.context} keys cannot end in a tree of {self.nodes} nodes.")

    @property
    def key(self) -> str:
        """Names the case in a record: shape, context / nodes, batch, dtype."""
        return f"{self.shape.name} {self.context}/{self.nodes} x{self.batch} {self.dtype}"

    @property
    def keys(self) -> int:
        """Keys in the cache, the nodes' included: a sliding layer drops what no node sees."""
        if self.shape.window is None:
            return self.context
        return min(self.context, self.shape.window - 1 + self.nodes)

    @property
    def prefix_len(self) -> int:
        return self.keys - self.nodes


LLAMA = SHAPES["llama-3.1-8b"]
# What the project promises on an H100 stands in bars.py, and is about these.
QUICK = [Case(LLAMA, context, 60) for context in (8192, 32768, 2048)]
DRY = [
    Case(SHAPES["tiny"], 96, 12, dtype="fp32"),
    Case(SHAPES["tiny"], 70, 33, batch=2, dtype="fp32"),
    Case(SHAPES["tiny-sliding"], 96, 12, dtype="fp32"),
]
CONTEXTS, NODES = (512, 2048, 8192, 32768), (8, 16, 32, 60, 64, 128)


def sheet() -> list[Case]:
    """All that the figures show: every context and tree on one shape, then one thing at a time changed."""
    published = [shape for shape in SHAPES.values() if not shape.name.startswith("tiny")]
    cases = [
        *cross([LLAMA], CONTEXTS, NODES),
        *cross(published, CONTEXTS, [60]),
        *cross([LLAMA], CONTEXTS, [60], batches=(2, 4)),
        *cross([LLAMA], CONTEXTS, [60], dtypes=["fp16"]),
    ]
    return list(dict.fromkeys([*QUICK, *cases]))


def cross(
    shapes: Iterable[Shape],
    contexts: Sequence[int],
    nodes: Sequence[int],
    batches: Sequence[int] = (1,),
    dtypes: Sequence[str] = ("bf16",),
) -> list[Case]:
    """Every combination; of the contexts that a sliding layer crops to the same keys only the shortest."""
    cases = [Case(*combination) for combination in product(shapes, contexts, nodes, batches, dtypes)]
    first: dict[tuple[object, ...], Case] = {}
    for case in cases:
        first.setdefault((case.shape, case.keys, case.nodes, case.batch, case.dtype), case)
    return list(first.values())
