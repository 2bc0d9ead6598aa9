"""What is kept of sampled text: pure functions over token ids and strings, plus the `Uniqueness` register."""

from __future__ import annotations

import re
from collections import Counter


def repetition(ids: list[int], n: int = 4) -> float:
    """Share of the n-grams of `ids` that already occurred in it; 0.0 when it is shorter than `n`."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def loops(ids: list[int], window: int = 64, threshold: float = 0.6) -> bool:
    """Whether the last `window` tokens mostly repeat one another, as a small model caught in a loop does."""
    return len(ids) >= window and repetition(ids[-window:]) > threshold


def acceptable_prompt(text: str, ids: list[int], shortest: int = 8, longest: int = 400) -> bool:
    """Length in characters, 4-gram repetition below 0.3 and fewer than 5% non-ASCII characters."""
    if not shortest <= len(text.strip()) <= longest:
        return False
    foreign = sum(not character.isascii() for character in text) / len(text)
    return foreign < 0.05 and repetition(ids) < 0.3


class Uniqueness:
    """Remembers prompts: no exact duplicate of the normalised text, at most `per_prefix` that go on alike."""

    def __init__(self, per_prefix: int = 4, prefix_words: int = 5) -> None:
        self.per_prefix, self.prefix_words = per_prefix, prefix_words
        self.texts: set[str] = set()
        self.prefixes: Counter[str] = Counter()

    def admit(self, text: str, sampled: str | None = None) -> bool:
        """Take `text` in and say whether it was new enough; `sampled` is its part after a given opening."""
        whole = " ".join(re.findall(r"\w+", text.lower()))
        prefix = " ".join(re.findall(r"\w+", (sampled or text).lower())[: self.prefix_words])
        if whole in self.texts or self.prefixes[prefix] >= self.per_prefix:
            return False
        self.texts.add(whole)
        self.prefixes[prefix] += 1
        return True
