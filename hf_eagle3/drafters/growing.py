"""Growing a draft tree level by level from the children that a head gives its nodes: the dynamic tree of EAGLE-2, the
static one of EAGLE-1.

Knows nothing of heads, caches or targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..static_tree import StaticTree
from ..tree import DraftTree, TreeShape

# For each expansion `[batch, nodes]` of target ids, cumulative scores and parents (places in the pool, -1: the root).
Pool = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass
class Children:
    """
    What a head's forward over a level of nodes gives.

    Args:
        tokens (int64 `[batch, nodes, top_k]`): Target ids of each node's likeliest children, likeliest first.
        scores (float32 `[batch, nodes, top_k]`): Their log-probabilities, at temperature 1.
        hidden (`[batch, nodes, hidden]`): What is fed back to each node's children.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    hidden: torch.Tensor


@dataclass
class Level:
    """
    Nodes to expand: what a head's forward over them needs.

    Args:
        tokens (int64 `[batch, nodes]`): Their target ids.
        hidden (`[batch, nodes, hidden]`): What their parents fed back.
        visible (bool `[batch, nodes, rows]`): Which of the tree's expanded rows each may see, these nodes' own last.
        widths: how many rows each level of the tree has, this one included.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor
    visible: torch.Tensor
    widths: list[int]


Expand = Callable[[Level], Children]


# ---------------------------------------------------------------------- the dynamic tree


def grow_dynamic(root: torch.Tensor, first: Children, shape: TreeShape, depth: int, expand: Expand) -> DraftTree:
    """Expand the likeliest nodes of each level, then keep the best of all that were scored (official `topK_genrate`).

    Where `shape` has a threshold, levels end early (transformers' dynamic speculation, arXiv 2405.04304, for trees).

    Args:
        root: int64 `[batch]`, the tokens at the roots.
        first: the roots' children, one node a row.
        depth: levels to draft, at least 1.
        expand: a forward of the head.
    """
    width, device = first.tokens.shape[-1], root.device
    itself = torch.eye(width, dtype=torch.bool, device=device).repeat(len(root), 1, 1)
    tokens, scores = first.tokens[:, 0], first.scores[:, 0]
    pool: Pool = [(tokens, scores, torch.full_like(tokens, -1))]
    pool_ids = torch.arange(width, device=device).repeat(len(root), 1)
    level = Level(tokens, first.hidden.expand(-1, width, -1), itself, [width])
    rows = torch.arange(len(root), device=device)[:, None]
    for _ in range(depth - 1):
        if not _worth_a_level(scores, shape.assistant_confidence_threshold):
            break
        children = expand(level)
        tokens, cumulative = children.tokens.flatten(1), (children.scores + scores[..., None]).flatten(1)
        created = sum(entry[0].shape[1] for entry in pool)
        pool.append((tokens, cumulative, pool_ids.repeat_interleave(width, dim=1)))
        scores, best = cumulative.topk(width, dim=1)
        parent, pool_ids = best // width, created + best
        level = Level(
            tokens=tokens.gather(1, best),
            hidden=children.hidden[rows, parent],
            visible=torch.cat((level.visible[rows, parent], itself), dim=-1),
            widths=[*level.widths, width],
        )
    return _best_nodes(root, pool, shape.num_assistant_tokens)


def _worth_a_level(scores: torch.Tensor, threshold: float) -> bool:
    """Whether nodes of these cumulative scores, `[batch, nodes]`, hold enough probability in any row; the device is
    only waited for where there is a threshold."""
    return threshold <= 0 or bool((scores.exp().sum(-1) >= threshold).any())


def _best_nodes(root: torch.Tensor, pool: Pool, number: int) -> DraftTree:
    tokens, scores, parents = (torch.cat(column, dim=1) for column in zip(*pool, strict=True))
    # Stable: of equal scores the node created first wins, so that a child never comes without its parent.
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :number].sort(dim=1).values
    chosen = torch.searchsorted(order, parents.gather(1, order).contiguous())
    tree_parents = torch.where(parents.gather(1, order) < 0, 0, chosen + 1)
    return DraftTree(
        tokens=torch.cat((root[:, None], tokens.gather(1, order)), dim=1),
        parents=nn.functional.pad(tree_parents, (1, 0), value=-1),
        log_probs=nn.functional.pad(scores.gather(1, order), (1, 0)),
    )


# ---------------------------------------------------------------------- the static tree


def grow_static(root: torch.Tensor, first: Children, shape: StaticTree, depth: int, expand: Expand) -> DraftTree:
    """Expand the nodes that have children in `shape`, whatever their scores; arguments as [`grow_dynamic`]."""
    tree = shape.narrowed(first.tokens.shape[-1], depth)
    if tree is None:
        return DraftTree.root_only(root)
    tokens, scores = [root[:, None]], [torch.zeros(len(root), 1, device=root.device)]
    children, above = first, scores[0]
    visible = torch.zeros(len(root), 1, 0, dtype=torch.bool, device=root.device)
    widths: list[int] = []
    for level in tree.levels:
        tokens.append(children.tokens[:, level.parents, level.ranks])
        scores.append(children.scores[:, level.parents, level.ranks] + above[:, level.parents])
        if not level.expanded:
            break
        parents = [level.parents[node] for node in level.expanded]
        itself = torch.eye(len(parents), dtype=torch.bool, device=root.device).repeat(len(root), 1, 1)
        visible = torch.cat((visible[:, parents], itself), dim=-1)
        widths = [*widths, len(parents)]
        above = scores[-1][:, level.expanded]
        children = expand(Level(tokens[-1][:, level.expanded], children.hidden[:, parents], visible, widths))
    tree_parents = torch.tensor(tree.parents, device=root.device).repeat(len(root), 1)
    return DraftTree(torch.cat(tokens, dim=1), tree_parents, torch.cat(scores, dim=1))
