"""The words of a text, in any script: what repetition, near duplicates and shared passages are measured in."""

from __future__ import annotations

import unicodedata

# `transformers` brings it along; `re` knows neither scripts nor the marks that belong to a letter.
import regex

# Scripts that put no space between words: each of their characters counts as a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}_]--[{_UNSPACED}]]+"
_WORDS = regex.compile(_WORD, regex.VERSION1)
_TERMS = regex.compile(rf"{_WORD}|[-+*/=<>^%&|~]", regex.VERSION1)


def words_of(text: str) -> list[str]:
    """The words of `text` without case, punctuation and white space; one for each character of Chinese, Thai, ..."""
    return _WORDS.findall(_plain(text))


def terms_of(text: str) -> list[str]:
    """Words and operators: 3 + 2 is something else than 3 - 2."""
    return _TERMS.findall(_plain(text))


def _plain(text: str) -> str:
    """One spelling for what looks alike: composed letters, full-width digits, small letters."""
    return unicodedata.normalize("NFKC", text).casefold()
