"""User turns that the target makes up: sampled after the chat template's user header, from openings of many kinds.

Magpie (arXiv 2406.08464), with openings and system hints for diversity; a hint is never seen when the answer is made.
On-policy answers matter more than good questions: the head learns what THIS target says. Knows nothing of filters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from transformers import PreTrainedTokenizerBase

from .filters import loops
from .interview import Interview, Plan, draws, request_seed, takes_system
from .openings import KINDS, SYSTEM_PROMPTS, Kind, fill, pick_kind
from .slots import Completion, Request
from .template import before_user, prompt_ids

_QUOTES = '"""'
_FOLLOW_UP_TOKENS, _FOLLOW_UP_LENGTH = 64, 420  # of a second user turn, and of the conversation that gets one
_FEWEST, _ROOM = 32, 64  # tokens that a user turn can take at least, without and with its opening
_PASSAGES = 32  # from so many on, openings are built of them
_LONGEST, _LONGEST_PASSAGE = 500, 8  # characters of a user turn; characters for each token of a passage
_SAMPLED = "sampled user turns"


@dataclass(frozen=True)
class Question:
    """A user turn: its `text`, and the part `written` by the target after the opening it was given."""

    text: str
    written: str


@dataclass
class _Draft:
    kind: Kind
    two_turns: bool
    rng: Random
    opening: list[int]


class SelfPrompter:
    """Makes up the user turns of interviews: `begin` one, ask for its `next` turn, `read` what the target sampled.

    Without a system message in the template there are neither hints nor system prompts. A user turn that would not fit
    in the plan's `max_length` is cut short or left out.

    Raises:
        ValueError: if the template cannot be cut where a user's text begins, or the plan has no room for user turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> None:
        self.tokenizer, self.plan = tokenizer, plan
        self.passages: deque[list[int]] = deque(maxlen=512)
        self.takes_system = takes_system(tokenizer)
        shortest = self._shortest()
        if plan.max_length < shortest:
            raise ValueError(
                f"Conversations of up to {plan.max_length} tokens have no room for a user turn and an answer of up to "
                f"{plan.max_answer}: give a max_length (--max-length) of {shortest} or more, or a smaller max_answer "
                "(--max-answer)."
            )

    def begin(self, number: int) -> Interview:
        """A new interview, of the kind and with the opening that its number draws."""
        rng, plan = draws(self.plan.seed, number), self.plan
        kind = pick_kind(rng, passages=len(self.passages) >= _PASSAGES)
        opening = self._opening(kind, rng)
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < plan.custom_system_share else None
        temperature = 0.0 if rng.random() < plan.greedy_share else plan.temperature
        two_turns = rng.random() < plan.two_turn_share
        keep_loop = rng.random() < plan.kept_loop_share
        draft = _Draft(kind, two_turns, rng, opening)
        return Interview(
            number, f"self-prompting/{kind.name}", temperature, keep_loop, system if self.takes_system else None,
            draft=draft,
        )  # fmt: skip

    def next(self, interview: Interview) -> Request | Question | None:
        """What gives the next user turn: a request to the target, the turn itself, or None if none is to follow."""
        draft: _Draft = interview.draft
        if not interview.answered:
            if draft.kind.max_new_tokens == 0:
                return Question(self._text(draft.opening), "")
            return self._request(interview, self._hinted(draft.kind, draft.rng), draft.kind.max_new_tokens)
        length = len(interview.examples[-1].ids)
        if not draft.two_turns or interview.answered > 1 or not interview.finished or length > _FOLLOW_UP_LENGTH:
            return None
        draft.opening = []
        return self._request(interview, before_user(self.tokenizer, interview.messages), _FOLLOW_UP_TOKENS)

    def _request(self, interview: Interview, ids: list[int], tokens: int) -> Request | None:
        draft, plan = interview.draft, self.plan
        ids = ids + draft.opening
        room = plan.max_length - len(ids)
        if room < _FEWEST:
            interview.tally.dropped(_SAMPLED, f"over {plan.max_length} tokens")
            return None
        temperature = draft.rng.choice(plan.prompt_temperatures)
        seed = request_seed(plan.seed, interview, "user")
        return Request(ids, min(tokens, room), temperature, plan.prompt_top_p, seed, interview)

    def _hinted(self, kind: Kind, rng: Random) -> list[int]:
        """What stands before the first user turn of a `kind` while it is sampled."""
        if not self.takes_system:
            return before_user(self.tokenizer, [])
        hint = f"You are a helpful assistant. {fill(kind.hint, rng)}"
        return before_user(self.tokenizer, [{"role": "system", "content": hint}])

    def _shortest(self) -> int:
        """The least `max_length` with which user turns can be sampled, and answered."""
        sampled = max(len(self._hinted(kind, Random(0))) for kind in KINDS)
        answered = len(prompt_ids(self.tokenizer, [{"role": "user", "content": "?"}])) + self.plan.max_answer
        return max(sampled, answered) + _ROOM

    def read(self, interview: Interview, completion: Completion) -> Question | None:
        """The user turn that the target sampled, a docstring cut where it closes; None, counted, if it is no turn."""
        draft = interview.draft
        ids = completion.new_ids[:-1] if completion.finished else completion.new_ids
        before, whole = self._text(draft.opening), self._text(draft.opening + ids)
        closed = self._closes(draft.opening, ids)
        if closed:
            whole = whole[: whole.index(_QUOTES, len(before)) + len(_QUOTES)]
        written, longest = whole[len(before) :], self._longest(draft.kind)
        reason = (
            "did not end" if not closed and not completion.finished
            else "empty" if not written.strip()
            else "special token" if set(ids) & set(self.tokenizer.all_special_ids)
            else f"over {longest} characters" if len(whole) > longest
            else None
        )  # fmt: skip
        if reason is None:
            interview.tally.kept(_SAMPLED)
            return Question(whole, written)
        interview.tally.dropped(_SAMPLED, reason)
        return None

    def enough(self, request: Request, new_ids: list[int]) -> bool:
        """Whether a user turn being sampled need not go on: its docstring has closed, or it loops."""
        return self._closes(request.payload.draft.opening, new_ids) or loops(new_ids)

    def hear(self, interview: Interview, ids: list[int]) -> None:
        """Keep an answer as a passage that later user turns can be about."""
        if len(ids) >= 48 and not loops(ids) and not interview.source.endswith(("/code", "/maths")):
            self.passages.append(ids)

    def remember(self, source: str, answer: str) -> None:
        """The same for an answer of an earlier run."""
        self.hear(Interview(0, source, 0.0), self._ids(answer))

    def _longest(self, kind: Kind) -> int:
        return max(_LONGEST, _LONGEST_PASSAGE * self.plan.max_passage if kind.uses_passage else 0)

    def _opening(self, kind: Kind, rng: Random) -> list[int]:
        """The tokens a user turn begins with; an opening's trailing space is left for the model to write."""
        before, passage, after = fill(rng.choice(kind.openings), rng).partition("{passage}")
        ids = self._ids(before if passage else before.rstrip(" "))
        if passage:
            wanted = rng.randrange(min(60, self.plan.max_passage - 1), self.plan.max_passage)
            while len(ids) < wanted:
                ids += rng.choice(self.passages) + self._ids("\n\n")
            ids = ids[: self.plan.max_passage] + self._ids(after.rstrip(" "))
        return ids

    def _closes(self, opening: Sequence[int], ids: list[int]) -> bool:
        before = self._text(opening)
        return before.rstrip().endswith(_QUOTES) and _QUOTES in self._text([*opening, *ids])[len(before) :]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
