"""What may become training text: one verdict for each text, and every verdict counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from .duplicates import Duplicates
from .overlap import Overlap
from .personal import PersonalData
from .tally import Tally


@dataclass(frozen=True)
class FilterRules:
    """Thresholds.

    Args:
        shortest, longest: of a prompt, all its turns together, in characters.
        repetition: the share of a text's word 4-grams that may be repeats of earlier ones.
        max_foreign: the share of a prompt's characters that may be other than ASCII; None takes every script.
        longest_word: in characters; a longer one, in a script that separates words, is gibberish.
        near_duplicates: see [`Duplicates`]; 0 leaves them in.
        per_prefix: see [`Duplicates`].
        personal: whether texts with personal data are dropped. They are never redacted: a placeholder is nothing that
            the target would write.
    """

    shortest: int = 8
    longest: int = 8000
    repetition: float = 0.3
    max_foreign: float | None = None
    longest_word: int = 60
    near_duplicates: float = 0.8
    per_prefix: int = 4
    personal: bool = True


class Gate:
    """Lets prompts and answers pass, or not; `tally` hears of each under "prompts" and "answers".

    Args:
        exclude: evaluation questions that no text may share an n-gram with.
    """

    def __init__(self, rules: FilterRules, tally: Tally, exclude: Overlap | None = None) -> None:
        self.rules, self.tally, self.exclude = rules, tally, exclude
        self._personal = PersonalData() if rules.personal else None
        self._duplicates = Duplicates(rules.near_duplicates, rules.per_prefix)

    def prompt(self, turns: Sequence[str], written: str | None = None) -> bool:
        """Whether these user turns may be asked. `written` is what the target wrote after a given opening."""
        text = "\n".join(turns)
        reason = self._unfit(text) or self._unwanted(text, "prompts") or self._duplicates.seen(text, written)
        return self._verdict("prompts", reason)

    def answer(self, text: str, ids: Sequence[int], keep_loop: bool = False) -> bool:
        """Whether this answer, `ids` of the target, may be trained on; a loop only if it is wanted."""
        looping = "loop" if loops(ids) and not keep_loop else None
        return self._verdict("answers", looping or self._unwanted(text, "answers"))

    def remember(self, turns: Sequence[str]) -> None:
        """A prompt of an earlier run: known from now on, and counted nowhere."""
        self._duplicates.seen("\n".join(turns))

    def _verdict(self, step: str, reason: str | None) -> bool:
        if reason is None:
            self.tally.kept(step)
        else:
            self.tally.dropped(step, reason)
        return reason is None

    def _unfit(self, text: str) -> str | None:
        rules = self.rules
        if not rules.shortest <= len(text.strip()):
            return "too short"
        if len(text) > rules.longest:
            return "too long"
        if any(unicodedata.category(sign) in ("Cc", "Cn", "Co") and sign not in "\n\t\r" for sign in text):
            return "control characters"
        if "\ufffd" in text:
            return "broken characters"
        if rules.max_foreign is not None and sum(not c.isascii() for c in text) > rules.max_foreign * len(text):
            return "foreign characters"
        words = text.split()
        if any(len(word) > rules.longest_word and word.isascii() and word.isalpha() for word in words):
            return "gibberish"
        if max(text.count(sign) for sign in set(text)) > 0.5 * len(text):
            return "gibberish"
        return "repetition" if repetition(words) > rules.repetition else None

    def _unwanted(self, text: str, step: str) -> str | None:
        kinds = self._personal.kinds(text) if self._personal is not None else []
        for kind in kinds:
            self.tally.noted(step, f"with {kind}")
        if kinds:
            return "personal data"
        return "of an evaluation file" if self.exclude is not None and self.exclude.hit(text) else None


def repetition(items: Sequence[object], n: int = 4) -> float:
    """Share of the n-grams of `items` (token ids or words) that already occurred; 0.0 when it is shorter than `n`."""
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def loops(ids: Sequence[int], window: int = 64, threshold: float = 0.6) -> bool:
    """Whether the last `window` tokens mostly repeat one another, as a small model caught in a loop does."""
    return len(ids) >= window and repetition(ids[-window:]) > threshold
