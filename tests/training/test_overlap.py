"""Evaluation questions that no training text may share a passage with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_eagle3.data.overlap import Overlap, find_overlaps

QUESTION = "A shop sells 12 red pens for 3 dollars and 7 blue pens for 2 dollars each"
WORDS = st.lists(st.sampled_from([f"w{i}" for i in range(40)]), min_size=1, max_size=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "maths.jsonl").write_text(json.dumps({"turns": [QUESTION, "And then what?"]}) + "\n")
    (tmp_path / "short.txt").write_text("\nWho wrote Faust?\n")
    (tmp_path / "README.md").write_text("Not a question.\n")
    return tmp_path


def test_a_passage_is_found_in_other_clothes(folder: Path) -> None:
    overlap = Overlap.from_questions([folder])
    assert overlap.hits == {"maths.jsonl": 0, "short.txt": 0}
    assert overlap.hit("Today a SHOP sells 12 red\npens, for 3 dollars: how many?") == "maths.jsonl"
    assert overlap.hit("A shop sells 12 red pens for 4 dollars") is None  # seven words
    assert overlap.hit("") is None
    assert overlap.hits == {"maths.jsonl": 1, "short.txt": 0}


def test_short_questions_count_as_whole_turns(folder: Path) -> None:
    """Within other texts they are no sign of anything: "Why?" stands in every second one."""
    overlap = Overlap.from_questions([folder])
    assert overlap.hit("who WROTE 'Faust'?!") == "short.txt"
    assert overlap.hit("And then: what?") == "maths.jsonl"  # a second turn
    assert overlap.hit("Tell me, who wrote 'Faust', and when?") is None
    assert overlap.hit("who wrote") is None
    assert overlap.hit("Who wrote Faust?", turn=False) is None
    overlap.add("Why?", "why.txt")
    overlap.add("?!", "signs.txt")
    assert overlap.hit("Explain why the sky is blue.") is None
    assert overlap.hit("...") is None
    assert overlap.hit("why") == "why.txt"
    assert overlap.hits == {"maths.jsonl": 1, "short.txt": 1, "why.txt": 1, "signs.txt": 0}


def test_scripts_without_spaces() -> None:
    overlap = Overlap()
    overlap.add("请用简单的语言解释蒸汽机的工作原理。", "zh.txt")
    assert overlap.hit("老师说：简单的语言，解释蒸汽机") == "zh.txt"
    assert overlap.hit("请用简单的英语说") is None


def test_a_dataset_is_shown_to_share_nothing(folder: Path) -> None:
    overlap = Overlap.from_questions([folder / "maths.jsonl"])
    texts = ["nothing", f"Solve: {QUESTION}.", "who wrote faust"]
    assert find_overlaps(texts, overlap) == [(1, "maths.jsonl")]
    assert find_overlaps(texts[::2], overlap) == []


@pytest.mark.parametrize(
    "row",
    [
        {"turns": [QUESTION]}, {"question": QUESTION}, {"prompt": QUESTION}, {"text": QUESTION},
        {"instruction": QUESTION}, {"turns": None, "messages": [{"role": "user", "content": QUESTION}]},
    ],
)  # fmt: skip
def test_every_form_of_question(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "q.jsonl").write_text("\ufeff" + json.dumps(row), encoding="utf-8")
    assert Overlap.from_questions([tmp_path]).hit(QUESTION) == "q.jsonl"


@given(WORDS, WORDS, st.integers(1, 10))
def test_exactly_shared_passages_are_hits(question: list[str], text: list[str], n: int) -> None:
    overlap = Overlap(n)
    overlap.add(" ".join(question), "q")
    grams = {tuple(question[i : i + n]) for i in range(len(question) - n + 1)}
    shared = any(tuple(text[i : i + n]) in grams for i in range(len(text) - n + 1))
    assert (overlap.hit(" ".join(text), turn=False) == "q") == shared
    assert (overlap.hit(" ".join(text)) == "q") == (shared or text == question)
    assert overlap.hit(" ".join(question)) == "q"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "Line 1 of .*q.jsonl is not JSON"), ('{"other": 1}', "Line 1 of .*q.jsonl holds no question"),
        ('{"turns": "text"}', "holds no question"), ("[1]", "holds no question"),
        ('{"messages": ["hi"]}', "holds no question"), ("", "holds no question to stay clear of"),
        ("[" * 100_000, "Line 1 of .*nested too deep"), ('{"turns": [1' + "0" * 5000 + "]}", "holds no question"),
    ],
)  # fmt: skip
def test_unreadable_questions_are_refused(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "q.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=told):
        Overlap.from_questions([tmp_path])


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no question files"):
        Overlap.from_questions([tmp_path / "nowhere"])
    (tmp_path / "q.bin").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"are read from \.jsonl and \.txt"):
        Overlap.from_questions([tmp_path / "q.bin"])
    (tmp_path / "q.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        Overlap.from_questions([tmp_path / "q.txt"])
    with pytest.raises(ValueError, match="at least 1"):
        Overlap(0)
    with pytest.raises(ValueError, match="empty name"):
        Overlap.from_questions([""])
