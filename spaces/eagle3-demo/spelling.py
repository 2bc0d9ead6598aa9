"""The text that each token adds, so that the pieces of an answer put together are the answer.

A token is not always text: it may be half of a character, or a mark such as the end of a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"  # how a decoder writes bytes that are no whole character (yet)


class Spelling:
    """Spells tokens as they come.

    Args:
        tokenizer: of the target.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._marks = set(tokenizer.all_special_ids)
        self._ids: list[int] = []
        self._context, self._told = 0, 0  # ids before `_told` have been spelt; from `_context` on they set the scene
        self.pieces: list[str] = []

    def spell(self, ids: Sequence[int]) -> list[str]:
        """The pieces of an answer, one for each token, that begins with those of the call before.

        The bytes of a character that takes several tokens are spelt by the last of them; the others add nothing.
        """
        for token in ids[len(self.pieces) :]:
            self.pieces.append(self._next(token))
        return self.pieces

    def _next(self, token: int) -> str:
        if token in self._marks:
            self._ids, self._context, self._told = [], 0, 0
            return self._tokenizer.convert_ids_to_tokens(token)
        self._ids.append(token)
        before, now = self._decode(self._ids[self._context : self._told]), self._decode(self._ids[self._context :])
        if now.endswith(_UNFINISHED):
            return ""
        self._context, self._told = self._told, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)
