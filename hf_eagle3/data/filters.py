"""What may become training text: one verdict for each text, and every verdict counted.

Language and gibberish are judged by counting signs and words, not by a model: cheap, the same in every script, and
wrong now and then. What else is wanted of a language is a threshold that is None until it is asked for.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import regex

from .duplicates import Duplicates
from .overlap import Overlap
from .personal import PersonalData
from .tally import Tally
from .words import words_of

_SPACED = regex.compile(r"[\p{Latin}\p{Cyrillic}\p{Greek}]+")  # scripts that put spaces between words
_ONE_SIGN = 0.5  # of a prompt's signs other than digits and spaces: so many of one kind are gibberish
_SHARES = ("repetition", "max_foreign", "max_non_letters", "near_duplicates")


@dataclass(frozen=True)
class FilterRules:
    """Thresholds of prompts; answers are only asked for personal data, overlap and loops.

    Args:
        shortest: of a prompt, all its turns together, in bytes of UTF-8: 8 are two words of English or three signs of
            Chinese.
        longest: of the same, in characters.
        repetition: the share of its word 4-grams that may be repeats of earlier ones.
        max_foreign: the share of its characters that may be other than ASCII; None takes every script.
        max_non_letters: the share of its characters, spaces aside, that may be no letters; None takes sums and code.
        longest_word: in letters; a longer one, in a script that separates words, is gibberish.
        near_duplicates: see [`Duplicates`]; 0 leaves them in.
        per_prefix: see [`Duplicates`].
        personal: whether texts with personal data are dropped, see [`PersonalData`]. They are never redacted: a
            placeholder is nothing that the target would write.

    Raises:
        ValueError: if a share is not between 0 and 1, or no length passes.
    """

    shortest: int = 8
    longest: int = 8000
    repetition: float = 0.3
    max_foreign: float | None = None
    max_non_letters: float | None = None
    longest_word: int = 80
    near_duplicates: float = 0.8
    per_prefix: int = 4
    personal: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _SHARES and value is not None and not 0 <= value <= 1:
                raise ValueError(f"{field.name} is {value}, and is a share: give a number from 0 to 1.")
        if not 0 <= self.shortest <= self.longest:
            raise ValueError(f"Prompts of {self.shortest} to {self.longest} are none: the longest is the larger one.")


class Gate:
    """Lets prompts and answers pass, or not; `tally` hears of each under "prompts" and "answers".

    Args:
        exclude: evaluation questions that no text may share an n-gram with, and that nobody may ask.

    Raises:
        ImportError: if the rules ask for a library that is not installed.
    """

    def __init__(self, rules: FilterRules, tally: Tally, exclude: Overlap | None = None) -> None:
        self.rules, self.tally, self.exclude = rules, tally, exclude
        self._personal = PersonalData() if rules.personal else None
        self._duplicates = Duplicates(rules.near_duplicates, rules.per_prefix)

    def prompt(self, turns: Sequence[str], written: str | None = None, may_repeat: bool = False) -> bool:
        """Whether these user turns may be asked. `written` is what the target wrote after a given opening; turns that
        `may_repeat` are no duplicates, such as "Say it in other words.", which asks for something else every time."""
        text = "\n".join(turns)
        reason = self._unfit(text) or self._personal_in(text, "prompts") or self._asked_in(turns, "prompts")
        reason = reason or (None if may_repeat else self._duplicates.seen(text, written))
        return self._verdict("prompts", reason)

    def answer(self, text: str, ids: Sequence[int], keep_loop: bool = False) -> bool:
        """Whether this answer, `ids` of the target, may be trained on; a loop only if it is wanted."""
        looping = "loop" if loops(ids) and not keep_loop else None
        reason = looping or self._personal_in(text, "answers") or self._asked_in([text], "answers")
        return self._verdict("answers", reason)

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
        broken = _broken_signs(text)
        if broken is not None:
            return broken
        if len(text.strip().encode()) < self.rules.shortest:
            return "too short"
        if len(text) > self.rules.longest:
            return "too long"
        if _exceeds(self.rules.max_foreign, sum(not sign.isascii() for sign in text), len(text)):
            return "foreign characters"
        signs = Counter("".join(text.split()))
        letters = sum(count for sign, count in signs.items() if unicodedata.category(sign)[0] in "LM")
        if _exceeds(self.rules.max_non_letters, signs.total() - letters, signs.total()):
            return "few letters"
        if any(len(word) > self.rules.longest_word for word in _SPACED.findall(text)) or _is_one_sign(signs):
            return "gibberish"
        return "repetition" if repetition(words_of(text)) > self.rules.repetition else None

    def _personal_in(self, text: str, step: str) -> str | None:
        """What was found and looked for is noted."""
        if self._personal is None:
            return None
        model = self._personal.names_by
        self.tally.noted(step, f"names looked for by {model}" if model else "names not looked for (no model)")
        kinds = self._personal.kinds(text)
        for kind in kinds:
            self.tally.noted(step, f"with {kind}")
        return "personal data" if kinds else None

    def _asked_in(self, texts: Sequence[str], step: str) -> str | None:
        """Whether one of these turns, or of these answers, is of an evaluation file, which is noted."""
        if self.exclude is None:
            return None
        turn, exclude = step == "prompts", self.exclude
        file = next(filter(None, (exclude.hit(text, turn) for text in texts)), None)
        if file is None:
            return None
        self.tally.noted(step, f"sharing words with {file}")
        return "of an evaluation file"


def repetition(items: Sequence[object], n: int = 4) -> float:
    """Share of the n-grams of `items` (token ids or words) that already occurred; 0.0 when it is shorter than `n`."""
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def loops(ids: Sequence[int], window: int = 64, threshold: float = 0.6) -> bool:
    """Whether the last `window` tokens mostly repeat one another, as a small model caught in a loop does."""
    return len(ids) >= window and repetition(ids[-window:]) > threshold


def _broken_signs(text: str) -> str | None:
    """Signs that no text has: control characters, halves of a character, and what stands for a broken one."""
    for sign in set(text):
        category = unicodedata.category(sign)
        if category == "Cc" and sign not in "\n\t\r":
            return "control characters"
        if category in ("Cs", "Co") or sign in "\ufffd\ufffe\uffff":
            return "broken characters"
    return None


def _is_one_sign(signs: Counter[str]) -> bool:
    """Whether most of a text is one sign again and again; zeros of a large number are none."""
    counts = [count for sign, count in signs.items() if not sign.isdigit()]
    return bool(counts) and max(counts) > _ONE_SIGN * signs.total()


def _exceeds(share: float | None, count: int, of: int) -> bool:
    return share is not None and count > share * of
