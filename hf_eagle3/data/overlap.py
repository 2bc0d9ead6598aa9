"""N-grams of evaluation questions: what a training text must not share with the files a head is measured on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

N = 8  # words


class Overlap:
    """Finds texts that share `n` words in a row with a question; of a shorter question all its words.

    Case and punctuation do not count. `hits` counts the texts found, by file.
    """

    def __init__(self, n: int = N) -> None:
        self.n = n
        self.hits: Counter[str] = Counter()
        self._grams: dict[tuple[str, ...], str] = {}
        self._lengths: set[int] = set()

    @classmethod
    def from_questions(cls, paths: Sequence[str | Path], n: int = N) -> Overlap:
        """Take in question files: .jsonl with `turns`, `messages`, `question`, `prompt` or `text`, .txt with one
        question a line, and folders of both.

        Raises:
            OSError: if a path is not there, or a folder holds no such file.
            ValueError: if a line cannot be read.
        """
        overlap = cls(n)
        for path in paths:
            for file in _files(Path(path)):
                for question in read_questions(file):
                    overlap.add(question, file.name)
        return overlap

    def add(self, question: str, file: str) -> None:
        """Take in one question of `file`."""
        words = _words(question)
        length = min(self.n, len(words))
        for gram in _grams(words, length):
            self._grams.setdefault(gram, file)
            self._lengths.add(length)

    def hit(self, text: str) -> str | None:
        """The file that `text` shares an n-gram with, counted; None if there is none."""
        words = _words(text)
        for length in self._lengths:
            for gram in _grams(words, length):
                if gram in self._grams:
                    self.hits[self._grams[gram]] += 1
                    return self._grams[gram]
        return None

    def __len__(self) -> int:
        return len(self._grams)


def find_overlaps(texts: Iterable[str], overlap: Overlap) -> list[tuple[int, str]]:
    """The number of each text that shares an n-gram with a question, and the question's file."""
    found = ((number, overlap.hit(text)) for number, text in enumerate(texts))
    return [(number, file) for number, file in found if file is not None]


def read_questions(file: Path) -> Iterator[str]:
    """The user's texts of a question file."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if file.suffix == ".txt":
            yield line
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"Line {number} of {file} is not JSON ({error.msg}): one object a line.") from error
        texts = list(_texts_of(row)) if isinstance(row, dict) else []
        if not texts:
            raise ValueError(
                f"Line {number} of {file} holds no question: `turns`, `messages`, `question`, `prompt` or `text` is "
                "needed."
            )
        yield from texts


def _texts_of(row: dict[str, Any]) -> Iterator[str]:
    for turn in row.get("turns") or ():
        yield str(turn)
    for message in row.get("messages") or ():
        if message.get("role") == "user":
            yield str(message["content"])
    for name in ("question", "prompt", "text"):
        if isinstance(row.get(name), str):
            yield row[name]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob("*") if file.suffix in (".jsonl", ".txt"))
    if not files:
        raise OSError(f"There are no question files at {path}: name a .jsonl or .txt file, or a folder of them.")
    return files


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _grams(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    if length:
        yield from zip(*(words[start:] for start in range(length)), strict=False)
