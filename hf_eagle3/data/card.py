"""The card of a dataset: how it was made, what every step kept and dropped, its sizes. Only what was counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .tally import Tally

_ENDS = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_RECORD = "hf_eagle3"  # in the front matter
_INTRODUCTION = """# Conversations of {target}

{origin}

The answers are the target's own. They are meant to train an EAGLE-3 draft head for it (speculative decoding, arXiv
2503.01840) with hf-eagle3: `input_ids` are the tokens, `loss_mask` says which of them the target generated, stop
tokens included."""
_LOADING = """## Loading

    from hf_eagle3.data.store import load_dataset
    rows = load_dataset("FOLDER")["train"]

or `datasets.load_from_disk("FOLDER")`. `hf-eagle3 data inspect FOLDER` shows the mask on the text, and
`hf-eagle3 train --data FOLDER` trains a head. Columns: `input_ids`, `loss_mask`, `messages`, `source`, `turns`,
`temperature` (0 is greedy), `finished` (false where an answer was cut at the length limit)."""


@dataclass
class Sizes:
    """What is counted of the examples of a split; `finished` and `greedy` are how many are so, and of how many it is
    known."""

    examples: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    finished: list[int] = field(default_factory=lambda: [0, 0])
    greedy: list[int] = field(default_factory=lambda: [0, 0])
    turns: Counter[int] = field(default_factory=Counter)

    def add(
        self, tokens: int, answers: int, turns: int | None, temperature: float | None, finished: bool | None
    ) -> None:
        """Count one example."""
        self.examples, self.tokens = self.examples + 1, self.tokens + tokens
        self.answer_tokens += answers
        greedy = None if temperature is None else temperature == 0
        for counts, yes in ((self.finished, finished), (self.greedy, greedy)):
            if yes is not None:
                counts[0] += yes
                counts[1] += 1
        if turns is not None:
            self.turns[turns] += 1

    def rows(self) -> list[tuple[str, str]]:
        turns = ", ".join(f"{turns}: {count:,}" for turns, count in sorted(self.turns.items()))
        return [
            ("examples", f"{self.examples:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("answer tokens", f"{self.answer_tokens:,}"),
            ("finished by the target", self._share(*self.finished)),
            ("answered greedily", self._share(*self.greedy)),
            ("examples by user turns", turns or "not known"),
        ]

    def _share(self, yes: int, known: int) -> str:
        """A share of all examples, told only where it is known of each."""
        return f"{yes / known:.1%}" if known and known == self.examples else "not known"


def card(facts: Mapping[str, Any], tally: Tally, sizes: Mapping[str, Sizes]) -> str:
    """The README.md of a dataset, YAML front matter first, which names the target for programs to read.

    Args:
        facts: `target` and whatever else the dataset follows from; `prompts` names their sources, and is empty where
            the target made up the user turns.
        sizes: by split.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    target: dict[str, Any] = {_RECORD: {"target": facts["target"]}} if "target" in facts else {}
    count = sum(size.examples for size in sizes.values())
    data = DatasetCardData(
        pretty_name=f"Conversations of {facts.get('target', 'a target')}",
        task_categories=["text-generation"],
        tags=["hf-eagle3", "eagle3", "speculative-decoding"],
        size_categories=[next((name for end, name in _ENDS if count < end), "n>1M")],
        **target,
    )
    body = "\n\n".join([
        _INTRODUCTION.format(target=facts.get("target", "a target"), origin=_origin(facts)),
        "## How it was made\n\n" + _table(("setting", "value"), ((name, _told(facts[name])) for name in facts)),
        "## What each step kept and dropped\n\n" + _table(("step", "kept", "dropped", "noted"), _steps(tally)),
        "## Sizes\n\n" + _sizes(sizes),
        _LOADING,
        "## Licence\n\n" + _licence(facts),
    ])  # fmt: skip
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def target_of(metadata: Mapping[str, Any]) -> str | None:
    """The target that the front matter of a card names; None if it names none, as the first ones did not."""
    record = metadata.get(_RECORD)
    target = record.get("target") if isinstance(record, dict) else None
    return target if isinstance(target, str) else None


def _origin(facts: Mapping[str, Any]) -> str:
    if facts.get("prompts"):
        return f"The user turns come from {', '.join(facts['prompts'])}."
    if "shards" in facts:
        return f"The token ids come from {facts['shards']}."
    return "The target made up the user turns as well, from short openings that come with hf-eagle3."


def _licence(facts: Mapping[str, Any]) -> str:
    target = facts.get("target", "the target")
    if facts.get("prompts"):
        return (
            f"The user turns are under the licences of their sources ({', '.join(facts['prompts'])}); for the answers "
            f"see what the licence of {target} says about its outputs."
        )
    if "shards" in facts:
        return f"See where the token ids come from, and what the licence of {target} says about its outputs."
    return (
        "No outside data went in: openings and word lists come with hf-eagle3, and the target wrote the rest. See "
        f"what the licence of {target} says about its outputs."
    )


def _steps(tally: Tally) -> Iterable[tuple[str, ...]]:
    for step, kept, dropped, notes in tally.rows():
        yield step, f"{kept:,}", _counts(dropped), _counts(notes)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


def _sizes(sizes: Mapping[str, Sizes]) -> str:
    columns = [size.rows() for size in sizes.values()]
    rows = ((cells[0][0], *(cell[1] for cell in cells)) for cells in zip(*columns, strict=True))
    return _table(("", *sizes), rows)


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
