"""The P-EAGLE drafter (arXiv:2602.01469): all levels of a tree in one forward of the head.

Behind the real features come masked slots, one for each further level, at the positions that follow. Slot `i` scores
level `i` without knowing what is drafted before it, so the tree holds the likeliest sequences of independent levels.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling_eagle3 import Eagle3DraftModel
from ..static_tree import StaticTree
from ..tree import DraftTree, TreeShape
from .base import TreeDrafter
from .eagle3 import Eagle3CandidateGenerator


class ParallelCandidateGenerator(Eagle3CandidateGenerator):
    """
    Drafts with an [`Eagle3DraftModel`] whose config says `parallel_drafting`; arguments as its base class has.

    Raises:
        ValueError: if the head's config names no mask token, or the head is offloaded.
    """

    def __init__(self, head: Eagle3DraftModel, target: PreTrainedModel, shape: TreeShape, **others: Any) -> None:
        super().__init__(head, target, shape, **others)
        if head.config.mask_token_id is None:
            raise ValueError(
                "The head drafts in parallel but its config does not say which token stands for those not drafted "
                "yet; load it with `mask_token_id=...`, the id that it was trained with."
            )
        if head.mask_hidden is None or head.mask_hidden.is_meta:
            raise ValueError(
                "The head drafts in parallel and is offloaded, so the states of its masked slots are out of reach; "
                "load it on one device (it is small)."
            )
        self.mask_token = head.config.mask_token_id

    def draft(self, input_ids: torch.Tensor, offset: int = 0, max_depth: int | None = None) -> DraftTree:
        ids = input_ids.to(self.device)
        depth = self.shape.tree_depth if max_depth is None else min(self.shape.tree_depth, max_depth)
        pending = self.state.pending
        if depth < 1 or pending is None:
            return DraftTree.root_only(ids[:, -1])
        tokens, scores = self._best_children(self._all_levels(pending, ids, offset, depth))
        shape: Any = self.shape
        if isinstance(shape, StaticTree):
            shape = shape.narrowed(scores.shape[-1], depth)
            if shape is None:
                return DraftTree.root_only(ids[:, -1])
        grow = settled_tree if isinstance(shape, StaticTree) else likeliest_tree
        trees = [grow(row, shape) for row in scores.tolist()]
        levels, places, parents, totals = (
            torch.tensor(column, device=ids.device) for column in zip(*trees, strict=True)
        )
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        root = ids[:, -1:]
        return DraftTree(
            tokens=torch.cat((root, tokens[rows, levels, places]), dim=1),
            parents=torch.cat((torch.full_like(root, -1), parents), dim=1),
            log_probs=torch.nn.functional.pad(totals.float(), (1, 0)),
        )

    def _all_levels(self, pending: torch.Tensor, ids: torch.Tensor, offset: int, depth: int) -> torch.Tensor:
        """Logits of all levels, `[batch, depth, draft_vocab]`; the masked slots leave nothing in the cache."""
        hidden, embeds, positions = self._rows(pending, ids, offset)
        slots = depth - 1
        mask = self._embed(torch.full((len(ids), 1), self.mask_token, device=ids.device))
        following = torch.arange(self.state.end, self.state.end + slots, device=ids.device)[None]
        out = self.run(
            torch.cat((hidden, self.head.masked_slot().expand(len(ids), slots, -1)), dim=1),
            inputs_embeds=torch.cat((embeds, mask.expand(-1, slots, -1)), dim=1),
            position_ids=torch.cat((positions, following), dim=1),
            logits_to_keep=depth,
        )
        if slots:
            self.state.cache.crop(-slots)
        return out.logits


def likeliest_tree(
    scores: Sequence[Sequence[float]], shape: TreeShape
) -> tuple[list[int], list[int], list[int], list[float]]:
    """The nodes of largest summed log-probability where each level's token is drawn by itself.

    Args:
        scores: for each level the log-probabilities of its candidates, falling.
        shape: `tree_top_k` nodes at the most are expanded in a level; `num_assistant_tokens` are kept.

    Returns:
        for each node, a parent before its children and siblings in the order of their scores: its level, its place
        among the level's candidates, its parent (a number among these nodes and the root, which is 0), and the sum.
    """
    nodes: list[tuple[int, int, int, float]] = []
    expanded = [0] * len(scores)
    # By falling sum, and of equal sums by age, so that a child never comes before its parent. No sum is above its
    # parent's or its elder sibling's, so the two that follow a taken node are all that need to wait behind it.
    waiting = [(-scores[0][0], 0, 0, 0, 0, 0.0)]
    age = 1
    while waiting and len(nodes) < shape.num_assistant_tokens:
        negative, _, level, place, parent, above = heapq.heappop(waiting)
        nodes.append((level, place, parent, -negative))
        if place + 1 < len(scores[level]):
            heapq.heappush(waiting, (-(above + scores[level][place + 1]), age, level, place + 1, parent, above))
        if level + 1 < len(scores) and expanded[level] < shape.tree_top_k:
            expanded[level] += 1
            child = (negative - scores[level + 1][0], age + 1, level + 1, 0, len(nodes), -negative)
            heapq.heappush(waiting, child)
        age += 2
    levels, places, parents, sums = (list(column) for column in zip(*nodes, strict=True))
    return levels, places, parents, sums


def settled_tree(
    scores: Sequence[Sequence[float]], shape: StaticTree
) -> tuple[list[int], list[int], list[int], list[float]]:
    """The nodes of a static tree, whatever their scores; arguments and results as [`likeliest_tree`]."""
    levels, places = [len(path) - 1 for path in shape.paths], [path[-1] for path in shape.paths]
    sums = [sum(scores[level][place] for level, place in enumerate(path)) for path in shape.paths]
    return levels, places, shape.parents[1:], sums


def eagle3_drafter(head: Eagle3DraftModel, target: PreTrainedModel, shape: TreeShape, **others: Any) -> TreeDrafter:
    """What drafts with an EAGLE-3 head, level by level or all at once, as it was trained to."""
    make = ParallelCandidateGenerator if head.config.parallel_drafting else Eagle3CandidateGenerator
    return make(head, target, shape, **others)
