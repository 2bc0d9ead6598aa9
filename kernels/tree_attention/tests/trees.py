"""Trees for tests, as lists of parents, and what walking upwards can say of them. The kernel has no part in it."""

from __future__ import annotations

import random

import torch


def chain(nodes: int) -> list[int]:
    """Every node the child of the one before."""
    return list(range(-1, nodes - 1))


def star(nodes: int) -> list[int]:
    """Every node but the first a child of the root."""
    return [-1] + [0] * (nodes - 1)


def bushy(nodes: int, seed: int = 0) -> list[int]:
    """A random tree, about log(nodes) deep."""
    draw = random.Random(seed)
    return [-1] + [draw.randrange(node) for node in range(1, nodes)]


def tall(nodes: int, seed: int = 0) -> list[int]:
    """A random tree, about half as deep as it has nodes."""
    draw = random.Random(seed)
    return [-1] + [draw.randrange(max(0, node - 3), node) for node in range(1, nodes)]


def ancestors(parents: list[int], node: int) -> list[int]:
    """The node and all its ancestors, from the root downwards."""
    path = []
    while node != -1:
        path.append(node)
        node = parents[node]
    return path[::-1]


def depths(parents: list[int]) -> list[int]:
    """0 for the root, 1 for its children, and so on."""
    return [len(ancestors(parents, node)) - 1 for node in range(len(parents))]


def words(batch: list[list[int]]) -> torch.Tensor:
    """Ancestor words as the kernel wants them, int32 `[batch, nodes, ceil(nodes / 32)]`, set bit by bit."""
    nodes = len(batch[0])
    packed = [[[0] * -(-nodes // 32) for _ in range(nodes)] for _ in batch]
    for row, parents in enumerate(batch):
        for node in range(nodes):
            for seen in ancestors(parents, node):
                packed[row][node][seen // 32] |= 1 << (seen % 32)
    unsigned = torch.tensor(packed, dtype=torch.int64)
    return torch.where(unsigned >= 2**31, unsigned - 2**32, unsigned).to(torch.int32)


def reorder(parents: list[int], order: list[int]) -> list[int]:
    """The same tree, its nodes listed in another order: `order[new]` is the old number; parents still come first."""
    place = {old: new for new, old in enumerate(order)}
    return [-1 if parents[old] == -1 else place[parents[old]] for old in order]


def another_order(parents: list[int], seed: int) -> list[int]:
    """A random order of the nodes in which every parent still comes before its children."""
    draw = random.Random(seed)
    order, ready = [], [0]
    while ready:
        node = ready.pop(draw.randrange(len(ready)))
        order.append(node)
        ready.extend(child for child, parent in enumerate(parents) if parent == node)
    return order
