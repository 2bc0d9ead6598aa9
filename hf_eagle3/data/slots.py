"""Decoding many short sequences at once on one model, refilling each row the moment it stops.

`generate` on a batch keeps computing finished rows until the longest one ends. Here every row of a fixed batch is a
slot: all slots share one column axis of the key/value cache, a new request is prefilled and written so that it ENDS at
the current column, and a mask hides what an earlier tenant left to its left. Knows nothing of prompts or templates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache


@dataclass
class Request:
    """One sequence to continue: `ids` so far, at most `max_new_tokens` more, `temperature` 0 for greedy."""

    ids: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    payload: Any = None


@dataclass
class Completion:
    """What a request became: `new_ids` holds the stop token too when `finished`, and is cut short when it is not.

    `states [tokens - 1, boundaries * hidden]` are the captured boundaries of every token but the last one, on the CPU.
    """

    request: Request
    new_ids: list[int]
    finished: bool
    states: torch.Tensor | None = None


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

    def place(self, slot: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write one row's prefilled `[kv_heads, length, head_dim]` into `slot`, ending at the cursor."""
        if not self.is_initialized:
            self.lazy_initialization(keys[None], values[None])
        assert self.keys is not None
        assert self.values is not None
        window = slice(self.cursor - keys.shape[1], self.cursor)
        self.keys[slot, :, window] = keys
        self.values[slot, :, window] = values

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


@dataclass
class _Row:
    request: Request | None = None
    start: int = 0
    new_ids: list[int] = field(default_factory=list)


class SlotDecoder:
    """Run `Request`s through `model` on `slots` rows, yielding each `Completion` as soon as it is known.

    `eos_ids` stop a row. A request longer than `max_length` with its new tokens is refused (`ValueError`).
    `stop_early` is asked now and then with a row's new ids, and ends the row (unfinished) when it says so. `seed`
    makes the sampling repeatable for a given order of requests. `capture` names boundaries whose states come back with
    each completion. The model must be an attention-only decoder in eval mode.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: list[int],
        slots: int = 64,
        max_length: int = 1024,
        refill: int = 4,
        stop_early: Callable[[Request, list[int]], bool] | None = None,
        seed: int = 0,
        capture: list[int] | None = None,
    ) -> None:
        self.capture = capture
        self.states: torch.Tensor | None = None  # [slots, columns, boundaries * hidden], written as the cache is
        self.model, self.eos_ids, self.max_length, self.refill = model, set(eos_ids), max_length, refill
        self.stop_early = stop_early
        self.generator = torch.Generator(device=model.device).manual_seed(seed)
        layers = model.config.get_text_config().num_hidden_layers
        self.layers = [SlotLayer(slots, max_length + 512) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.rows = [_Row() for _ in range(slots)]
        self.cursor, self.steps = 0, 0

    @torch.inference_mode()
    def run(self, requests: Iterator[Request | None]) -> Iterator[Completion]:
        """Yield completions until no row runs and `requests` gives nothing; `None` means "nothing now, ask again"."""
        while True:
            free = [i for i, row in enumerate(self.rows) if row.request is None]
            busy = len(self.rows) - len(free)
            taken: list[Request] = []
            if len(free) >= self.refill or not busy:
                for request in islice(requests, len(free)):
                    if request is None:
                        break
                    taken.append(request)
            if taken:
                yield from self._admit(free, taken)
            elif busy:
                yield from self._step()
            else:
                return

    def _admit(self, free: list[int], requests: list[Request]) -> Iterator[Completion]:
        """Prefill `requests` (left-padded together) and give each a free row; yields the ones that end at once."""
        for request in requests:
            if len(request.ids) + request.max_new_tokens > self.max_length:
                raise ValueError(
                    f"A request of {len(request.ids)} + {request.max_new_tokens} tokens does not fit in "
                    f"max_length={self.max_length}: shorten it or raise max_length."
                )
        device = self.model.device
        longest = max(len(request.ids) for request in requests)
        ids = torch.zeros(len(requests), longest, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for i, request in enumerate(requests):
            ids[i, longest - len(request.ids) :] = torch.tensor(request.ids, device=device)
            mask[i, longest - len(request.ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache()
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1,
            output_hidden_states=self.capture,
        )  # fmt: skip
        if self.cursor < longest:
            self._move_cursor(longest)
        slots = free[: len(requests)]
        for layer, prefilled in zip(self.layers, cache.layers, strict=True):
            for i, (slot, request) in enumerate(zip(slots, requests, strict=True)):
                # The padding's keys stay out: a fully masked row may hold NaN, and no mask keeps NaN from spreading.
                own = slice(longest - len(request.ids), longest)
                layer.place(slot, prefilled.keys[i, :, own], prefilled.values[i, :, own])
        if self.capture is not None:
            states = torch.cat([out.hidden_states[boundary] for boundary in self.capture], dim=-1)
            if self.states is None:
                self.states = states.new_zeros(len(self.rows), self.layers[0].columns, states.shape[-1])
            for i, (slot, request) in enumerate(zip(slots, requests, strict=True)):
                length = len(request.ids)
                self.states[slot, self.cursor - length : self.cursor] = states[i, longest - length :]
        for slot, request in zip(slots, requests, strict=True):
            self.rows[slot] = _Row(request, self.cursor - len(request.ids))
        yield from self._append(slots, out.logits[:, -1])

    def _move_cursor(self, column: int) -> None:
        """Carry all live rows so that the next column to be written is `column`."""
        for row in self.rows:
            row.start += column - self.cursor
        for layer in self.layers:
            layer.move(column)
        if self.states is not None:
            kept = min(self.cursor, column)
            self.states[:, column - kept : column] = self.states[:, self.cursor - kept : self.cursor].clone()
        self._set_cursor(column)

    def _set_cursor(self, column: int) -> None:
        self.cursor = column
        first = min((row.start for row in self.rows if row.request is not None), default=0)
        for layer in self.layers:
            layer.cursor, layer.first = column, first

    def _step(self) -> Iterator[Completion]:
        """One forward for every row: the newest token of each goes in, the next one comes out."""
        if self.cursor == self.layers[0].columns:
            self._move_cursor(self.max_length)  # no live row is longer
        live = [i for i, row in enumerate(self.rows) if row.request is not None]
        self._set_cursor(self.cursor)
        first, device = self.layers[0].first, self.model.device
        tokens = torch.zeros(len(self.rows), 1, dtype=torch.long, device=device)
        starts = torch.full((len(self.rows), 1), self.cursor, device=device)
        for i in live:
            row = self.rows[i]
            tokens[i, 0], starts[i, 0] = row.new_ids[-1], row.start
        columns = torch.arange(first, self.cursor + 1, device=device)
        mask = (columns >= starts)[:, None, None, :]
        out = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=self.cursor - starts, past_key_values=self.cache,
            output_hidden_states=self.capture,
        )  # fmt: skip
        if self.capture is not None and self.states is not None:
            self.states[:, self.cursor] = torch.cat([out.hidden_states[boundary] for boundary in self.capture], -1)[
                :, 0
            ]
        self._set_cursor(self.cursor + 1)
        self.steps += 1
        yield from self._append(live, out.logits[live, -1])

    def _append(self, slots: list[int], logits: torch.Tensor) -> Iterator[Completion]:
        chosen = self._sample([self.rows[slot].request for slot in slots], logits)  # type: ignore[misc]
        for slot, token in zip(slots, chosen, strict=True):
            row = self.rows[slot]
            assert row.request is not None
            row.new_ids.append(token)
            finished = token in self.eos_ids
            over = len(row.new_ids) >= row.request.max_new_tokens
            looping = (
                self.stop_early is not None
                and len(row.new_ids) % 32 == 0
                and self.stop_early(row.request, row.new_ids)
            )
            if finished or over or looping:
                self.rows[slot] = _Row()
                states = self.states[slot, row.start : self.cursor].cpu().clone() if self.states is not None else None
                yield Completion(row.request, row.new_ids, finished, states)

    def _sample(self, requests: list[Request], logits: torch.Tensor, top_k: int = 256) -> list[int]:
        """Argmax for greedy rows; temperature, then top-p over the `top_k` best, for the others."""
        chosen = logits.argmax(-1)
        warm = [i for i, request in enumerate(requests) if request.temperature > 0]
        if warm:
            values, ids = logits[warm].float().topk(min(top_k, logits.shape[-1]))
            temperature = torch.tensor([[requests[i].temperature] for i in warm], device=logits.device)
            top_p = torch.tensor([[requests[i].top_p] for i in warm], device=logits.device)
            probs = (values / temperature).softmax(-1)
            probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)
            picked = torch.multinomial(probs, 1, generator=self.generator)
            chosen[warm] = ids.gather(1, picked)[:, 0]
        result: list[int] = chosen.tolist()
        return result
