"""User turns that the target makes up, from openings of many kinds, or of complete texts and its own earlier answers.

What is opened is sampled after the chat template's user header, as in Magpie (arXiv 2406.08464), with system hints for
diversity; a hint is never seen when the answer is made. On-policy answers matter more than good questions: the head
learns what THIS target says. Knows nothing of filters.
"""

from __future__ import annotations

import re
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
_FOLLOW_UP_TOKENS, _FOLLOW_UP_LENGTH = 64, 640  # of a second user turn, and of the conversation that gets one
_WHOLE_FOLLOW_UPS = 0.6  # of second user turns
_FEWEST, _ROOM = 32, 64  # tokens that a user turn can take at least, without and with its opening
_PASSAGES = 32  # from so many on, user turns are made of them
_SHORTEST_ANSWER, _SHORTEST_PASSAGE = 48, 150  # tokens of an answer that is kept, and of what is built of them
_LOOKED_AT = 8  # answers, from which the one of the wanted length is taken
_NEARLY = 0.8  # of the wanted length, from which on no further answer is joined
_LONGEST, _CHARACTERS = 500, 8  # characters of a sampled turn; of each token of a passage
_SAMPLED = "sampled user turns"
_NO_PROSE = ("/code", "/data", "/extraction", "/maths", "/reasoning", "/translation")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


@dataclass(frozen=True)
class Question:
    """A user turn: its `text`, and the part `written` by the target after the opening it was given.

    One that `may_repeat` asks about the conversation, and is another question in every one.
    """

    text: str
    written: str
    may_repeat: bool = False


@dataclass(frozen=True)
class Passage:
    """An answer that later user turns can be about: whole sentences, of so many `tokens`."""

    text: str
    tokens: int
    source: str


@dataclass
class _Draft:
    kind: Kind
    two_turns: bool
    rng: Random
    opening: list[int]
    whole: str | None = None


class SelfPrompter:
    """Makes up the user turns of interviews: `begin` one, ask for its `next` turn, `read` what the target sampled.

    Without a system message in the template there are neither hints nor system prompts. A user turn that would not fit
    in the plan's `max_length` is cut short or left out.

    Raises:
        ValueError: if the template cannot be cut where a user's text begins, or the plan has no room for user turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> None:
        self.tokenizer, self.plan = tokenizer, plan
        self.passages: deque[Passage] = deque(maxlen=512)
        self.takes_system = takes_system(tokenizer)
        shortest = self._shortest()
        if plan.max_length < shortest:
            raise ValueError(
                f"Conversations of up to {plan.max_length} tokens have no room for a user turn and an answer of up to "
                f"{plan.max_answer}: give a max_length (--max-length) of {shortest} or more, or a smaller max_answer "
                "(--max-answer)."
            )

    def begin(self, number: int) -> Interview:
        """A new interview, of the kind and with the opening that its number draws; the passages are those of now."""
        rng, plan = draws(self.plan.seed, number), self.plan
        kind = pick_kind(rng, passages=len(self.passages) >= _PASSAGES)
        text, is_whole = kind.draw(rng)
        text = self._with_passage(text, draws(plan.seed, number, "passage"))
        system = fill(rng.choice(SYSTEM_PROMPTS), rng) if rng.random() < plan.custom_system_share else None
        temperature = 0.0 if rng.random() < plan.greedy_share else plan.temperature
        two_turns = rng.random() < plan.two_turn_share
        keep_loop = rng.random() < plan.kept_loop_share
        # An opening's last space is left for the model to write.
        draft = _Draft(kind, two_turns, rng, self._ids(text.rstrip(" ")), text if is_whole else None)
        return Interview(
            number, f"self-prompting/{kind.name}", temperature, keep_loop, system if self.takes_system else None,
            draft=draft,
        )  # fmt: skip

    def next(self, interview: Interview) -> Request | Question | None:
        """What gives the next user turn: a request to the target, the turn itself, or None if none is to follow."""
        draft: _Draft = interview.draft
        if not interview.answered:
            if draft.whole is not None:
                return Question(draft.whole, "")
            return self._request(interview, self._hinted(draft.kind, draft.rng), draft.kind.max_new_tokens)
        length = len(interview.examples[-1].ids)
        if not draft.two_turns or interview.answered > 1 or not interview.finished or length > _FOLLOW_UP_LENGTH:
            return None
        if draft.rng.random() < _WHOLE_FOLLOW_UPS:
            return Question(fill(draft.rng.choice(draft.kind.follow_ups), draft.rng), "", may_repeat=True)
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

    def hear(self, interview: Interview, ids: list[int], finished: bool = True) -> None:
        """Keep an answer as a passage that later user turns can be about, one that was cut short up to its last whole
        sentence."""
        if len(ids) < _SHORTEST_ANSWER or loops(ids) or interview.source.endswith(_NO_PROSE):
            return
        text = self._text(ids[: self.plan.max_passage]).strip()
        if not finished or len(ids) > self.plan.max_passage:
            text = text[: max((end.end() for end in _SENTENCE_END.finditer(text)), default=0)]
        tokens = len(self._ids(text))
        if tokens >= min(_SHORTEST_ANSWER, self.plan.max_passage):
            self.passages.append(Passage(text, tokens, interview.source))

    def remember(self, source: str, answer: str) -> None:
        """The same for an answer of an earlier run, of which only the text is known."""
        self.hear(Interview(0, source, 0.0), self._ids(answer), finished=False)

    def _longest(self, kind: Kind) -> int:
        return max(_LONGEST, _CHARACTERS * self.plan.max_passage if kind.uses_passage else 0)

    def _with_passage(self, text: str, rng: Random) -> str:
        """`text` with an earlier answer in its place for one; several of one kind where a longer text is wanted."""
        before, place, after = text.partition("{passage}")
        if not place:
            return text
        longest = self._longest_passage()
        wanted = rng.randint(min(_SHORTEST_PASSAGE, longest), longest)
        enough = max(_SHORTEST_PASSAGE, _NEARLY * wanted)
        looked_at = rng.sample(list(self.passages), min(_LOOKED_AT, len(self.passages)))
        taken = [min(looked_at, key=lambda passage: abs(passage.tokens - wanted))]
        for passage in rng.sample(list(self.passages), len(self.passages)):
            tokens = sum(part.tokens + 1 for part in taken)
            if tokens >= enough:
                break
            if passage.source == taken[0].source and passage not in taken and tokens + passage.tokens <= longest:
                taken.append(passage)
        return before + "\n\n".join(part.text for part in taken) + after

    def _longest_passage(self) -> int:
        """Tokens of a passage that leave room for what asks about it, and for its answer."""
        plan = self.plan
        return max(_SHORTEST_ANSWER, min(plan.max_passage, plan.max_length - plan.max_answer - 2 * _ROOM))

    def _closes(self, opening: Sequence[int], ids: list[int]) -> bool:
        """Whether the docstring that an opening leaves open ends in `ids`."""
        before = self._text(opening)
        return before.count(_QUOTES) % 2 == 1 and _QUOTES in self._text([*opening, *ids])[len(before) :]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
