"""What tests of interviews share: a gate that lets pass, made-up prompts, and what every example must keep to."""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from hf_eagle3.data.conversations import Conversation
from hf_eagle3.data.interview import Plan
from hf_eagle3.data.sources import Prompt
from hf_eagle3.data.tally import Tally
from hf_eagle3.data.template import prompt_ids

STOP = 1
PLAN = Plan(answer_tokens=300, max_answer=24, two_turn_share=0.5, kept_loop_share=1.0)
# An earlier answer is written as one word, as templates do that leave out what was thought.
REWRITING = (
    "{% for message in messages %}<s> {{ message['role'] }} : "
    "{% if message['role'] == 'assistant' and not loop.last %}w0{% else %}{{ message['content'] }}{% endif %} </s> "
    "{% endfor %}{% if add_generation_prompt %}<s> assistant : {% endif %}"
)


class OpenGate:
    """Lets everything pass but what holds a forbidden word, and remembers what it was asked."""

    def __init__(self, forbidden: str = "nothing") -> None:
        self.tally, self.forbidden = Tally(), forbidden
        self.asked: list[list[str]] = []
        self.remembered: list[list[str]] = []

    def prompt(self, turns: Sequence[str], written: str | None = None, may_repeat: bool = False) -> bool:
        self.asked.append(list(turns))
        return self._verdict("prompts", " ".join(turns))

    def answer(self, text: str, ids: Sequence[int], keep_loop: bool = False) -> bool:
        return self._verdict("answers", text)

    def remember(self, turns: Sequence[str]) -> None:
        self.remembered.append(list(turns))

    def _verdict(self, step: str, text: str) -> bool:
        if self.forbidden in text.split():
            self.tally.dropped(step, "forbidden")
            return False
        self.tally.kept(step)
        return True


def given(count: int = 8, turns: int = 2, system: str | None = None) -> list[tuple[int, Prompt]]:
    rng = random.Random(0)
    words = [" ".join(f"w{rng.randrange(40)}" for _ in range(rng.randrange(1, 6))) for _ in range(count * turns)]
    return [(i, Prompt(tuple(words[i * turns : (i + 1) * turns]), system, f"my.jsonl:{i}")) for i in range(count)]


def answers_of(example: Conversation) -> list[tuple[list[int], list[int]]]:
    """The ids before each answer, and the answer's."""
    found = []
    edges = [i for i in range(len(example.ids)) if example.mask[i] and not (i and example.mask[i - 1])]
    for start in edges:
        end = next((i for i in range(start, len(example.ids)) if not example.mask[i]), len(example.ids))
        found.append((example.ids[:start], example.ids[start:end]))
    return found


def check(examples: list[Conversation], tokenizer: PreTrainedTokenizerFast) -> None:
    """Every answer stands behind exactly what inference renders, and reads as the message; the last token is its."""
    for example in examples:
        assert len(example.ids) == len(example.mask)
        assert example.mask[-1]
        assert (example.ids[-1] == STOP) == example.about["finished"]
        ends = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
        answers = answers_of(example)
        for end, (before, answer) in zip(ends[-len(answers) :], answers, strict=True):
            assert before == prompt_ids(tokenizer, example.messages[:end])
            own = answer[:-1] if answer[-1] == STOP else answer
            assert tokenizer.decode(own) == example.messages[end]["content"]
