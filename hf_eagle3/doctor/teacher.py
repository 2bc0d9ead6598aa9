"""The target answers a few prompts once; its states and its choices on them are kept for every reading of the head.

Knows nothing of heads, but for the boundaries that somebody wants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.questions import encode_chat
from ..states import capturing
from .prompts import PROMPTS

# So many of the target's likeliest tokens stand for its distribution: nearly all of its mass, at a thousandth of the
# memory.
LIKELY = 64
NEW_TOKENS = 48
# Positions of a joined context. A wrong rotary embedding shows only where attention reaches far back.
LONGEST = 1024
AT_ONCE = 128  # positions whose distributions are held in float32
# An answer must hold a chain's tokens and a few places where one can begin.
SHORTEST = 8


@dataclass(frozen=True)
class Answered:
    """A prompt with the target's own greedy answer: int64 `[length]` ids, and where the answer begins."""

    ids: torch.Tensor
    start: int


@dataclass(frozen=True)
class Passage:
    """What the target computed over several answered prompts, one after the other in one context.

    An answer in a context other than its own need not be the greedy one there: what counts is `likely`, which is.

    Args:
        ids: int64 `[length]`.
        spans: of each answer, its first position and the one after its last.
        states: for each boundary `[length, target_hidden]`, in the target's dtype.
        likely: int64 `[length, LIKELY]`, the likeliest next tokens after each position, best first.
        shares: float `[length, LIKELY]`, their probabilities.
    """

    ids: torch.Tensor
    spans: list[tuple[int, int]]
    states: dict[int, torch.Tensor]
    likely: torch.Tensor
    shares: torch.Tensor


class Teacher:
    """
    A target that answers each prompt once, however many heads are examined with it.

    Args:
        target, tokenizer: the pair's.
        prompts: each is a chat of its own.
        new_tokens: length of the answers.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str] = PROMPTS,
        new_tokens: int = NEW_TOKENS,
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.new_tokens = new_tokens
        self._answered: list[Answered] | None = None
        self._passages: list[Passage] = []

    @property
    def answered(self) -> list[Answered]:
        """All prompts that leave room for an answer in the target's context, answered greedily in one batch."""
        if self._answered is None:
            self._answered = self._answer()
        return self._answered

    def passages(self, boundaries: Iterable[int]) -> list[Passage]:
        """The answers of a useful length, joined to long contexts, with the target's states at these boundaries.

        Raises:
            ValueError: if the target does not give them.
        """
        wanted = set(boundaries)
        known = set(self._passages[0].states) if self._passages else set()
        if not wanted <= known:
            self._passages = [self._read(rows, sorted(wanted | known)) for rows in self._joined()]
        return self._passages

    def _answer(self) -> list[Answered]:
        encoded = [encode_chat(self.tokenizer, prompt)["input_ids"][0] for prompt in self.prompts]
        context = getattr(self.target.config.get_text_config(decoder=True), "max_position_embeddings", None)
        encoded = [ids for ids in encoded if context is None or len(ids) + self.new_tokens <= context]
        if not encoded:
            return []
        width = max(len(ids) for ids in encoded)
        stops = stop_ids(self.target)
        padding = stops[0] if stops else 0
        ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=padding) for row in encoded])
        real = torch.stack([torch.arange(width) >= width - len(row) for row in encoded]).long()
        model: Any = self.target
        made = model.generate(
            input_ids=ids.to(self.target.device),
            attention_mask=real.to(self.target.device),
            do_sample=False,
            max_new_tokens=self.new_tokens,
            pad_token_id=padding,
        )
        answers = [_until_stop(row[width:], stops) for row in made.cpu()]
        return [Answered(torch.cat((row, new)), len(row)) for row, new in zip(encoded, answers, strict=True)]

    def _joined(self) -> list[list[Answered]]:
        """The answers of a useful length in groups, at least two, each of which fits the target's context and is about
        as long as the others."""
        useful = [row for row in self.answered if len(row.ids) - row.start >= SHORTEST]
        context = getattr(self.target.config.get_text_config(decoder=True), "max_position_embeddings", None)
        room = min(LONGEST, context or LONGEST)
        number = max(2, math.ceil(sum(len(row.ids) for row in useful) / room))
        while number < len(useful) and any(
            sum(len(row.ids) for row in useful[place::number]) > room for place in range(number)
        ):
            number += 1
        return [group for place in range(number) if (group := useful[place::number])]

    def _read(self, rows: list[Answered], boundaries: list[int]) -> Passage:
        """One forward of the target over answered prompts, one after the other."""
        model: Any = self.target
        ids = torch.cat([row.ids for row in rows]).to(self.target.device)
        ends = torch.tensor([len(row.ids) for row in rows]).cumsum(0).tolist()
        spans = [(end - len(row.ids) + row.start, end) for end, row in zip(ends, rows, strict=True)]
        with capturing(model, boundaries) as capture:
            out = model(ids[None], use_cache=False, **capture.asked)
        kept = min(LIKELY, out.logits.shape[-1])
        best = [part.float().softmax(-1).topk(kept, dim=-1) for part in out.logits[0].split(AT_ONCE)]
        states = zip(boundaries, capture.states(out.get("hidden_states")), strict=True)
        return Passage(
            ids,
            spans,
            {boundary: state[0] for boundary, state in states},
            torch.cat([part.indices for part in best]),
            torch.cat([part.values for part in best]),
        )


def stop_ids(target: PreTrainedModel) -> list[int]:
    """The ids that end an answer of the target."""
    config: Any = target.generation_config
    stops = config.eos_token_id if config is not None else None
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)


def _until_stop(answer: torch.Tensor, stops: Sequence[int]) -> torch.Tensor:
    """The answer with the token that ends it, without what pads the batch after it."""
    ended = torch.isin(answer, torch.tensor(stops, dtype=answer.dtype)).nonzero()
    return answer[: int(ended[0]) + 1] if len(ended) else answer
