"""What every drafter is: a transformers `CandidateGenerator` that can also give whole trees.

Our decoding loop talks to `observe` and `draft`; transformers' own assisted loop talks to `get_candidates` and gets
the tree's best chain. A drafter holds the state of ONE call of `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.candidate_generator import CandidateGenerator

from ..states import captured
from ..tree import DraftTree, TreeShape


class TreeDrafter(CandidateGenerator):
    """
    Base class of drafters.

    Args:
        boundaries: what `observe` wants of the target (see `states.py`), ascending; may be empty.
        shape: the tree to grow.
        max_length: longest sequence that the stock protocol may propose, in tokens; unlimited if not given.
    """

    requires_model_outputs = True

    def __init__(self, boundaries: Sequence[int], shape: TreeShape, max_length: int | None = None) -> None:
        self.boundaries = list(boundaries)
        self.shape = shape
        self.max_length = max_length
        self._prefilled = False

    @property
    def model_kwargs_overrides(self) -> dict[str, Any]:
        """Keywords for each target forward under the stock protocol: only the captured boundaries are asked for."""
        return {"output_hidden_states": self.boundaries} if self.boundaries else {}

    def observe(self, states: Sequence[torch.Tensor], end: int) -> None:
        """Take the target's states at committed positions `end - rows` to `end - 1`.

        Args:
            states: one `[batch, rows, target_hidden]` per boundary, each on whatever device and in whatever dtype.
            end: number of positions in the target's cache once these are in it.
        """
        raise NotImplementedError

    def draft(self, input_ids: torch.Tensor, offset: int = 0, max_depth: int | None = None) -> DraftTree:
        """Grow a tree whose root is the last of `input_ids` (int64 `[batch, length]`).

        Args:
            offset: position of the first of `input_ids` in the sequence (above 0 when older tokens are only cached).
            max_depth: levels that still fit the target's context; at most `shape.tree_depth` are drafted.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ the stock protocol

    def get_candidates(
        self,
        input_ids: torch.Tensor,
        model_kwargs: dict[str, Any] | None = None,
        model_outputs: Any = None,
        is_first_iteration: bool = False,
        n_last_matches: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """`input_ids` followed by the best chain; as they are before the target has run once (the prefill)."""
        if is_first_iteration or model_outputs is None:
            self._prefilled = False
            return input_ids, None
        states = captured(model_outputs.hidden_states, self.boundaries)
        if self._prefilled:
            states = [state[:, : int(n_last_matches) + 1] for state in states]
        self._prefilled = True
        end = input_ids.shape[1] - 1
        self.observe(states, end)
        budget = None if self.max_length is None else self.max_length - input_ids.shape[1] - 1
        if budget is not None and budget < 1:
            return input_ids, None
        tree = self.draft(input_ids, max_depth=budget)
        chain = tree.tokens[:, tree.best_chain(0)[1:]].to(input_ids.device)
        return torch.cat((input_ids, chain), dim=1), None

    def update_candidate_strategy(self, input_ids: torch.LongTensor, scores: torch.Tensor, num_matches: int) -> None:
        """Nothing to adapt: the tree's shape is fixed for a call."""
