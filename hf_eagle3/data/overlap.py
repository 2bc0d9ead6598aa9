"""N-grams of evaluation questions: what a training text must not share with the files a head is measured on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .words import words_of

N = 8  # words
_SUFFIXES = (".jsonl", ".txt")
_TEXTS = ("question", "prompt", "instruction", "text")


class Overlap:
    """Finds texts that share `n` words in a row with a question, and user turns that are a shorter question.

    A short question within a longer text is none: "Why?" would stand in every second one. Case, punctuation and white
    space do not count. A word is what [`words_of`] takes for one: in Chinese or Thai it
    is a character. `hits` counts the texts found, by file; every file that was read has an entry.

    Raises:
        ValueError: if `n` is below 1.
    """

    def __init__(self, n: int = N) -> None:
        if n < 1:
            raise ValueError(f"Texts were to be compared by {n} words in a row: give at least 1.")
        self.n = n
        self.hits: Counter[str] = Counter()
        self._grams: dict[tuple[str, ...], str] = {}
        self._short: dict[tuple[str, ...], str] = {}  # questions of fewer words

    @classmethod
    def from_questions(cls, paths: Sequence[str | Path], n: int = N) -> Overlap:
        """Take in question files: .jsonl with `turns`, `messages`, `question`, `prompt`, `instruction` or `text`, .txt
        with one question a line, and folders of both.

        Raises:
            OSError: if a path is not there, or a folder holds no such file.
            ValueError: if a file cannot be read as questions, or holds none.
        """
        overlap = cls(n)
        for path in paths:
            for file in _files(Path(path).expanduser()):
                empty = True
                for question in read_questions(file):
                    overlap.add(question, file.name)
                    empty = False
                if empty:
                    raise ValueError(f"{file} holds no question to stay clear of: name a file that does.")
        return overlap

    def add(self, question: str, file: str) -> None:
        """Take in one question of `file`."""
        words = words_of(question)
        self.hits.setdefault(file, 0)
        if 0 < len(words) < self.n:
            self._short.setdefault(tuple(words), file)
        for gram in _grams(words, self.n):
            self._grams.setdefault(gram, file)

    def hit(self, text: str, turn: bool = True) -> str | None:
        """The file of a question that `text` shares an n-gram with, counted; None if there is none. A user's `turn`,
        given whole, may also be a shorter question."""
        words = words_of(text)
        file = next((self._grams[gram] for gram in _grams(words, self.n) if gram in self._grams), None)
        if file is None and turn:
            file = self._short.get(tuple(words))
        if file is not None:
            self.hits[file] += 1
        return file

    def __len__(self) -> int:
        return len(self._grams) + len(self._short)


def find_overlaps(texts: Iterable[str], overlap: Overlap) -> list[tuple[int, str]]:
    """The number of each text that shares an n-gram with a question, and the question's file; counted in `hits`.

    The texts are whole conversations: short questions, which count as whole turns only, are not found in them.
    """
    found = ((number, overlap.hit(text, turn=False)) for number, text in enumerate(texts))
    return [(number, file) for number, file in found if file is not None]


def read_questions(file: Path) -> Iterator[str]:
    """The user's texts of a question file.

    Raises:
        ValueError: if a line of it is no question, or its ending is neither .jsonl nor .txt.
    """
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"{file} was given as a file of questions: they are read from {' and '.join(_SUFFIXES)}.")
    with file.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from [line] if file.suffix == ".txt" else _texts_of(line, f"Line {number} of {file}")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 ({error.reason}): save it as UTF-8.") from error


def _texts_of(line: str, place: str) -> list[str]:
    try:
        row = json.loads(line, parse_int=float)  # no number is asked for, and Python refuses to read some as int
    except (json.JSONDecodeError, RecursionError) as error:
        told = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise ValueError(f"{place} is not JSON ({told}): one object a line is needed.") from error
    texts = [text for text in _candidates(row) if isinstance(text, str) and text.strip()]
    if not texts:
        names = ", ".join(f"`{name}`" for name in ("turns", "messages", *_TEXTS))
        raise ValueError(f"{place} holds no question: one of {names} is needed.")
    return texts


def _candidates(row: Any) -> Iterator[Any]:
    """Whatever a user may have said in a row."""
    if not isinstance(row, dict):
        return
    yield from row["turns"] if isinstance(row.get("turns"), list) else ()
    for message in row["messages"] if isinstance(row.get("messages"), list) else ():
        if isinstance(message, dict) and message.get("role") == "user":
            yield message.get("content")
    for name in _TEXTS:
        yield row.get(name)


def _files(path: Path) -> list[Path]:
    if not path.parts:  # "", which would be the folder one happens to be in
        raise ValueError("An empty name was given for questions: name a .jsonl or .txt file, or a folder of them.")
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob("*") if file.suffix in _SUFFIXES)
    if not files:
        raise OSError(f"There are no question files at {path}: name a .jsonl or .txt file, or a folder of them.")
    return files


def _grams(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    yield from zip(*(words[start:] for start in range(length)), strict=False)
