"""The tensors of one case: queries, several caches to go through in turns, a tree, and what each node sees."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch

from .cases import DTYPES, Case

_DEPTH = 8  # levels below the root, as in EAGLE's own trees


@dataclass(frozen=True)
class Inputs:
    """
    Args:
        q: `[batch, q_heads, nodes, head_dim]`.
        caches: pairs of keys and values, `[batch, kv_heads, keys, head_dim]`, different memory in each.
        parents: int64 `[batch, nodes]`, -1 for the root.
        visible: bool `[batch, nodes, keys]`, what each node may look at.
        window: as the kernel is told.
    """

    q: torch.Tensor
    caches: list[tuple[torch.Tensor, torch.Tensor]]
    parents: torch.Tensor
    visible: torch.Tensor
    window: int | None

    @property
    def nodes(self) -> int:
        return self.q.shape[2]

    @property
    def prefix_len(self) -> int:
        return self.visible.shape[2] - self.nodes

    @property
    def groups(self) -> int:
        """Query heads for each key head."""
        return self.q.shape[1] // self.caches[0][0].shape[1]

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    def one_node(self) -> Inputs:
        """The root alone at the end of the same caches: one step of plain decoding."""
        visible = self.visible.new_ones(self.visible.shape[0], 1, self.visible.shape[2])
        if self.window is not None:
            visible[..., : max(0, visible.shape[2] - self.window)] = False
        return replace(self, q=self.q[:, :, :1], parents=self.parents[:, :1], visible=visible)


def make_inputs(case: Case, device: torch.device, copies: int, seed: int = 0) -> Inputs:
    """Random tensors of a case, with `copies` caches.

    The tree's keys lie towards the queries, so that a tree of a few nodes weighs as much as its whole prefix: at 32k
    random keys a wrong mask over 60 nodes would be lost in the rounding.
    """
    generator = torch.Generator(device).manual_seed(seed)
    dtype, shape = DTYPES[case.dtype], case.shape

    def noise(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=device, dtype=torch.float32)

    direction = torch.nn.functional.normalize(noise(shape.head_dim), dim=0)
    lift = math.sqrt(max(0.0, math.log(max(1, case.prefix_len) / case.nodes)) * shape.head_dim**0.5) * direction
    q = noise(case.batch, shape.q_heads, case.nodes, shape.head_dim) + lift
    caches = []
    for _ in range(copies):
        keys = noise(case.batch, shape.kv_heads, case.keys, shape.head_dim)
        keys[:, :, case.prefix_len :] += lift
        values = noise(case.batch, shape.kv_heads, case.keys, shape.head_dim)
        caches.append((keys.to(dtype), values.to(dtype)))
    parents = torch.tensor([grow_tree(case.nodes, seed + row) for row in range(case.batch)])
    visible = see(parents, case.prefix_len, shape.window)
    return Inputs(q.to(dtype), caches, parents.to(device), visible.to(device), shape.window)


def grow_tree(nodes: int, seed: int) -> list[int]:
    """Parents of a random tree, -1 for the root, a parent before its children."""
    dice = random.Random(seed)
    parents, depths = [-1], [0]
    while len(parents) < nodes:
        parent = dice.choice([node for node, depth in enumerate(depths) if depth < _DEPTH])
        parents.append(parent)
        depths.append(depths[parent] + 1)
    return parents


def see(parents: torch.Tensor, prefix_len: int, window: int | None) -> torch.Tensor:
    """bool `[batch, nodes, prefix_len + nodes]`: the prefix, a node's ancestors and itself, within the window."""
    batch, nodes = parents.shape
    ancestors = torch.eye(nodes, dtype=torch.bool).repeat(batch, 1, 1)
    for row in range(batch):
        for node, parent in enumerate(parents[row].tolist()):
            if parent >= 0:
                ancestors[row, node] |= ancestors[row, parent]
    visible = torch.cat([torch.ones(batch, nodes, prefix_len, dtype=torch.bool), ancestors], dim=-1)
    if window is not None:
        depths = ancestors.sum(-1) - 1
        places = torch.cat([torch.arange(prefix_len).expand(batch, -1), prefix_len + depths], dim=-1)
        visible &= places[:, None] > (prefix_len + depths)[..., None] - window
    return visible
