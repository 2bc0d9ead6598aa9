"""What `data inspect` prints: the supervised tokens, told apart with colour and without."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from hf_eagle3.data.inspect import inspect_dataset


def printed(rows: list[dict[str, Any]], tokenizer: Any, terminal: bool, **options: int) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, color_system="truecolor" if terminal else None)
    inspect_dataset(rows, tokenizer, console, **options)
    return out.getvalue()


@pytest.fixture
def chats(tokenizer: Any) -> list[dict[str, Any]]:
    ids = tokenizer("<s> user : w1 w2 </s> <s> assistant : w3 w4 </s>")["input_ids"]
    mask = [False] * 9 + [True] * 3
    return [
        {"input_ids": ids, "loss_mask": mask, "turns": 1, "source": "[bold]my.jsonl:3"},
        {"input_ids": ids, "loss_mask": [False] * 12, "turns": 1, "source": ""},
    ]


def test_marks_where_there_is_no_colour(chats: Any, tokenizer: Any) -> None:
    text = printed(chats, tokenizer, terminal=False, count=2)
    assert text.count("[[") == 1
    assert "[[w3 w4 </s>]]" in text
    assert "conversation 0 · 12 tokens · 3 supervised · 1 turns · [bold]my.jsonl:3" in text
    assert "2 conversations, 24 tokens, 3 supervised (12%)" in text


def test_colour_on_a_terminal(chats: Any, tokenizer: Any) -> None:
    text = printed(chats, tokenizer, terminal=True)
    assert "[[" not in text
    assert "\x1b[1;32mw3 w4 </s>\x1b[0m" in text


def test_a_number_that_is_not_there_is_refused(chats: Any, tokenizer: Any) -> None:
    assert "conversation 1" in printed(chats, tokenizer, terminal=False, start=1)
    with pytest.raises(ValueError, match="there are 2"):
        printed(chats, tokenizer, terminal=False, start=2)
