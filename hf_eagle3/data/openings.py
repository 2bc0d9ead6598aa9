"""User turns to begin or to ask: what the target is given so that it asks many different things of itself.

The texts and the words in them lie beside this module, in openings.yaml and words.yaml, and are our own; none comes
from a benchmark. Here they are read, drawn from, and their slots filled.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_SLOT = re.compile(r"\{(a )?([A-Za-z_]+)(\d?)\}|\{(\d+)-(\d+)\}")
_VOWEL = re.compile(r"(?!uni|uti|use|eu|one)[aeiou]|hono|hones|hour", re.IGNORECASE)  # begins with the sound of one
_DEPTH = 8  # of slots within slots
_REDRAWS = 50  # for a word that is not yet in the text

_FILES = tuple(Path(__file__).with_name(name) for name in ("openings.yaml", "words.yaml"))


@dataclass(frozen=True)
class Kind:
    """A kind of user turn, drawn by `weight`.

    The target finishes an opening in at most `max_new_tokens`, while the `hint` stands in the system block; it is
    stripped before the answer. Of the turns, `whole_share` are complete texts, `lead_share` of which have something
    of LEADS before them. `follow_ups` are texts of second turns.
    """

    name: str
    weight: float
    hint: str
    openings: tuple[str, ...]
    whole: tuple[str, ...]
    whole_share: float
    lead_share: float
    max_new_tokens: int
    follow_ups: tuple[str, ...]

    @property
    def uses_passage(self) -> bool:
        return any("{passage}" in text for text in (*self.openings, *self.whole))

    def draw(self, rng: random.Random) -> tuple[str, bool]:
        """A text whose slots are filled but for `{passage}`, and whether it is a complete turn."""
        if rng.random() >= self.whole_share:
            return fill(rng.choice(self.openings), rng), False
        text = fill(rng.choice(self.whole), rng)
        if rng.random() < self.lead_share and text[0].isupper():  # code is best left alone
            text = f"{fill(rng.choice(LEADS), rng)} {text}"
        return text, True


def _lines(block: str) -> tuple[str, ...]:
    return tuple(line.replace("\\n", "\n") for line in block.splitlines() if line.strip())


def _read_words(told: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    words = {key: tuple(re.split(r",\s+", " ".join(block.split()))) for key, block in told["words"].items()}
    return words | {key: _lines(block) for key, block in told["phrases"].items()}


def _read_kind(name: str, told: dict[str, str], follow_ups: dict[str, str]) -> Kind:
    lists = (_lines(follow_ups[group]) for group in told["follow_ups"].split())
    return Kind(
        name, float(told["weight"]), told["hint"], _lines(told.get("openings", "")), _lines(told.get("whole", "")),
        float(told["whole_share"]), float(told["lead_share"]), int(told["tokens"]),
        tuple(text for texts in lists for text in texts),
    )  # fmt: skip


def _read() -> tuple[tuple[Kind, ...], tuple[str, ...], tuple[str, ...], dict[str, tuple[str, ...]], str]:
    texts = [file.read_text(encoding="utf-8") for file in _FILES]
    told, words = (yaml.load(text, yaml.BaseLoader) for text in texts)  # which takes every scalar for a string
    kinds = tuple(_read_kind(name, kind, told["follow_ups"]) for name, kind in told["kinds"].items())
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    return kinds, _lines(told["leads"]), _lines(told["system_prompts"]), _read_words(words), digest


# DIGEST tells one state of the texts from another: what is drawn by a seed follows from them as well.
KINDS, LEADS, SYSTEM_PROMPTS, WORDS, DIGEST = _read()


def pick_kind(rng: random.Random, passages: bool) -> Kind:
    """A kind by weight; the ones that need a passage only when there is one."""
    kinds = [kind for kind in KINDS if passages or not kind.uses_passage]
    return rng.choices(kinds, [kind.weight for kind in kinds])[0]


def fill(text: str, rng: random.Random) -> str:
    """Fill every slot of a text, and those of what they are filled with; `{passage}` stays.

    `{word}` is an entry of that list; `{word1}` is the same one wherever it stands, another than `{word2}`; `{Word}`
    begins with a capital, `{a word}` has its article; `{2-9}` is a number of this range.

    Raises:
        KeyError: if there is no such list.
    """
    known: dict[str, str] = {}

    def filled(text: str, depth: int) -> str:
        if depth > _DEPTH:
            raise RecursionError(f"The slots of {text!r} lead back to themselves: change words.yaml.")
        return _SLOT.sub(lambda slot: value(slot, depth), text)

    def value(slot: re.Match[str], depth: int) -> str:
        article, word, number, low, high = slot.groups()
        if low is not None:
            return str(rng.randint(int(low), int(high)))
        if word == "passage":
            return slot.group(0)
        key = word.lower()
        found = named(key, number, depth) if number else drawn(key, depth)
        if article:
            found = ("an " if _VOWEL.match(found) else "a ") + found
        return found[:1].upper() + found[1:] if word[0].isupper() else found

    def drawn(key: str, depth: int) -> str:
        return filled(rng.choice(WORDS[key]), depth + 1)

    def named(key: str, number: str, depth: int) -> str:
        if key + number not in known:
            others = {word for name, word in known.items() if name.rstrip("0123456789") == key}
            found = drawn(key, depth)
            for _ in range(_REDRAWS):
                if found not in others:
                    break
                found = drawn(key, depth)
            known[key + number] = found
        return known[key + number]

    return filled(text, 0)
