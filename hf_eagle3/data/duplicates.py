"""A register of prompts: the same one again, one that is nearly the same, and too many that begin alike."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

SHINGLE = 3  # words
_PERMUTATIONS = 64


class Duplicates:
    """Remembers prompts and knows them again.

    Args:
        near: the estimated Jaccard similarity of two prompts' word triples from which they are near duplicates; 0
            leaves near duplicates in. MinHash with fixed permutations: the same prompts give the same verdicts.
        per_prefix: at most so many prompts whose written part begins with the same `prefix_words` words.
    """

    def __init__(self, near: float = 0.8, per_prefix: int = 4, prefix_words: int = 5) -> None:
        self.per_prefix, self.prefix_words = per_prefix, prefix_words
        self._texts: set[bytes] = set()
        self._prefixes: Counter[str] = Counter()
        self._index: Any = None
        if near:
            from datasketch import MinHashLSH

            self._index = MinHashLSH(threshold=near, num_perm=_PERMUTATIONS)

    def seen(self, text: str, written: str | None = None) -> str | None:
        """Why `text` is not new, None if it is; then it is remembered. `written` is what the target wrote of it."""
        words = re.findall(r"\w+", text.casefold())
        exact = hashlib.sha256(" ".join(words).encode()).digest()
        if exact in self._texts:
            return "duplicate"
        prefix = " ".join(re.findall(r"\w+", written.casefold())[: self.prefix_words]) if written else ""
        if prefix and self._prefixes[prefix] >= self.per_prefix:
            return "begins like others"
        sketch = self._sketch(words)
        if sketch is not None and self._index.query(sketch):
            return "near duplicate"
        self._texts.add(exact)
        self._prefixes[prefix] += 1
        if sketch is not None:
            self._index.insert(len(self._texts), sketch)
        return None

    def _sketch(self, words: Sequence[str]) -> Any:
        if self._index is None or len(words) < SHINGLE:
            return None
        from datasketch import MinHash

        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch([" ".join(words[j : j + SHINGLE]).encode() for j in range(len(words) - SHINGLE + 1)])
        return sketch
