"""The drafter of EAGLE-1, EAGLE-2 and HASS heads: the target's last hidden states in, the target's output embeddings
at the end."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling_eagle import EagleDraftModel
from ..modeling_eagle3 import Eagle3Output
from ..tree import TreeShape
from .features import FeatureDrafter
from .state import DraftState


class EagleCandidateGenerator(FeatureDrafter):
    """
    Drafts with an [`EagleDraftModel`]. Arguments as [`FeatureDrafter`]; the tree is EAGLE-2's unless `shape` is a
    [`StaticTree`].

    Raises:
        ValueError: if the head brings no output embeddings and the target does not name its own.
    """

    def __init__(
        self,
        head: EagleDraftModel,
        target: PreTrainedModel,
        shape: TreeShape,
        state: DraftState | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(head, target, shape, state, max_length)
        self.lm_head = self.head.output_embeddings_for(target)
        self.lm_head_dtype = head.dtype if head.lm_head is not None else target.dtype

    def run(self, hidden_states: torch.Tensor, **kwargs: Any) -> Eagle3Output:
        return super().run(hidden_states, lm_head=self._score, **kwargs)

    def _score(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits on the head's device. Offloaded output embeddings have their weight on `meta`: their hook moves the
        states."""
        weight = self.lm_head.weight
        there = hidden_states.to(hidden_states.device if weight.is_meta else weight.device, self.lm_head_dtype)
        return self.lm_head(there).to(self.device)
