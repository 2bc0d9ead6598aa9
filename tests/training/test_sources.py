"""Prompts from files: every usual form, multi-turn kept, bad rows counted and placed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_eagle3.data.sources import Prompt, read_prompts
from hf_eagle3.data.tally import Tally

FORMS: list[tuple[dict[str, Any], tuple[str, ...], str | None]] = [
    (
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
                      {"role": "assistant", "content": "1"}, {"role": "user", "content": "Two?"}]},
        ("One?", "Two?"), "Be brief.",
    ),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}, ("Hi",), None),
    ({"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}, ("Translate.\n\nGuten Tag",), None),
    ({"instruction": "Name a bird.", "input": "", "output": "A crow"}, ("Name a bird.",), None),
    ({"turns": ["First", "Second"]}, ("First", "Second"), None),
    ({"prompt": " Why? "}, ("Why?",), None),
    ({"question": "How?", "answer": "So."}, ("How?",), None),
]  # fmt: skip


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("row", "turns", "system"), FORMS)
def test_every_form(tmp_path: Path, row: dict[str, Any], turns: tuple[str, ...], system: str | None) -> None:
    assert list(read_prompts(write(tmp_path / "a.jsonl", [row]))) == [Prompt(turns, system, "a.jsonl:1")]


def test_order_and_places(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", ["first", "", "second"])
    write(tmp_path / "a.jsonl", [row for row, _, _ in FORMS])
    found = list(read_prompts(str(tmp_path)))
    assert [prompt.source for prompt in found] == [f"a.jsonl:{n}" for n in range(1, 8)] + ["b.txt:1", "b.txt:3"]


def test_bad_rows_are_counted_and_placed(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [{"prompt": "good"}, "{broken", {"messages": []}, {"other": 1}, {"other": 2}])
    tally = Tally()
    assert [prompt.turns for prompt in read_prompts(source, tally=tally)] == [("good",)]
    ((step, kept, dropped, notes),) = tally.rows()
    assert (step, kept) == ("sources", 1)
    assert dropped == {"no JSON object": 1, "no user turn": 1, "an unknown form": 2}
    assert "an unknown form: first at x.jsonl:4" in notes


def test_a_useless_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no prompt in its 1 rows \(an unknown form \(x.jsonl:1\)\).*`messages`"):
        list(read_prompts(write(tmp_path / "x.jsonl", [{"other": 1}])))
    with pytest.raises(ValueError, match="it is empty"):
        list(read_prompts(write(tmp_path / "y.jsonl", [])))
    with pytest.raises(OSError, match="There is no file"):
        list(read_prompts(str(tmp_path / "z.jsonl")))


def test_json_parquet_and_csv(tmp_path: Path) -> None:
    rows = [{"prompt": "one"}, {"prompt": "two"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "b.parquet")
    Dataset.from_list(rows).to_csv(tmp_path / "c.csv")
    for name in ("a.json", "b.parquet", "c.csv"):
        assert [prompt.turns for prompt in read_prompts(str(tmp_path / name))] == [("one",), ("two",)]
