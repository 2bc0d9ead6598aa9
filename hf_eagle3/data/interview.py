"""One conversation in the making: what is asked, what the target answered, and the token ids of both.

For every answer the prompt is rendered anew, as inference would render it. Where the ids so far are a prefix of it,
the same example goes on; where they are not (the template rewrites earlier turns, or a text tokenises otherwise than
the target wrote it), the example so far stands for itself and another begins. Knows nothing of models or filters.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .conversations import Conversation
from .tally import Tally
from .template import TemplateError, chat_text


@dataclass(frozen=True)
class Plan:
    """How conversations are sampled. Lengths are in tokens; shares are probabilities per conversation.

    Args:
        answer_tokens: begin no more conversations once so many answer tokens are there; None asks all prompts.
        max_answer: the longest answer; a longer one is cut, and its conversation ends with it.
        max_length: the longest conversation, answer included.
        temperature, top_p: of the answers that are not greedy.
        greedy_share: of conversations answered greedily.
        kept_loop_share: of conversations in which a loop is no reason to drop an answer, so that the head learns that
            the target loops.
        two_turn_share, custom_system_share: of self-prompted conversations.
        prompt_temperatures, prompt_top_p, max_passage: of the user turns that the target samples.
        seed: everything that is drawn follows from it and from a conversation's number.
    """

    answer_tokens: int | None = 250_000
    max_answer: int = 224
    max_length: int = 1536
    temperature: float = 0.7
    top_p: float = 0.95
    greedy_share: float = 0.5
    kept_loop_share: float = 0.2
    two_turn_share: float = 0.15
    custom_system_share: float = 0.15
    prompt_temperatures: tuple[float, ...] = (0.8, 1.0, 1.2)
    prompt_top_p: float = 0.95
    max_passage: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("greedy_share", "kept_loop_share", "two_turn_share", "custom_system_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a share lies between 0 and 1.")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature is {self.temperature}: give one above 0 (--temperature), and for greedy answers alone a "
                "greedy_share of 1 (--greedy-share)."
            )
        if not 0 < self.max_answer < self.max_length:
            raise ValueError(
                f"Answers of up to {self.max_answer} tokens do not fit in conversations of up to {self.max_length}: "
                "give a max_answer (--max-answer) from 1 to less than max_length (--max-length)."
            )


@dataclass
class Interview:
    """A conversation of its own `number`; `turns` are the user turns still to be asked.

    `draft` belongs to whoever makes up the user turns. `refused` means that the first user turns did not pass, so that
    nothing was asked. `tally` counts what happened in this conversation alone.
    """

    number: int
    source: str
    temperature: float
    keep_loop: bool = False
    system: str | None = None
    turns: deque[str] = field(default_factory=deque)
    draft: Any = None
    messages: list[dict[str, str]] = field(default_factory=list)
    examples: list[Conversation] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    refused: bool = False
    finished: bool = True
    asking: str = ""
    prompt: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.system is not None and not self.messages:
            self.messages.append({"role": "system", "content": self.system})

    @property
    def answered(self) -> int:
        """How many answers there are."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def answer_tokens(self) -> int:
        return sum(example.answer_tokens for example in self.examples)

    def ask(self, text: str) -> list[dict[str, str]]:
        """The messages that the target is to answer when the user says `text`; they count once it has answered."""
        self.asking = text
        return [*self.messages, {"role": "user", "content": text}]

    def answer(self, text: str, finished: bool) -> None:
        """The target's answer to what was asked, as text."""
        self.messages = [*self.ask(self.asking), {"role": "assistant", "content": text}]
        self.finished = finished

    def join(self, prompt: list[int], new_ids: list[int]) -> None:
        """The same answer as the ids `new_ids` that the target generated after the ids `prompt`; call it after
        `answer`."""
        if not self.examples or prompt[: len(self.examples[-1].ids)] != self.examples[-1].ids:
            self.examples.append(Conversation())
        example = self.examples[-1]
        example.extend(prompt[len(example.ids) :], answer=False)
        example.extend(new_ids, answer=True)
        example.messages, example.about = list(self.messages), self.about()

    def add(self, ids: list[int], mask: list[bool], turns: int) -> None:
        """An example rendered from the text of the first `turns` turns."""
        ends = [number for number, message in enumerate(self.messages) if message["role"] == "assistant"]
        messages = self.messages[: ends[turns - 1] + 1]
        finished = self.finished or turns < len(ends)
        self.examples.append(Conversation(ids, mask, messages, self.about() | {"turns": turns, "finished": finished}))

    def about(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "turns": self.answered,
            "temperature": self.temperature,
            "finished": self.finished,
            "conversation": self.number,
        }


def draws(seed: int, number: int, what: str = "") -> random.Random:
    """A generator for one conversation, the same whatever was drawn for others and wherever a run was resumed."""
    return random.Random(f"{seed}/{number}/{what}")


def request_seed(seed: int, interview: Interview, what: str) -> int:
    """The seed of one request of a conversation: below 2**31, which every server takes."""
    told = f"{seed}/{interview.number}/{interview.answered}/{what}"
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], "big") >> 1


def given_interview(plan: Plan, number: int, turns: Iterable[str], system: str | None, source: str) -> Interview:
    """An interview whose user turns are all known, with what the plan leaves to chance."""
    rng = draws(plan.seed, number)
    temperature = 0.0 if rng.random() < plan.greedy_share else plan.temperature
    keep_loop = rng.random() < plan.kept_loop_share
    return Interview(number, source, temperature, keep_loop, system, deque(turns))


def takes_system(tokenizer: Any) -> bool:
    """Whether a system message reaches the text; some templates refuse it, and some leave it out."""
    word = "\u241eSYSTEM\u241e"
    try:
        return word in chat_text(tokenizer, [{"role": "system", "content": word}, {"role": "user", "content": "?"}])
    except TemplateError:
        return False
