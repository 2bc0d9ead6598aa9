"""FlexAttention with a block mask, and the ways around its trap at our size.

Its decoding kernel puts all query rows of a group into one tile, 256 for 60 nodes and 4 heads, and drops every
configuration whose tile does not divide the block mask's 128 rows: nothing is left. A larger mask block, a smaller
tile, or the other kernel are ways around; which of them works differs between versions, so all are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .inputs import Inputs
from .ways import FLEX, Candidate, Candidates, Way

_MASK_BLOCK = 128
# Label, rows of a block of the mask, options of the kernel.
_ATTEMPTS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("as it comes", _MASK_BLOCK, {}),
    ("mask blocks of 256 rows", 256, {}),
    ("BLOCK_M 128", _MASK_BLOCK, {"BLOCK_M": 128}),
    ("BLOCK_M 64", _MASK_BLOCK, {"BLOCK_M": 64}),
    ("the kernel of long queries", _MASK_BLOCK, {"FORCE_USE_FLEX_ATTENTION": True}),
)
_compile = partial(torch.compile, dynamic=False)


def flex_way() -> Way:
    def candidates(inputs: Inputs) -> Candidates:
        for label, rows, options in _ATTEMPTS:
            yield label, partial(_build, inputs, rows, options)

    return Way(FLEX, candidates)


def _build(inputs: Inputs, rows: int, options: dict[str, Any]) -> Candidate:
    torch._dynamo.config.recompile_limit = 1024  # every case has shapes of its own
    compiled: Any = _compile(flex_attention)
    # As a program would make it again and again; the mask at hand is made once, without waiting for the compiler.
    compiled_maker: Any = _compile(create_block_mask) if inputs.q.is_cuda else create_block_mask
    look = _look_up(inputs)

    def make(maker: Any) -> BlockMask:
        batch, nodes, keys = inputs.visible.shape
        return maker(look, batch, None, nodes, keys, device=inputs.q.device, BLOCK_SIZE=(rows, _MASK_BLOCK))

    mask = make(create_block_mask)

    def call(number: int) -> torch.Tensor:
        keys, values = inputs.caches[number]
        gqa = inputs.groups > 1
        out = compiled(inputs.q, keys, values, block_mask=mask, enable_gqa=gqa, kernel_options=options or None)
        return out.transpose(1, 2).contiguous()

    return Candidate(call, lambda: make(compiled_maker))


def _look_up(inputs: Inputs) -> Callable[..., torch.Tensor]:
    """A mask function: the prefix by comparing, the tree by looking at its ancestors, the window by position."""
    prefix_len, window = inputs.prefix_len, inputs.window
    nodes = inputs.nodes
    ancestors = _ancestors(inputs)
    depths = ancestors.sum(-1) - 1

    def look(b: torch.Tensor, h: torch.Tensor, node: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        of_the_tree = (key - prefix_len).clamp(0, nodes - 1)
        row = node.clamp(max=nodes - 1)  # mask blocks are padded
        seen = (key < prefix_len) | ancestors[b, row, of_the_tree]
        if window is None:
            return seen
        place = torch.where(key < prefix_len, key, prefix_len + depths[b, of_the_tree])
        return seen & (place > prefix_len + depths[b, row] - window)

    return look


def _ancestors(inputs: Inputs) -> torch.Tensor:
    """bool `[batch, nodes, nodes]`, without the window."""
    parents = inputs.parents
    batch, nodes = parents.shape
    seen = torch.eye(nodes, dtype=torch.bool, device=parents.device).repeat(batch, 1, 1)
    for node in range(1, nodes):
        seen[:, node] |= seen[torch.arange(batch, device=parents.device), parents[:, node]]
    return seen
