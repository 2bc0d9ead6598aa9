"""Prompts from files and datasets: every usual form, multi-turn kept, bad rows counted and placed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from hf_eagle3.data.sources import Prompt, read_prompts
from hf_eagle3.data.tally import Tally

TALK = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"}, {"role": "user", "content": "Two?"},
]  # fmt: skip
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}, {"from": "human", "value": "Bye"}]
FORMS: list[tuple[Any, tuple[str, ...], str | None]] = [
    ({"messages": TALK}, ("One?", "Two?"), "Be brief."),
    ({"messages": TALK, "prompt": "One?", "system": "Be long."}, ("One?", "Two?"), "Be brief."),
    ({"conversations": SHARED}, ("Hi", "Bye"), None),
    ({"conversations": SHARED, "system": "Be kind."}, ("Hi", "Bye"), "Be kind."),
    ({"conversations": TALK}, ("One?", "Two?"), "Be brief."),
    ({"conversation": TALK, "language": "English"}, ("One?", "Two?"), "Be brief."),
    ({"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Yo"]}}, ("Hi",), None),
    ({"messages": json.dumps(TALK)}, ("One?", "Two?"), "Be brief."),
    ({"prompt": TALK[:2]}, ("One?",), "Be brief."),
    ({"messages": [{"role": "User", "content": [{"type": "text", "text": "See?"}]}]}, ("See?",), None),
    ({"messages": [*TALK, {"role": "tool", "content": None}]}, ("One?", "Two?"), "Be brief."),
    ({"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}, ("Translate.\n\nGuten Tag",), None),
    ({"instruction": "Name a bird.", "input": "", "output": "A crow"}, ("Name a bird.",), None),
    ({"instruction": "Name a bird.", "input": None}, ("Name a bird.",), None),
    ({"turns": ["First", "Second"]}, ("First", "Second"), None),
    ({"prompt": " Why? "}, ("Why?",), None),
    ({"system_prompt": "Be wise.", "question": "How?", "response": "So."}, ("How?",), "Be wise."),
    ({"prompt": None, "text": "So?"}, ("So?",), None),
    ("plain", ("plain",), None),
]
DEEP = "[" * 100_000 + "]" * 100_000
LONG_NUMBER = '{"id": 1' + "0" * 5000 + ', "prompt": "one"}'  # longer than Python reads as int
BAD: list[tuple[Any, str]] = [
    ("{broken", "broken JSON"), ([1], "no JSON object"), (7, "no JSON object"),
    (DEEP, "JSON nested too deep"), ({"prompt": 10**3000}, "a turn that is no text"),
    ({"messages": []}, "no user turn"), ({"messages": TALK[:1]}, "no user turn"), ({"prompt": " "}, "no user turn"),
    ({"other": 1}, "an unknown form"), ({"prompt": 12}, "a turn that is no text"),
    ({"turns": ["one", 2]}, "a turn that is no text"), ({"turns": "one"}, "an unknown form"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a turn that is no text"),
    ({"messages": ["hi"]}, "`messages` of another form"),
    ({"conversations": [None]}, "`conversations` of another form"),
]  # fmt: skip


def write(path: Path, rows: list[Any], raw: bool = False) -> str:
    lines = (row if raw or row in ("{broken", DEEP) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def turns(source: Path | str, **given: Any) -> list[tuple[str, ...]]:
    return [prompt.turns for prompt in read_prompts(str(source), **given)]


@pytest.mark.parametrize(("row", "asked", "system"), FORMS)
def test_every_form(tmp_path: Path, row: Any, asked: tuple[str, ...], system: str | None) -> None:
    assert list(read_prompts(write(tmp_path / "a.jsonl", [row]))) == [Prompt(asked, system, "a.jsonl:1")]


@pytest.mark.parametrize(("row", "problem"), BAD)
def test_every_bad_row(tmp_path: Path, row: Any, problem: str) -> None:
    tally = Tally()
    source = write(tmp_path / "x.jsonl", [{"prompt": "good"}, row, row])
    assert turns(source, tally=tally) == [("good",)]
    assert tally.rows() == [("sources", 1, {problem: 2}, {f"{problem}: first at x.jsonl:2": 1})]


def test_order_and_places(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", ["first", "", "second "], raw=True)
    write(tmp_path / "a.jsonl", [row for row, _, _ in FORMS])
    (tmp_path / "README.md").write_text("no prompt")
    (tmp_path / ".hidden.jsonl").write_text("no prompt")
    found = list(read_prompts(str(tmp_path)))
    expected = [f"a.jsonl:{n}" for n in range(1, len(FORMS) + 1)] + ["b.txt:1", "b.txt:3"]
    assert [prompt.source for prompt in found] == expected
    assert found[-1].turns == ("second",)


def test_reading_streams(tmp_path: Path) -> None:
    """A prompt is there before the rest of its file is read: here the rest cannot be."""
    tally = Tally()
    prompts = read_prompts(write(tmp_path / "a.jsonl", [{"prompt": "one"}] + ["{broken"] * 9), tally=tally)
    assert next(prompts).turns == ("one",)
    assert tally.rows() == [("sources", 1, {}, {})]


@given(st.lists(st.text().filter(str.strip), min_size=1, max_size=4), st.booleans())
def test_any_text_comes_through(tmp_path_factory: pytest.TempPathFactory, said: list[str], escaped: bool) -> None:
    """Signs that Python takes for line ends, such as U+2028, stand in JSON as they are."""
    file = tmp_path_factory.mktemp("any") / "a.jsonl"
    rows = [{"turns": said}, {"prompt": said[0]}]
    file.write_text("".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows), encoding="utf-8")
    stripped = tuple(turn.strip() for turn in said)
    assert turns(file) == [stripped, stripped[:1]]


def test_other_encodings_are_placed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffgood\n".encode() + "süß\n".encode("latin-1") + "süß\r\n".encode())
    tally = Tally()
    assert turns(tmp_path / "a.txt", tally=tally) == [("good",), ("süß",)]
    assert tally.rows()[0][2:] == ({"not UTF-8": 1}, {"not UTF-8: first at a.txt:2": 1})


def test_a_useless_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no prompt in its 1 rows \(an unknown form \(x.jsonl:1\)\).*`messages`"):
        turns(write(tmp_path / "x.jsonl", [{"other": 1}]))
    write(tmp_path / "a.jsonl", [{"prompt": "good"}])
    with pytest.raises(ValueError, match=r"x.jsonl holds no prompt"):  # not hidden by the good file beside it
        turns(tmp_path)
    with pytest.raises(ValueError, match="it is empty"):
        turns(write(tmp_path / "y.jsonl", []))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path / "z.jsonl", tmp_path / "nowhere"):
        with pytest.raises(OSError, match="There is no file"):
            turns(source)
    with pytest.raises(OSError, match=r"no files in .* that end in \.jsonl"):
        turns(tmp_path)
    with pytest.raises(ValueError, match="empty name"):
        turns("")


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_numbers_of_any_length_and_depths_of_any_kind(tmp_path: Path, suffix: str) -> None:
    source, tally = write(tmp_path / f"a{suffix}", [LONG_NUMBER, DEEP, '{"prompt": "two"}'], raw=True), Tally()
    assert turns(source, tally=tally) == [("one",), ("two",)]
    assert tally.rows()[0][2] == {"JSON nested too deep": 1}
    (tmp_path / "b.json").write_text(DEEP)
    with pytest.raises(ValueError, match=r"no prompt in its 1 rows \(JSON nested too deep \(b.json:1\)\)"):
        turns(tmp_path / "b.json")
    said = json.dumps({"messages": "[{" + DEEP})
    assert turns(write(tmp_path / "c.jsonl", [said, '{"prompt": "two"}'], raw=True)) == [("two",)]


@pytest.mark.parametrize(
    "text",
    [
        '[{"prompt": "one"}, {"prompt": "two"}]', '{"version": 1, "data": [{"prompt": "one"}, "two"]}',
        '{"prompt": "one"}\n{"prompt": "two"}\n', '{"turns": ["one"]}\n{broken\n{"prompt": "two"}',
    ],
)  # fmt: skip
def test_json_in_its_shapes(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert turns(tmp_path / "a.json") == [("one",), ("two",)]


def test_one_conversation_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"messages": TALK}))
    assert turns(tmp_path / "a.json") == [("One?", "Two?")]


def test_parquet_and_csv(tmp_path: Path) -> None:
    Dataset.from_list([{"messages": TALK}, {"messages": TALK[:2]}]).to_parquet(tmp_path / "b.parquet")
    Dataset.from_list([{"prompt": "one"}, {"prompt": None}, {"prompt": "two"}]).to_csv(tmp_path / "c.csv")
    assert turns(tmp_path / "b.parquet") == [("One?", "Two?"), ("One?",)]
    assert turns(tmp_path / "c.csv") == [("one",), ("two",)]


@pytest.mark.parametrize(
    ("name", "content"), [("a.parquet", b"nonsense"), ("a.csv", b""), ("b.csv", b"a,b\n1,2,3,\n4")]
)
def test_broken_tables_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        turns(tmp_path / name)


def test_saved_datasets(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"messages": TALK, "input_ids": [1, 2]}])
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "several")
    rows.save_to_disk(tmp_path / "one")
    for name in ("several", "one"):
        assert turns(tmp_path / name) == [("One?", "Two?")]
    with pytest.raises(ValueError, match="it has train, validation"):
        turns(tmp_path / "several", split="test")


def test_hub_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*args: Any, **given: Any) -> Dataset:
        asked.append((args, given))
        return Dataset.from_list([{"conversations": SHARED}, {"conversations": []}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    tally = Tally()
    (prompt,) = read_prompts("someone/Hermes-2.5", "test", tally)
    assert prompt == Prompt(("Hi", "Bye"), None, "someone/Hermes-2.5:0")
    assert tally.rows()[0][3] == {"no user turn: first at someone/Hermes-2.5:1": 1}
    list(read_prompts("someone/sums/main"))
    assert asked == [
        (("someone/Hermes-2.5", None), {"split": "test"}), (("someone/sums", "main"), {"split": "train"})
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (datasets.exceptions.DatasetNotFoundError("not there"), OSError, "neither a file .* can be had"),
        (ConnectionError("no net"), OSError, r"can be had \(no net\)"),
        (ValueError('Unknown split "x".'), ValueError, "--split"),
        (RuntimeError("scripts are not run"), ValueError, "scripts are not run"),
    ],
)
def test_hub_datasets_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], told: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(kind, match=told):
        turns("someone/something")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"hf-eagle3\[train\]"):
        turns("someone/something")
    assert turns(write(tmp_path / "a.jsonl", [{"prompt": "one"}])) == [("one",)]  # which needs none
