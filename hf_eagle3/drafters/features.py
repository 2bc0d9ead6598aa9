"""Drafting from the target's features: a head that reads them, and then its own states, level by level.

Its cache keeps only entries computed from real target features; what a tree adds is dropped each round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..head import DraftHead
from ..modeling_eagle3 import Eagle3Output
from ..prepacked import prepacked
from ..static_tree import StaticTree
from ..tree import DraftTree, TreeShape
from .base import TreeDrafter
from .growing import Children, Level, grow_dynamic, grow_static
from .state import DraftState, owner_tag


class FeatureDrafter(TreeDrafter):
    """
    Base class of drafters with a head that reads target features.

    Args:
        head: the draft head; never changed.
        target: the model that it drafts for; gives embeddings where the head has none.
        shape: the tree to grow; a [`StaticTree`] is grown as it stands.
        state: what an earlier call left (see [`DraftState`]); taken over if this head made it.
        max_length: see [`TreeDrafter`].
    """

    def __init__(
        self,
        head: DraftHead,
        target: PreTrainedModel,
        shape: TreeShape,
        state: DraftState | None = None,
        max_length: int | None = None,
    ) -> None:
        layers = target.config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(head.config.boundaries_for(layers), shape, max_length)
        self.head: Any = prepacked(head)
        # An offloaded head has its weights on `meta`; accelerate's hook knows where it computes.
        hook = getattr(head, "_hf_hook", None)
        self.device = torch.device(getattr(hook, "execution_device", None) or head.device)
        self.embeddings: Any = head.input_embeddings_for(target)
        self.state = state if state is not None and state.owner == owner_tag(head) else DraftState(owner_tag(head))

    def run(self, hidden_states: torch.Tensor, **kwargs: Any) -> Eagle3Output:
        """A forward of the head, `kwargs` as its `forward` takes them."""
        return self.head(hidden_states, past_key_values=self.state.cache, use_cache=True, **kwargs)

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
            if isinstance(self.shape, StaticTree):
                return grow_static(ids[:, -1], first, self.shape, depth, self._expand)
            return grow_dynamic(ids[:, -1], first, self.shape, depth, self._expand)
        finally:
            self.state.cache.crop(kept - self.state.cache.get_seq_length())

    def _consume(self, pending: torch.Tensor, ids: torch.Tensor, offset: int) -> Children:
        """Run the head over the pending features, each paired with the token that follows it; keep the entries."""
        hidden, embeds, positions = self._rows(pending, ids, offset)
        out = self.run(hidden, inputs_embeds=embeds, position_ids=positions, logits_to_keep=1)
        return Children(*self._best_children(out.logits), out.last_hidden_state[:, -1:])

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

    def _expand(self, level: Level) -> Children:
        """One draft forward over a level."""
        # All nodes of a level share a position: one less than their token's, as features are (training, B.3).
        position = self.state.end + len(level.widths) - 1
        out = self.run(
            level.hidden,
            inputs_embeds=self._embed(level.tokens),
            position_ids=torch.full_like(level.tokens, position),
            attention_mask=self._mask(level.visible, level.widths),
        )
        return Children(*self._best_children(out.logits), out.last_hidden_state)

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

    def _mask(self, visible: torch.Tensor, widths: list[int]) -> torch.Tensor:
        """Additive `[batch, 1, rows, keys]`: everything committed, and each node's own path in the tree so far."""
        committed = self.state.cache.get_seq_length() - (visible.shape[-1] - visible.shape[-2])
        hidden = ~nn.functional.pad(visible, (committed, 0), value=True)
        if self.head.config.sliding_window is not None:
            hidden |= _distances(committed, widths).to(hidden.device) >= self.head.config.sliding_window
        mask = torch.zeros(hidden.shape, dtype=self.head.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)[:, None]


def _distances(committed: int, widths: list[int]) -> torch.Tensor:
    """How many positions each key lies back from the level being expanded, int64 `[keys]`; all nodes of a level share
    a position."""
    levels = torch.arange(len(widths) - 1, -1, -1).repeat_interleave(torch.tensor(widths))
    return torch.cat((torch.arange(committed, 0, -1) + len(widths) - 1, levels))
