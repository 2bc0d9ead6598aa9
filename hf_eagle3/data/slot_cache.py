"""Keys and values of many rows that end in the same column, and which models they can serve.

Knows nothing of what the rows are.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values `[slots, kv_heads, columns, head_dim]`, written at `cursor`, read from `first`."""

    is_sliding = False

    def __init__(self, slots: int, columns: int) -> None:
        super().__init__()
        self.slots, self.columns = slots, columns
        self.first, self.cursor = 0, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        shape = (self.slots, key_states.shape[1], self.columns)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, self.cursor : self.cursor + 1] = key_states
        self.values[:, :, self.cursor : self.cursor + 1] = value_states
        window = slice(self.first, self.cursor + 1)
        return self.keys[:, :, window], self.values[:, :, window]

    def place(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, own: torch.Tensor) -> None:
        """Write prefilled `[rows, kv_heads, length, head_dim]` into `slots`, ending at the cursor.

        `own` bool `[rows, length]` is False where a row was padded. The padding's keys stay out: a fully masked row
        may hold NaN, and no mask keeps NaN from spreading.
        """
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        window = slice(self.cursor - keys.shape[2], self.cursor)
        for buffer, prefilled in ((self.keys, keys), (self.values, values)):
            assert buffer is not None
            buffer[slots, :, window] = prefilled.masked_fill(~own[:, None, :, None], 0)

    def move(self, cursor: int) -> None:
        """Carry the newest columns along so that the cursor stands at `cursor`; no live row reads what falls off."""
        if self.is_initialized:
            kept = min(self.cursor, cursor)
            for buffer in (self.keys, self.values):
                assert buffer is not None
                buffer[:, :, cursor - kept : cursor] = buffer[:, :, self.cursor - kept : self.cursor].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cursor - self.first + query_length, 0

    def get_seq_length(self) -> int:
        return self.cursor - self.first

    def get_max_length(self) -> int:
        return self.columns


def check_layers(model: PreTrainedModel, max_length: int) -> None:
    """Refuse layers that keep more than keys and values, or whose window a mask over all columns would widen."""
    text = model.config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or [])
    window = getattr(text, "sliding_window", None) if "sliding_attention" in kinds or not kinds else None
    unknown = sorted(kinds - {"full_attention", "sliding_attention"})
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has {', '.join(unknown)} layers, and decoding many rows at once here needs plain "
            "attention: let a server write the answers (`--server URL`)."
        )
    if window is not None and window < max_length:
        raise ValueError(
            f"{type(model).__name__} attends {window} tokens back, and rows of up to {max_length} were asked "
            f"for: give --max-length {window} at the most, or let a server write the answers (`--server URL`)."
        )
