"""The EAGLE-3 drafter: grows the official dynamic tree (EAGLE-2, section 4) from fused target features.

Its cache keeps only entries computed from real target features; what the tree adds is dropped each round.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ..modeling_eagle3 import Eagle3DraftModel, Eagle3Output
from ..tree import DraftTree, TreeShape
from .base import TreeDrafter

# For each expansion `[batch, nodes]` of target ids, cumulative scores and parents (places in the pool, -1: the root).
Pool = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

_TAGS: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


@dataclass
class DraftState:
    """What a head remembers of a conversation, so that the next call can go on from it; plain data, no reference to
    the head, so that the target's cache that carries it can be copied and pickled.

    Args:
        owner: tag of the head that made it.
        cache: the head's keys and values, of real features only.
        pending: features `[batch, rows, boundaries * target_hidden]` that the head has not consumed yet.
        end: position after the last observed one, pending included.
    """

    owner: str
    cache: DynamicCache = field(default_factory=DynamicCache)
    pending: torch.Tensor | None = None
    end: int = 0


def owner_tag(head: nn.Module) -> str:
    """A name for this very head object, for as long as the process lives."""
    return _TAGS.setdefault(head, uuid.uuid4().hex)


@dataclass
class _Level:
    """The nodes that are expanded next: `[batch, top_k]` each, and `[batch, top_k, ...]`."""

    tokens: torch.Tensor
    scores: torch.Tensor
    hidden: torch.Tensor
    visible: torch.Tensor  # bool [batch, top_k, tree rows so far]
    pool_ids: torch.Tensor  # where these nodes stand in the pool of scored nodes


class Eagle3CandidateGenerator(TreeDrafter):
    """
    Drafts with an [`Eagle3DraftModel`].

    Args:
        head: the draft head; never changed.
        target: the model that it drafts for; gives embeddings where the head has none.
        shape: the tree to grow.
        state: what an earlier call left (see [`DraftState`]); taken over if this head made it.
        max_length: see [`TreeDrafter`].
    """

    def __init__(
        self,
        head: Eagle3DraftModel,
        target: PreTrainedModel,
        shape: TreeShape,
        state: DraftState | None = None,
        max_length: int | None = None,
    ) -> None:
        layers = target.config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(head.config.boundaries_for(layers), shape, max_length)
        self.head = head
        # An offloaded head has its weights on `meta`; accelerate's hook knows where it computes.
        hook = getattr(head, "_hf_hook", None)
        self.device = torch.device(getattr(hook, "execution_device", None) or head.device)
        self.embeddings: Any = head.input_embeddings_for(target)
        self.state = state if state is not None and state.owner == owner_tag(head) else DraftState(owner_tag(head))

    def observe(self, states: Sequence[torch.Tensor], end: int) -> None:
        new = torch.cat([state.to(self.device, self.head.dtype) for state in states], dim=-1)
        start, state = end - new.shape[1], self.state
        # After a gap (tokens that somebody else generated) older features can no longer meet their next token.
        old = state.pending if state.pending is not None and state.end == start else None
        state.pending = new if old is None else torch.cat((old, new), dim=1)
        state.end = end

    def draft(self, input_ids: torch.Tensor, offset: int = 0, max_depth: int | None = None) -> DraftTree:
        ids = input_ids.to(self.device)
        depth = self.shape.tree_depth if max_depth is None else min(self.shape.tree_depth, max_depth)
        pending = self.state.pending
        if depth < 1 or pending is None:
            return DraftTree.root_only(ids[:, -1])
        first = self._consume(pending, ids, offset)
        kept = self.state.cache.get_seq_length()
        try:
            return self._grow(ids[:, -1], first, depth)
        finally:
            self.state.cache.crop(kept - self.state.cache.get_seq_length())

    def _consume(self, pending: torch.Tensor, ids: torch.Tensor, offset: int) -> Eagle3Output:
        """Run the head over the pending features, each paired with the token that follows it; keep the entries."""
        hidden, embeds, positions = self._rows(pending, ids, offset)
        return self.head(
            hidden,
            inputs_embeds=embeds,
            position_ids=positions,
            past_key_values=self.state.cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _rows(
        self, pending: torch.Tensor, ids: torch.Tensor, offset: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the head reads of the pending features: fused features and embeddings `[batch, rows, hidden]`, position
        ids `[1, rows]`. They are no longer pending then."""
        state = self.state
        start = state.end - pending.shape[1]
        known = max(start, offset - 1)  # the first position whose next token is among the ids
        features = pending[:, known - start :]
        tokens = ids[:, known + 1 - offset : state.end + 1 - offset]
        positions = torch.arange(known, state.end, device=ids.device)[None]
        state.pending = None
        return self.head.fuse(features), self._embed(tokens), positions

    def _grow(self, root: torch.Tensor, first: Eagle3Output, depth: int) -> DraftTree:
        """Expand by cumulative log-probability, then keep the best nodes of all that were scored (`topK_genrate`)."""
        batch, width = len(root), min(self.shape.tree_top_k, self.head.lm_head.out_features)
        tokens, scores = self._best_children(first.logits)
        pool: Pool = [(tokens[:, 0], scores[:, 0], torch.full_like(tokens[:, 0], -1))]
        level = _Level(
            tokens=tokens[:, 0],
            scores=scores[:, 0],
            hidden=first.last_hidden_state[:, -1:].expand(-1, width, -1),
            visible=torch.eye(width, dtype=torch.bool, device=root.device).repeat(batch, 1, 1),
            pool_ids=torch.arange(width, device=root.device).repeat(batch, 1),
        )
        for position in range(self.state.end, self.state.end + depth - 1):
            level = self._expand(level, position, pool)
        return self._rerank(root, pool)

    def _expand(self, level: _Level, position: int, pool: Pool) -> _Level:
        """One draft forward over a level; its nodes' children join the pool, the best of them are the next level."""
        out = self.head(
            level.hidden,
            inputs_embeds=self._embed(level.tokens),
            # All nodes of a level share a position: one less than their token's, as features are (training, B.3).
            position_ids=torch.full_like(level.tokens, position),
            attention_mask=self._mask(level.visible),
            past_key_values=self.state.cache,
            use_cache=True,
        )
        batch, width = level.tokens.shape
        tokens, scores = self._best_children(out.logits)
        tokens, scores = tokens.flatten(1), (scores + level.scores[..., None]).flatten(1)
        created = sum(entry[0].shape[1] for entry in pool)
        pool.append((tokens, scores, level.pool_ids.repeat_interleave(width, dim=1)))
        best_scores, best = scores.topk(width, dim=1)
        parent = best // width
        rows = torch.arange(batch, device=best.device)[:, None]
        itself = torch.eye(width, dtype=torch.bool, device=best.device).repeat(batch, 1, 1)
        return _Level(
            tokens=tokens.gather(1, best),
            scores=best_scores,
            hidden=out.last_hidden_state[rows, parent],
            visible=torch.cat((level.visible[rows, parent], itself), dim=-1),
            pool_ids=created + best,
        )

    def _rerank(self, root: torch.Tensor, pool: Pool) -> DraftTree:
        tokens, scores, parents = (torch.cat(column, dim=1) for column in zip(*pool, strict=True))
        nodes = min(self.shape.num_assistant_tokens, tokens.shape[1])
        # Stable: of equal scores the node created first wins, so that a child never comes without its parent.
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :nodes].sort(dim=1).values
        chosen = torch.searchsorted(order, parents.gather(1, order).contiguous())
        tree_parents = torch.where(parents.gather(1, order) < 0, 0, chosen + 1)
        return DraftTree(
            tokens=torch.cat((root[:, None], tokens.gather(1, order)), dim=1),
            parents=nn.functional.pad(tree_parents, (1, 0), value=-1),
            log_probs=nn.functional.pad(scores.gather(1, order), (1, 0)),
        )

    # ------------------------------------------------------------------ small parts

    def _best_children(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Target ids and log-probabilities `[batch, rows, top_k]` of the likeliest draft tokens, at temperature 1."""
        logits = logits.float()
        best, draft_ids = logits.topk(min(self.shape.tree_top_k, logits.shape[-1]), dim=-1)
        scores = best - logits.logsumexp(-1, keepdim=True)
        # A head that overflows in half precision gives NaN, which sorts above everything, a child above its parent.
        return self.head.to_target_ids(draft_ids), scores.nan_to_num(nan=float("-inf"))

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings on the head's device. An offloaded embedding's weight is on `meta`: its hook moves the ids."""
        weight = self.embeddings.weight
        embedded = self.embeddings(tokens if weight.is_meta else tokens.to(weight.device))
        return embedded.to(self.device, self.head.dtype)

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        """Additive `[batch, 1, rows, keys]`: everything committed, and each node's own path in the tree so far."""
        committed = self.state.cache.get_seq_length() - (visible.shape[-1] - visible.shape[-2])
        hidden = ~nn.functional.pad(visible, (committed, 0), value=True)
        if self.head.config.sliding_window is not None:
            hidden |= self._distances(committed, visible) >= self.head.config.sliding_window
        mask = torch.zeros(hidden.shape, dtype=self.head.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)[:, None]

    @staticmethod
    def _distances(committed: int, visible: torch.Tensor) -> torch.Tensor:
        """How many positions each key lies back from the level being expanded, int64 `[keys]`; all nodes of a level
        share a position."""
        width = visible.shape[-2]
        level = visible.shape[-1] // width - 1
        before = torch.arange(committed, 0, -1, device=visible.device) + level
        return torch.cat((before, level - torch.arange(visible.shape[-1], device=visible.device) // width))
