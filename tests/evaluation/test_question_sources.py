"""Questions from several places: files, folders, data sets in a folder or, but for the reading, on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_eagle3.evaluation.question_sources import KNOWN, gather_questions


def write(folder: Path, **files: list[str]) -> str:
    folder.mkdir(exist_ok=True)
    for name, texts in files.items():
        lines = [json.dumps({"question_id": n, "turns": [text]}) for n, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder)


@pytest.fixture
def data_set(tmp_path: Path) -> str:
    """A folder as the Hub has them: a parquet file for each split."""
    folder = tmp_path / "sums"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"question": f"{split} {n}?", "answer": str(n), "hint": f"hint {n}"} for n in range(4)]
        Dataset.from_list(rows).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return str(folder)


def test_several_sources(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", easy=["a", "b", "c"]), write(tmp_path / "two", hard=["d"], odd=["e"])
    asked = gather_questions([f"{two}/hard.jsonl", one], limit=2)
    assert {name: [question.text for question in own] for name, own in asked.items()} == {
        "hard": ["d"], "easy": ["a", "b"],
    }  # fmt: skip
    assert list(gather_questions([two], files=["odd"])) == ["odd"]


def test_one_name_for_two_files_is_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", easy=["a"]), write(tmp_path / "two", easy=["b"])
    with pytest.raises(ValueError, match="Two of the sources have questions called easy"):
        gather_questions([one, two])


def test_a_file_without_questions_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hard holds no question"):
        gather_questions([write(tmp_path / "one", easy=["a"], hard=[])])


def test_files_are_chosen_from_folders_only(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", easy=["a"])
    with pytest.raises(ValueError, match=r"only a folder of \.jsonl files"):
        gather_questions([f"{folder}/easy.jsonl"], files=["easy"])


def test_a_folder_laid_out_like_a_data_set(data_set: str) -> None:
    asked = gather_questions([data_set], limit=3)
    assert [(question.file, question.name, question.text) for question in asked["sums"]] == [
        ("sums", "1", "test 0?"), ("sums", "2", "test 1?"), ("sums", "3", "test 2?"),
    ]  # fmt: skip
    assert len(gather_questions([data_set])["sums"]) == 4
    chosen = gather_questions([data_set], limit=1, split="train", column="hint")
    assert chosen["sums"][0].text == "hint 0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, r"The split dev of .*sums cannot be read .*Available splits.*--questions-split\.$"),
        ({"column": "essay"}, r"no question in essay; its columns are question, answer, hint.*--questions-column\.$"),
    ],
)
def test_split_and_column_that_are_not_there_are_named(data_set: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        gather_questions([data_set], **options)
    assert "\n" not in str(told.value)


def test_a_configuration_that_is_needed_is_told_in_one_line(data_set: str) -> None:
    configs = "".join(f"- config_name: {name}\n  data_files: data/*\n" for name in ("a", "b"))
    Path(data_set, "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Config name is missing.*\['a', 'b'\]") as told:
        gather_questions([data_set])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("source", "config", "split", "row", "text"),
    [
        ("openai/gsm8k", "main", "test", {"question": "How many?", "answer": "7"}, "How many?"),
        ("openai/gsm8k/socratic:train", "socratic", "train", {"question": "How many?"}, "How many?"),
        ("tatsu-lab/alpaca", None, "train", {"instruction": "Add.", "input": "1, 2", "text": "x"}, "Add.\n\n1, 2"),
        ("tatsu-lab/alpaca", None, "train", {"instruction": "Sing.", "input": "", "text": "x"}, "Sing."),
        ("HuggingFaceH4/mt_bench_prompts", None, "train", {"prompt": ["Why?", "And now?"]}, "Why?"),
        ("abisee/cnn_dailymail", "3.0.0", "test", {"article": "A {dog}."}, "Summarize: A {dog}."),
        ("someone/questions", None, "test", {"id": 3, "question": {"text": "How many?"}}, "How many?"),
    ],
)
def test_data_sets_by_name(
    monkeypatch: pytest.MonkeyPatch, source: str, config: str | None, split: str, row: dict[str, Any], text: str
) -> None:
    wanted = []

    def hub(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        wanted.append((name, config, split, streaming))
        return [row] * 5

    monkeypatch.setattr("datasets.load_dataset", hub)
    asked = gather_questions([source], limit=3)
    assert [question.text for question in asked[source]] == [text] * 3
    assert wanted == [("/".join(source.split(":")[0].split("/")[:2]), config, split, True)]


def test_what_is_known_can_be_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    rows = [{"article": "A", "x": "B"}]
    monkeypatch.setattr("datasets.load_dataset", lambda *given, **named: wanted.append((given, named)) or rows)
    (question,) = gather_questions(["abisee/cnn_dailymail"], split="train", column="x")["abisee/cnn_dailymail"]
    assert question.text == "B"
    assert wanted == [(("abisee/cnn_dailymail", "3.0.0"), {"split": "train", "streaming": True})]
    assert all(name.count("/") == 1 for name in KNOWN)


def test_what_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"neither a folder of \.jsonl files nor a data set") as told:
        gather_questions(["someone/nothing-of-the-kind"])
    assert "\n" not in str(told.value)
    with pytest.raises(OSError, match="No question files in nowhere"):
        gather_questions(["nowhere"])
    (tmp_path / "questions.csv").write_text("question\nHow many?\n")
    with pytest.raises(ValueError, match=r"questions\.csv is no \.jsonl file"):
        gather_questions([str(tmp_path / "questions.csv")])
