"""The pieces of an answer put together are the answer, whatever its tokens cut through."""

from __future__ import annotations

from typing import Any

import pytest
from spelling import Spelling

from hf_eagle3 import embedded

TEXT = "A list:\n\n1. naïve café 🦅🏔️\n2. 日本語 {{x}} ${y} <b>`z`</b>\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded.converted_target())


def test_pieces_make_the_text_however_they_come(tokenizer: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    at_once = Spelling(tokenizer).spell(ids)
    assert "".join(at_once) == TEXT
    assert len(at_once) == len(ids)
    assert "" in at_once, "no character of this text takes several tokens, so nothing was tried"
    growing = Spelling(tokenizer)
    for end in range(len(ids) + 1):
        assert growing.spell(ids[:end]) == at_once[:end]


def test_marks_are_named_and_do_not_disturb_what_follows(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    ids = [*tokenizer(" one")["input_ids"], end, *tokenizer(" two")["input_ids"]]
    assert Spelling(tokenizer).spell(ids) == [" one", tokenizer.eos_token, " two"]
