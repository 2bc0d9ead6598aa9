"""Draft trees: batched tokens, parents and scores, and the views of them that others need.

A tree's node 0 is its root: the token already chosen, not yet in the target's cache. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class TreeShape:
    """How large a draft tree may grow; the same words as on `head.generation_config` and `generate`.

    Args:
        num_assistant_tokens: draft nodes kept, root not counted (EAGLE's `total_token - 1`).
        tree_depth: drafted levels (EAGLE's `depth + 1`).
        tree_top_k: children scored per node, and nodes expanded per level.
        assistant_confidence_threshold: a further level is drafted only while the nodes to be expanded hold at least so
            much of the draft's probability together: about how often an accepted path goes on there. 0 drafts all of
            `tree_depth`, and so does a head that drafts all levels at once.

    Raises:
        ValueError: if a size is no positive whole number, or the threshold does not lie between 0 and 1.
    """

    num_assistant_tokens: int
    tree_depth: int
    tree_top_k: int
    assistant_confidence_threshold: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_assistant_tokens", "tree_depth", "tree_top_k"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` is {value!r}, but a draft tree needs a whole number of at least 1.")
        threshold = self.assistant_confidence_threshold
        if not isinstance(threshold, (int, float)) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
            raise ValueError(
                f"`assistant_confidence_threshold` is {threshold!r}, but it is a probability: give a number from 0, "
                "which drafts all levels, to 1."
            )


@dataclass(frozen=True)
class DraftTree:
    """
    Args:
        tokens (int64 `[batch, nodes]`): Target ids; column 0 is the root.
        parents (int64 `[batch, nodes]`): Index of each node's parent, -1 for the root. A parent comes before its
            children, so that any prefix of the nodes is a tree.
        log_probs (float32 `[batch, nodes]`): Cumulative draft log-probability from the root, whose own is 0.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    log_probs: torch.Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.tokens, self.parents, self.log_probs)}
        if len(shapes) != 1 or self.tokens.dim() != 2:
            raise ValueError(f"A draft tree needs three [batch, nodes] tensors of one shape; got {sorted(shapes)}.")

    @classmethod
    def root_only(cls, root: torch.Tensor) -> DraftTree:
        """The tree that drafts nothing; `root` is int64 `[batch]`."""
        tokens = root[:, None]
        return cls(tokens, torch.full_like(tokens, -1), torch.zeros(tokens.shape, device=root.device))

    @property
    def num_nodes(self) -> int:
        """Nodes of a row, root included."""
        return self.tokens.shape[1]

    @cached_property
    def host_parents(self) -> torch.Tensor:
        """`parents` on the CPU, brought there once: a tree is small, and a device would be waited for each time."""
        return self.parents.cpu()

    @cached_property
    def ancestors(self) -> torch.Tensor:
        """bool `[batch, nodes, nodes]`: entry `[b, i, j]` says that node `j` is node `i` or an ancestor of it."""
        parents = self.host_parents
        seen = torch.eye(self.num_nodes, dtype=torch.bool).repeat(len(parents), 1, 1)
        above = parents
        for _ in range(self.num_nodes):
            if not (above >= 0).any():
                break
            # The root's "parent" -1 marks column 0, which every node sees anyway.
            seen.scatter_(2, above.clamp(min=0)[..., None], True)
            above = torch.where(above >= 0, parents.gather(1, above.clamp(min=0)), above)
        return seen.to(self.tokens.device)

    @cached_property
    def depths(self) -> torch.Tensor:
        """int64 `[batch, nodes]`: ancestors of each node, so 0 for the root."""
        return self.ancestors.sum(-1) - 1

    def children(self, row: int) -> list[list[int]]:
        """For each node of a row its children, in the order in which they were created."""
        children: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for node, parent in enumerate(self.host_parents[row].tolist()):
            if parent >= 0:
                children[parent].append(node)
        return children

    def best_chain(self, row: int) -> list[int]:
        """The nodes from the root down that follow the likeliest child at each step, root included."""
        scores, children = self.log_probs[row].tolist(), self.children(row)
        path = [0]
        while children[path[-1]]:
            path.append(max(children[path[-1]], key=lambda node: scores[node]))
        return path
