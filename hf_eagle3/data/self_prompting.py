"""The target writes its own training text: it samples user turns after the chat template's user header, then answers.

Magpie (arXiv 2406.08464), with openings and system hints for diversity; a hint is never seen when the answer is made.
On-policy answers matter more than good questions: the head learns what THIS target says.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .conversations import ANSWER, TEMPLATE, USER, Conversation, load_conversations, save_conversations
from .features import FeatureExtractor
from .filters import Uniqueness, acceptable_prompt, loops
from .openings import SYSTEM_PROMPTS, Kind, fill, pick_kind
from .slots import Completion, Request, SlotDecoder

_QUOTES = '"""'
_SENTINELS = ("\u241eUSER\u241e", "\u241eANSWER\u241e", "\u241eNEXT\u241e")


@dataclass(frozen=True)
class SamplingPlan:
    """How the text is sampled. Lengths are in tokens; shares are probabilities per conversation."""

    answer_tokens: int = 250_000
    max_answer: int = 224
    max_passage: int = 320
    prompt_temperatures: tuple[float, ...] = (0.8, 1.0, 1.2)
    prompt_top_p: float = 0.95
    answer_temperature: float = 0.7
    greedy_share: float = 0.5
    custom_system_share: float = 0.15
    two_turn_share: float = 0.15
    kept_loop_share: float = 0.2
    shard_size: int = 64
    seed: int = 0


class ChatPieces:
    """The chat template cut at the places where text is sampled, as token ids.

    `before_user(system)` ends with the user header, `after_user` ends with the assistant header, `after_answer` goes
    from an answer's stop token to the next user header. Raises `ValueError` if the template changes what it is given.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._before: dict[str | None, list[int]] = {}
        _, self.after_user, self.after_answer = self._pieces(None)

    def before_user(self, system: str | None = None) -> list[int]:
        if system not in self._before:
            self._before[system] = self._pieces(system)[0]
        return self._before[system]

    def _pieces(self, system: str | None) -> tuple[list[int], list[int], list[int]]:
        user, answer, following = _SENTINELS
        turns = [{"role": "system", "content": system}] if system is not None else []
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        turns += [{"role": "user", "content": following}]
        text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        if any(text.count(sentinel) != 1 for sentinel in _SENTINELS):
            raise ValueError(
                "The chat template does not repeat the turns it is given: this target cannot self-prompt."
            )
        before, rest = text.split(user)
        between, rest = rest.split(answer)
        onwards = rest.split(following)[0]
        before_ids, between_ids, onward_ids = (
            self.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in (before, between, onwards)
        )
        return before_ids, between_ids, onward_ids


@dataclass
class _Draft:
    """A conversation in the making. `first` is its first turn alone, kept in case the second one comes to nothing."""

    kind: Kind
    opening: list[int]
    system: str | None
    greedy: bool
    two_turns: bool
    keep_loop: bool
    conversation: Conversation = field(default_factory=Conversation)
    first: Conversation | None = None
    docstring: bool = False
    wants_answer: bool = False


class SelfPrompter:
    """Samples conversations from `model` with `tokenizer`'s template; iterate to get the ones that pass the filters.

    `slots` rows are decoded at once. The same `plan` and model give the same text on the same machine.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        plan: SamplingPlan,
        slots: int = 48,
        capture: list[int] | None = None,
    ) -> None:
        self.tokenizer, self.plan = tokenizer, plan
        self.pieces = ChatPieces(tokenizer)
        configured = model.generation_config.eos_token_id if model.generation_config else tokenizer.eos_token_id
        self.eos_ids: list[int] = configured if isinstance(configured, list) else [configured]
        self.decoder = SlotDecoder(
            model, self.eos_ids, slots, max_length=1536, refill=max(1, slots // 16), stop_early=self._wasted,
            seed=plan.seed, capture=capture,
        )  # fmt: skip
        self.rng = random.Random(plan.seed)
        self.unique = Uniqueness()
        self.passages: deque[list[int]] = deque(maxlen=512)
        self.waiting: deque[Request] = deque()
        self.answer_tokens = 0

    def remember(self, conversation: Conversation) -> None:
        """Count an earlier conversation (of a run being resumed): its prompt is not asked again."""
        text = self._text([i for i, role in zip(conversation.ids, conversation.roles, strict=True) if role == USER])
        self.unique.admit(text)
        self.answer_tokens += conversation.answer_tokens

    def __iter__(self) -> Iterator[Conversation]:
        for completion in self.decoder.run(self._requests()):
            draft: _Draft = completion.request.payload
            if draft.wants_answer:
                finished = self._answered(draft, completion)
            else:
                sampled = self._user_turn(draft, completion)
                finished = None if sampled and self._asked(draft, sampled) else draft.first
            if finished is not None:
                self.answer_tokens += finished.answer_tokens
                yield finished

    def _requests(self) -> Iterator[Request]:
        while self.answer_tokens < self.plan.answer_tokens:
            if self.waiting:
                yield self.waiting.popleft()
            else:
                self._propose()

    def _propose(self) -> None:
        """Queue a new user turn, or at once its answer when the opening already is the whole turn."""
        rng, plan = self.rng, self.plan
        kind = pick_kind(rng, passages=len(self.passages) >= 32)
        draft = _Draft(
            kind,
            self._opening(kind),
            rng.choice(SYSTEM_PROMPTS) if rng.random() < plan.custom_system_share else None,
            greedy=rng.random() < plan.greedy_share,
            two_turns=rng.random() < plan.two_turn_share,
            keep_loop=rng.random() < plan.kept_loop_share,
        )
        draft.docstring = self._text(draft.opening).endswith(_QUOTES)
        if kind.max_new_tokens == 0:
            self._asked(draft, [])
            return
        ids = self.pieces.before_user(f"You are a helpful assistant. {fill(kind.hint, rng)}") + draft.opening
        self._queue(draft, ids, kind.max_new_tokens, rng.choice(plan.prompt_temperatures))

    def _opening(self, kind: Kind) -> list[int]:
        """The tokens a user turn begins with; an opening's trailing space is left for the model to write."""
        before, passage, after = fill(self.rng.choice(kind.openings), self.rng).partition("{passage}")
        ids = self._ids(before if passage else before.rstrip(" "))
        if passage:
            wanted = self.rng.randrange(60, self.plan.max_passage)
            while len(ids) < wanted:
                ids += self.rng.choice(self.passages) + self._ids("\n\n")
            ids = ids[: self.plan.max_passage] + self._ids(after.rstrip(" "))
        return ids

    def _user_turn(self, draft: _Draft, completion: Completion) -> list[int]:
        """The sampled part of a user turn, a docstring cut where it closes; empty if the turn did not end."""
        ids = completion.new_ids
        if draft.docstring and _QUOTES in self._text(ids):
            return ids[: next(n for n in range(1, len(ids) + 1) if _QUOTES in self._text(ids[:n]))]
        return ids[:-1] if completion.finished else []

    def _wasted(self, request: Request, new_ids: list[int]) -> bool:
        """Whether a row can be ended early: its docstring has closed, or it loops and no loop was wanted."""
        draft: _Draft = request.payload
        if draft.docstring and not draft.wants_answer:
            return _QUOTES in self._text(new_ids)
        return not draft.keep_loop and loops(new_ids)

    def _asked(self, draft: _Draft, sampled: list[int]) -> bool:
        """A user turn is there: filter it and queue its answer; says whether it was good enough."""
        user = draft.opening + sampled
        text = self._text(user)
        longest = 8 * self.plan.max_passage if draft.kind.uses_passage else 500
        if not acceptable_prompt(text, user, longest=longest) or not self.unique.admit(text, self._text(sampled)):
            return False
        if draft.first is None:
            draft.conversation.extend(self.pieces.before_user(draft.system), TEMPLATE)
        draft.conversation.extend(user, USER)
        draft.conversation.extend(self.pieces.after_user, TEMPLATE)
        draft.wants_answer = True
        temperature = 0.0 if draft.greedy else self.plan.answer_temperature
        self._queue(draft, draft.conversation.ids, self.plan.max_answer, temperature)
        return True

    def _answered(self, draft: _Draft, completion: Completion) -> Conversation | None:
        """An answer is there: drop loops, keep it, and go on to a second user turn where one was planned."""
        ids, conversation = completion.new_ids, draft.conversation
        if loops(ids) and not draft.keep_loop:
            return draft.first
        if len(ids) >= 48 and not loops(ids) and draft.kind.name not in ("code", "maths"):
            self.passages.append(ids[:-1] if completion.finished else ids)
        conversation.extend(ids, ANSWER)
        conversation.states = completion.states
        conversation.about = {"kind": draft.kind.name, "greedy": draft.greedy, "finished": completion.finished}
        conversation.about |= {"turns": 1 if draft.first is None else 2, "default_system": draft.system is None}
        if not draft.two_turns or draft.first is not None or not completion.finished or len(conversation.ids) > 420:
            return conversation
        draft.first = Conversation(
            list(conversation.ids), list(conversation.roles), conversation.about, completion.states
        )
        draft.wants_answer, draft.docstring, draft.opening = False, False, []
        onwards = self.pieces.after_answer
        conversation.extend(onwards[1:] if onwards[:1] == ids[-1:] else onwards, TEMPLATE)
        self._queue(draft, conversation.ids, 64, self.rng.choice(self.plan.prompt_temperatures))
        return None

    def _queue(self, draft: _Draft, ids: list[int], max_new_tokens: int, temperature: float) -> None:
        self.waiting.append(Request(list(ids), max_new_tokens, temperature, self.plan.prompt_top_p, draft))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))


def write_conversations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    plan: SamplingPlan,
    slots: int = 48,
    extractor: FeatureExtractor | None = None,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> int:
    """Fill `folder` with shards until `plan.answer_tokens` are there (or `stop()`), and return how many there are.

    A folder that already holds shards is continued, with a seed of its own for the new part. With an `extractor` the
    feature shards are written too, from the states that decoding produces anyway. `progress` is called with the answer
    tokens so far.
    """
    shards = sorted(folder.glob("conversations-*.safetensors")) if folder.is_dir() else []
    plan = replace(plan, seed=plan.seed + 10_007 * len(shards))
    prompter = SelfPrompter(model, tokenizer, plan, slots, extractor.captured if extractor else None)
    for conversation in load_conversations(folder) if shards else ():
        prompter.remember(conversation)
    number = 1 + int(shards[-1].stem.split("-")[1]) if shards else 0
    pending: list[Conversation] = []

    def write() -> None:
        if extractor is not None:
            extractor.write(pending, folder / f"features-{number:05d}.safetensors")
        save_conversations(pending, folder / f"conversations-{number:05d}.safetensors")

    for conversation in prompter:
        pending.append(conversation)
        if len(pending) == plan.shard_size:
            write()
            number, pending = number + 1, []
            if progress is not None:
                progress(prompter.answer_tokens)
            if stop is not None and stop():
                return prompter.answer_tokens
    if pending:
        write()
    return prompter.answer_tokens
