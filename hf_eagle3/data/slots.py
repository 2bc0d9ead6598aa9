"""Decoding many short sequences at once on one model, refilling each row the moment it stops.

`generate` on a batch keeps computing finished rows until the longest one ends. Here every row of a fixed batch is a
slot: all slots share one column axis of the key/value cache, a new request is prefilled and written so that it ENDS at
the current column, and a mask hides what an earlier tenant left to its left. Each request brings its own seed, so that
what is sampled for it does not depend on its company. Knows nothing of prompts or templates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from ..attention import EAGLE3_TREE

_BACKENDS = ("sdpa", "eager", EAGLE3_TREE)  # attention implementations that take a mask of every row's own columns
_TOP_K = 256
_ASK_EVERY = 32  # tokens of a row between two questions whether it is worth going on


@dataclass
class Request:
    """One sequence to continue: `ids` so far, at most `max_new_tokens` more, `temperature` 0 for greedy.

    Its draws come from its own `seed`: what it becomes does not depend on what is decoded beside it, beyond rounding.
    """

    ids: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    payload: Any = None


@dataclass
class Completion:
    """What a request became: `new_ids` holds the stop token too when `finished`, and is cut short when it is not."""

    request: Request
    new_ids: list[int]
    finished: bool


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
    uniform: random.Random = field(default_factory=random.Random)


class SlotDecoder:
    """Run `Request`s through `model` on `slots` rows, yielding each `Completion` as soon as it is known.

    Args:
        model: an attention-only decoder in eval mode.
        eos_ids: tokens that stop a row.
        slots: rows decoded at once.
        max_length: the longest row, prompt and new tokens together; a longer request is refused (`ValueError`).
        refill: how many rows must be free before new requests are prefilled together.
        stop_early: asked now and then with a row's new ids; ends the row (unfinished) when it says so.

    Raises:
        ValueError: the model has layers that this kind of cache cannot serve, or runs another attention
            implementation than `"sdpa"` or `"eager"`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Iterable[int],
        slots: int = 64,
        max_length: int = 1024,
        refill: int = 4,
        stop_early: Callable[[Request, list[int]], bool] | None = None,
    ) -> None:
        _check_layers(model, max_length)
        self.backend = _backend(model)
        self.model, self.eos_ids, self.max_length, self.refill = model, set(eos_ids), max_length, refill
        self.stop_early = stop_early
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
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
                yield from self._admit(free[: len(taken)], taken)
            elif busy:
                yield from self._step()
            else:
                return

    def _admit(self, slots: list[int], requests: list[Request]) -> Iterator[Completion]:
        """Prefill `requests` (left-padded together), one for each of the free `slots`; yields what ends at once."""
        for request in requests:
            if len(request.ids) + request.max_new_tokens > self.max_length:
                raise ValueError(
                    f"A request of {len(request.ids)} + {request.max_new_tokens} tokens does not fit in "
                    f"max_length={self.max_length}: shorten it or raise max_length."
                )
        longest = max(len(request.ids) for request in requests)
        logits, cache = self._prefill(requests, longest)
        if self.cursor < longest:
            self._move_cursor(longest)
        for layer, prefilled in zip(self.layers, cache.layers, strict=True):
            for i, (slot, request) in enumerate(zip(slots, requests, strict=True)):
                # The padding's keys stay out: a fully masked row may hold NaN, and no mask keeps NaN from spreading.
                own = slice(longest - len(request.ids), longest)
                layer.place(slot, prefilled.keys[i, :, own], prefilled.values[i, :, own])
        for slot, request in zip(slots, requests, strict=True):
            self.rows[slot] = _Row(request, self.cursor - len(request.ids), uniform=random.Random(request.seed))
        yield from self._append(slots, logits)

    def _prefill(self, requests: list[Request], longest: int) -> tuple[torch.Tensor, DynamicCache]:
        """Logits `[requests, vocabulary]` after the last token of each, and its cache of `longest` columns."""
        device = self.model.device
        ids = torch.zeros(len(requests), longest, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for i, request in enumerate(requests):
            ids[i, longest - len(request.ids) :] = torch.tensor(request.ids, device=device)
            mask[i, longest - len(request.ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache()
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        return out.logits[:, -1], cache

    def _move_cursor(self, column: int) -> None:
        """Carry all live rows so that the next column to be written is `column`."""
        for row in self.rows:
            row.start += column - self.cursor
        for layer in self.layers:
            layer.move(column)
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
        newest = [row.new_ids[-1] if row.request is not None else 0 for row in self.rows]
        begun = [row.start if row.request is not None else self.cursor for row in self.rows]
        starts = torch.tensor(begun, device=device)[:, None]
        columns = torch.arange(first, self.cursor + 1, device=device)
        visible = (columns >= starts)[:, None, None, :]
        out = self.model(
            input_ids=torch.tensor(newest, device=device)[:, None],
            attention_mask=self._mask(visible), position_ids=self.cursor - starts, past_key_values=self.cache,
        )  # fmt: skip
        self._set_cursor(self.cursor + 1)
        self.steps += 1
        yield from self._append(live, out.logits[live, -1])

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        """As the attention takes it: eager adds what it is given, bool or not, while the others take a bool mask."""
        if self.backend != "eager":
            return visible
        dtype = self.model.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)

    def _append(self, slots: list[int], logits: torch.Tensor) -> Iterator[Completion]:
        rows = [self.rows[slot] for slot in slots]
        for slot, row, token in zip(slots, rows, _choose(rows, logits), strict=True):
            request = row.request
            if request is None:
                raise RuntimeError(f"Slot {slot} runs without a request.")
            row.new_ids.append(token)
            finished = token in self.eos_ids
            over = len(row.new_ids) >= request.max_new_tokens
            stop = self.stop_early if len(row.new_ids) % _ASK_EVERY == 0 else None
            if finished or over or (stop is not None and stop(request, row.new_ids)):
                self.rows[slot] = _Row()
                yield Completion(request, row.new_ids, finished)


def _choose(rows: list[_Row], logits: torch.Tensor) -> list[int]:
    """The next token of each row of `logits [rows, vocabulary]`: argmax, or a draw where a temperature is asked for.

    One uniform per row and token, from the row's own generator, picks from the inverse of the cumulated probabilities.
    """
    chosen = logits.argmax(-1)
    warm = [i for i, row in enumerate(rows) if row.request is not None and row.request.temperature > 0]
    if warm:
        requests = [rows[i].request for i in warm]
        temperature, top_p, uniform = (
            torch.tensor(values, device=logits.device, dtype=torch.float32)[:, None]
            for values in (
                [request.temperature for request in requests if request is not None],
                [request.top_p for request in requests if request is not None],
                [rows[i].uniform.random() for i in warm],
            )
        )
        chosen[warm] = draw(logits[warm], temperature, top_p, uniform)
    result: list[int] = chosen.tolist()
    return result


def draw(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens int64 `[rows]` for `logits [rows, vocabulary]`; the three others are float32 `[rows, 1]`.

    Temperature first, then the smallest set of likeliest tokens that holds `top_p`, among the `_TOP_K` best at most
    (a sort of the whole vocabulary would cost more than the tokens below them are worth). `uniform` in [0, 1) says
    where in the cumulated probabilities of that set the token lies.
    """
    values, ids = logits.float().topk(min(_TOP_K, logits.shape[-1]))
    probabilities = (values / temperature).softmax(-1)
    probabilities = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= top_p, 0.0)
    cumulated = probabilities.cumsum(-1)
    picked = (cumulated <= uniform * cumulated[:, -1:]).sum(-1, keepdim=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1  # rounding may carry a uniform near 1 past the end
    return ids.gather(1, torch.minimum(picked, last))[:, 0]


def _check_layers(model: PreTrainedModel, max_length: int) -> None:
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


def _backend(model: PreTrainedModel) -> str:
    """The attention implementation that the decoder runs."""
    backend = str(model.config.get_text_config(decoder=True)._attn_implementation)
    if backend not in _BACKENDS:
        raise ValueError(
            f"{type(model).__name__} runs attention implementation {backend!r}, and decoding many rows at once takes "
            '`attn_implementation="sdpa"` or `"eager"`: load it with one of them, or let a server write the '
            "answers (`--server URL`)."
        )
    return backend
