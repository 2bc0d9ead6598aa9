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
from itertools import islice, takewhile
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from ..attention import EAGLE3_TREE
from .slot_cache import SlotLayer, check_layers

_BACKENDS = ("sdpa", "eager", EAGLE3_TREE)  # attention implementations that take a mask of every row's own columns
_TOP_K = 256
_NOWHERE = 1 << 40  # the first column of a row that runs nothing
# Tokens that cost as much as one more forward: reading the weights again on a CPU, launching the kernels on a GPU.
# Estimates; which prompts are prefilled together follows from them, and nothing else.
_FORWARD_ON_CPU, _FORWARD = 32, 4096
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


@dataclass
class _Row:
    request: Request
    start: int
    new_ids: list[int] = field(default_factory=list)


@dataclass
class Work:
    """What was computed: `steps` of all slots, the `tokens` that live rows got by them, `columns` attended (of a step,
    its window times the slots, live or not), and `prefilled` tokens with the `padding` among them."""

    steps: int = 0
    tokens: int = 0
    columns: int = 0
    prefilled: int = 0
    padding: int = 0


class SlotDecoder:
    """Run `Request`s through `model` on `slots` rows, yielding each `Completion` as soon as it is known.

    What a step needs of its rows lies on the model's device; the tokens that were chosen are all that comes back.

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
        check_layers(model, max_length)
        self.backend = _backend(model)
        self.model, self.eos_ids, self.max_length, self.refill = model, set(eos_ids), max_length, refill
        self.stop_early = stop_early
        self.forward_worth = _FORWARD_ON_CPU if model.device.type == "cpu" else _FORWARD
        layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self.layers = [SlotLayer(slots, max_length + 512) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.rows: list[_Row | None] = [None] * slots
        self.cursor, self.work = 0, Work()
        self._chooser = Chooser(slots, max_length, model.device)
        self._newest = torch.zeros(slots, dtype=torch.long, device=model.device)
        self._starts = torch.full((slots,), _NOWHERE, dtype=torch.long, device=model.device)
        self._live_now: tuple[list[int], torch.Tensor] | None = None

    @property
    def free(self) -> int:
        """How many rows run nothing."""
        return self.rows.count(None)

    def run(self, requests: Iterator[Request | None]) -> Iterator[Completion]:
        """Yield completions until no row runs and `requests` gives nothing; `None` means "nothing now, ask again"."""
        while (ended := self.advance(requests)) is not None:
            yield from ended

    @torch.inference_mode()
    def advance(self, requests: Iterator[Request | None]) -> list[Completion] | None:
        """Take up new requests if enough rows are free and there are any, else go one token further with all rows.

        Returns what ended by that; None if there was nothing to do.
        """
        slots = [i for i, row in enumerate(self.rows) if row is None]
        busy = len(self.rows) - len(slots)
        taken: list[Request] = []
        if len(slots) >= self.refill or not busy:
            taken = [r for r in takewhile(lambda request: request is not None, islice(requests, len(slots))) if r]
        if taken:
            return self._admit(slots, taken)
        return self._step() if busy else None

    def _admit(self, slots: list[int], requests: list[Request]) -> list[Completion]:
        """Prefill `requests`, each into one of the free `slots`, those of like lengths together."""
        for request in requests:
            if len(request.ids) + request.max_new_tokens > self.max_length:
                raise ValueError(
                    f"A request of {len(request.ids)} + {request.max_new_tokens} tokens does not fit in "
                    f"max_length={self.max_length}: shorten it or raise max_length."
                )
        ended, rest = [], iter(slots)
        for group in alike(requests, self.forward_worth):
            ended += self._admit_alike(list(islice(rest, len(group))), group)
        return ended

    def _admit_alike(self, slots: list[int], requests: list[Request]) -> list[Completion]:
        longest = max(len(request.ids) for request in requests)
        logits, cache, own = self._prefill(requests, longest)
        if self.cursor < longest:
            self._move_cursor(longest)
        self._set_cursor(self.cursor)
        index = torch.tensor(slots, device=self.model.device)
        for layer, prefilled in zip(self.layers, cache.layers, strict=True):
            layer.place(index, prefilled.keys, prefilled.values, own)
        for slot, request in zip(slots, requests, strict=True):
            self.rows[slot] = _Row(request, self.cursor - len(request.ids))
        self._starts[index] = self.cursor - own.sum(-1)
        self._chooser.seat(slots, requests)
        self._live_now = None
        return self._append(slots, index, logits)

    def _prefill(self, requests: list[Request], longest: int) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
        """Logits `[requests, vocabulary]` after the last token of each, its cache of `longest` columns, and bool
        `[requests, longest]`: which of them are its own."""
        padded = [[0] * (longest - len(request.ids)) + request.ids for request in requests]
        ids = torch.tensor(padded, device=self.model.device)
        lengths = torch.tensor([len(request.ids) for request in requests], device=self.model.device)
        own = torch.arange(longest, device=self.model.device) >= longest - lengths[:, None]
        cache = DynamicCache()
        out = self.model(
            input_ids=ids, attention_mask=own.long(), position_ids=(own.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache, logits_to_keep=1,
        )  # fmt: skip
        self.work.prefilled += ids.numel()
        self.work.padding += ids.numel() - sum(len(request.ids) for request in requests)
        return out.logits[:, -1], cache, own

    def _move_cursor(self, column: int) -> None:
        """Carry all live rows so that the next column to be written is `column`."""
        for row in self.rows:
            if row is not None:
                row.start += column - self.cursor
        self._starts += column - self.cursor
        for layer in self.layers:
            layer.move(column)
        self._set_cursor(column)

    def _set_cursor(self, column: int) -> None:
        self.cursor = column
        first = min((row.start for row in self.rows if row is not None), default=0)
        for layer in self.layers:
            layer.cursor, layer.first = column, first

    def _live(self) -> tuple[list[int], torch.Tensor]:
        """The slots that run something, here and on the device; kept until that changes."""
        if self._live_now is None:
            live = [i for i, row in enumerate(self.rows) if row is not None]
            self._live_now = live, torch.tensor(live, device=self.model.device)
        return self._live_now

    def _step(self) -> list[Completion]:
        """One forward for every row: the newest token of each goes in, the next one comes out."""
        if self.cursor == self.layers[0].columns:
            self._move_cursor(self.max_length)  # no live row is longer
        self._set_cursor(self.cursor)
        live, index = self._live()
        # A row that runs nothing sees its own new column alone: of what sees nothing, softmax is not a number.
        starts = self._starts.clamp(max=self.cursor)[:, None]
        columns = torch.arange(self.layers[0].first, self.cursor + 1, device=starts.device)
        visible = (columns >= starts)[:, None, None, :]
        out = self.model(
            input_ids=self._newest[:, None], attention_mask=self._mask(visible), position_ids=self.cursor - starts,
            past_key_values=self.cache,
        )  # fmt: skip
        self.work.steps += 1
        self.work.tokens += len(live)
        self.work.columns += len(self.rows) * len(columns)
        self._set_cursor(self.cursor + 1)
        return self._append(live, index, out.logits[:, -1][index])

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        """As the attention takes it: eager adds what it is given, bool or not, while the others take a bool mask."""
        if self.backend != "eager":
            return visible
        dtype = self.model.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)

    def _append(self, slots: list[int], index: torch.Tensor, logits: torch.Tensor) -> list[Completion]:
        """One more token for the rows in `slots` (`index` on the device); gives back what ends with it."""
        chosen = self._chooser(slots, index, logits)
        self._newest[index] = chosen
        ended, emptied = [], []
        for slot, token in zip(slots, chosen.tolist(), strict=True):
            row = self.rows[slot]
            if row is None:
                raise RuntimeError(f"Slot {slot} runs without a request.")
            row.new_ids.append(token)
            finished = token in self.eos_ids
            over = len(row.new_ids) >= row.request.max_new_tokens
            stop = self.stop_early if len(row.new_ids) % _ASK_EVERY == 0 else None
            if finished or over or (stop is not None and stop(row.request, row.new_ids)):
                ended.append(Completion(row.request, row.new_ids, finished))
                emptied.append(slot)
        if emptied:
            for slot in emptied:
                self.rows[slot] = None
            self._starts[torch.tensor(emptied, device=self._starts.device)] = _NOWHERE
            self._chooser.leave(emptied)
            self._live_now = None
        return ended


def alike(requests: list[Request], worth: int) -> list[list[Request]]:
    """The requests in groups to be prefilled together, longest first: padding a group takes at most `worth` tokens."""
    groups: list[list[Request]] = []
    padding = 0
    for request in sorted(requests, key=lambda request: -len(request.ids)):
        padding += len(groups[-1][0].ids) - len(request.ids) if groups else 0
        if not groups or padding > worth:
            groups.append([])
            padding = 0
        groups[-1].append(request)
    return groups


class Chooser:
    """Chooses the next token of each row on the device: argmax, or a draw where a temperature is asked for.

    One uniform per row and token, from the row's own seed, picks from the inverse of the cumulated probabilities. They
    are drawn when a request is seated, so that a step brings nothing to the device.
    """

    def __init__(self, slots: int, longest: int, device: torch.device) -> None:
        self.uniforms = torch.zeros(slots, longest, device=device)
        self.settings = torch.ones(slots, 2, device=device)  # temperature, top_p
        self.taken = torch.zeros(slots, dtype=torch.long, device=device)  # uniforms
        self.warm: set[int] = set()
        self._known: tuple[list[int], torch.Tensor] = [], self.taken[:0]

    def seat(self, slots: list[int], requests: list[Request]) -> None:
        """Take up what the rows in `slots` are to be drawn by."""
        self.leave(slots)
        warm = [(slot, request) for slot, request in zip(slots, requests, strict=True) if request.temperature > 0]
        if not warm:
            return
        device, longest = self.taken.device, max(request.max_new_tokens for _, request in warm)
        index = torch.tensor([slot for slot, _ in warm], device=device)
        drawn = []
        for _, request in warm:
            rng = random.Random(request.seed)
            own = [rng.random() for _ in range(request.max_new_tokens)]
            drawn.append(own + [0.0] * (longest - len(own)))
        self.uniforms[index, :longest] = torch.tensor(drawn, dtype=torch.float32, device=device)
        settings = [[request.temperature, request.top_p] for _, request in warm]
        self.settings[index] = torch.tensor(settings, dtype=torch.float32, device=device)
        self.taken[index] = 0
        self.warm.update(slot for slot, _ in warm)

    def leave(self, slots: Iterable[int]) -> None:
        """The rows in `slots` have ended."""
        self.warm.difference_update(slots)

    def __call__(self, slots: list[int], index: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Tokens int64 `[rows]` for `logits [rows, vocabulary]` of the rows in `slots`, `index` on the device."""
        chosen = logits.argmax(-1)
        if self.warm.isdisjoint(slots):
            return chosen
        at = self._positions([i for i, slot in enumerate(slots) if slot in self.warm])
        own = index[at]
        uniform = self.uniforms[own, self.taken[own]]
        temperature, top_p = self.settings[own].unbind(-1)
        chosen[at] = draw(logits[at], temperature[:, None], top_p[:, None], uniform[:, None])
        self.taken[own] += 1
        return chosen

    def _positions(self, at: list[int]) -> torch.Tensor:
        """On the device; the last ones are kept, since most steps have the rows of the one before."""
        if self._known[0] != at:
            self._known = at, torch.tensor(at, device=self.taken.device)
        return self._known[1]


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
