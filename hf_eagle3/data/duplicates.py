"""A register of prompts: the same one again, one that is nearly the same, and too many that begin alike."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..release import install_command
from .words import terms_of, words_of

SHINGLE = 3  # words and operators
_PERMUTATIONS, _SEED = 128, 1
_CANDIDATES = (0.1, 0.9)  # weights of false hits and misses in the index: false hits are found out below
_HIGHEST = 0.95  # threshold of the index


class Duplicates:
    """Remembers prompts and knows them again.

    Args:
        near: the Jaccard similarity of two prompts' word triples, between 0 and 1, from which they are near
            duplicates; 0 leaves them in, and so does 1, which asks for the same prompts alone. It is estimated by 128
            MinHash permutations with a fixed seed: the standard error is at most 0.05, and the same prompts in the
            same order give the same verdicts.
        per_prefix: at most so many prompts whose written part begins with the same `prefix_words` words.

    Raises:
        ValueError: if `near` is no share, or `per_prefix` lets nothing pass.
        ImportError: if near duplicates are wanted and datasketch is not installed.
    """

    def __init__(self, near: float = 0.8, per_prefix: int = 4, prefix_words: int = 5) -> None:
        if not 0 <= near <= 1:
            raise ValueError(f"Near duplicates were asked for from a similarity of {near}: give a share from 0 to 1.")
        if per_prefix < 1:
            raise ValueError(f"{per_prefix} prompts may begin alike, so that none could pass: give at least 1.")
        self.near, self.per_prefix, self.prefix_words = near, per_prefix, prefix_words
        self._texts: set[bytes] = set()
        self._prefixes: Counter[str] = Counter()
        self._sketches: list[Any] = []
        self._index = _index(near) if 0 < near < 1 else None

    def seen(self, text: str, written: str | None = None) -> str | None:
        """Why `text` is not new, None if it is; then it is remembered. `written` is what the target wrote of it."""
        exact = _digest(text)
        if exact in self._texts:
            return "duplicate"
        prefix = " ".join(words_of(written)[: self.prefix_words]) if written else ""
        if prefix and self._prefixes[prefix] >= self.per_prefix:
            return "begins like others"
        sketch = self._sketch(terms_of(text))
        if sketch is not None and self._resembles(sketch):
            return "near duplicate"
        self._texts.add(exact)
        if prefix:
            self._prefixes[prefix] += 1
        if sketch is not None and self._index is not None:
            self._index.insert(len(self._sketches), sketch)
            self._sketches.append(sketch.hashvalues.astype(np.uint32))
        return None

    def _sketch(self, terms: Sequence[str]) -> Any:
        """The MinHash of a text's triples; None for a text too short to have any."""
        if self._index is None or len(terms) < SHINGLE:
            return None
        from datasketch import MinHash

        sketch = MinHash(num_perm=_PERMUTATIONS, seed=_SEED)
        sketch.update_batch([" ".join(terms[j : j + SHINGLE]).encode() for j in range(len(terms) - SHINGLE + 1)])
        return sketch

    def _resembles(self, sketch: Any) -> bool:
        """Whether a remembered prompt is as similar: the index names candidates, all values decide."""
        values = sketch.hashvalues.astype(np.uint32)
        candidates = self._index.query(sketch) if self._index is not None else ()
        return any(np.mean(self._sketches[key] == values) >= self.near for key in candidates)


def _digest(text: str) -> bytes:
    """Of the text without case, quotes around it, its last punctuation, and differences of white space."""
    plain = " ".join(text.casefold().split()).strip("\"'“”‘’").rstrip(" .,;:!?…。！？\"'”’")
    return hashlib.sha256(plain.encode(errors="surrogatepass")).digest()


def _index(near: float) -> Any:
    try:
        from datasketch import MinHashLSH
    except ImportError as error:
        raise ImportError(
            f"Near duplicates are found by datasketch, which is not installed: {install_command('train')}, or leave "
            "them in (--near-duplicates 0)."
        ) from error
    # Higher, it has too few bands to be built; all values of a candidate are compared anyhow.
    return MinHashLSH(threshold=min(near, _HIGHEST), num_perm=_PERMUTATIONS, weights=_CANDIDATES)
