"""Records: how they are read, and the numbers that figures are drawn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_eagle3.evaluation.records import (
    Series,
    head_name,
    position_series,
    read_records,
    trained_tokens,
    training_series,
)


def evaluated(label: str, tokens: int | None, length: float, temperature: float = 0.0) -> dict[str, Any]:
    row = {"temperature": temperature, "acceptance_rates": [0.5]}
    rows = [{**row, "name": "easy", "acceptance_length": 9.0}, {**row, "name": "all", "acceptance_length": length}]
    return {"label": label, "training_tokens": tokens, "files": rows}


def measured(*points: tuple[int, float], tokens: bool = True) -> list[dict[str, Any]]:
    seen = [{"num_input_tokens_seen": 1000 * step} if tokens else {} for step, _ in points]
    return [
        {"step": step, "eval_acceptance_length": length, **more}
        for (step, length), more in zip(points, seen, strict=True)
    ]


def test_files_and_folders(tmp_path: Path) -> None:
    head, checkpoint = tmp_path / "my-head", tmp_path / "my-head" / "checkpoint-8"
    checkpoint.mkdir(parents=True)
    (head / "training.json").write_text(json.dumps({"history": []}))
    history = measured((8, 1.5))
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": 8}))
    (tmp_path / "speed.json").write_text(json.dumps(evaluated("named", None, 2.0)))
    (tmp_path / "other.json").write_text(json.dumps({"files": []}))
    paths = [head, checkpoint, checkpoint / "trainer_state.json", tmp_path / "speed.json", tmp_path / "other.json"]
    records = read_records(paths)
    assert [record["label"] for record in records] == ["my-head", "my-head", "my-head", "named", "other"]
    assert records[1]["history"] == records[2]["history"] == history


@pytest.mark.parametrize("contents", ["{", "[]", json.dumps({"files": [{"name": "easy", "ratio": 1.2}]})])
def test_what_is_no_record_is_refused(tmp_path: Path, contents: str) -> None:
    (tmp_path / "x.json").write_text(contents)
    with pytest.raises(ValueError, match="hf-eagle3 eval"):
        read_records([tmp_path / "x.json"])


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"training\.json"):
        read_records([tmp_path])


def test_positions_that_hardly_a_verification_tells_of_are_left_out() -> None:
    rows = [
        {"name": "easy", "acceptance_rates": [0.7, 0.5, 1.0], "acceptance_counts": [[70, 100], [10, 20], [1, 1]]},
        {"name": "hard", "acceptance_rates": [0.5], "acceptance_counts": [[1, 2]]},
        {"name": "all", "acceptance_rates": [0.6, 0.4]},
    ]
    assert position_series(rows) == [Series("easy", [0, 1], [0.7, 0.5]), Series("all", [0, 1], [0.6, 0.4])]


def test_runs_against_what_they_counted() -> None:
    records = [
        {"label": "a", "history": [{"loss": 3.0, "step": 1}, *measured((8, 1.75), (4, 1.5))]},
        {"label": "b", "history": measured((4, 1.25), tokens=False)},
        {"label": "c", "history": [{"loss": 3.0, "step": 1}]},
    ]
    assert training_series(records, "tokens") == [Series("a, held-out prompts", [4000, 8000], [1.5, 1.75])]
    assert training_series(records, "steps") == [Series("b, held-out prompts", [4], [1.25])]


def test_evaluations_of_one_label_make_a_line() -> None:
    records = [
        evaluated("a", 9000, 2.5), evaluated("a", 3000, 2.0), evaluated("b", 5000, 1.5, 1.0),
        evaluated("c", None, 3.0),
    ]  # fmt: skip
    assert training_series(records, "tokens") == [
        Series("a, questions at temperature 0", [3000, 9000], [2.0, 2.5]),
        Series("b, questions at temperature 1", [5000], [1.5]),
    ]


def test_tokens_of_the_checkpoint_that_became_the_head(tmp_path: Path) -> None:
    history = measured((4, 1.5), (8, 1.75), (12, 1.7))
    (tmp_path / "training.json").write_text(json.dumps({"best_step": 8, "history": history}))
    assert trained_tokens(tmp_path) == 8000
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert trained_tokens(tmp_path / "checkpoint-12") == 12000
    assert trained_tokens("someone/head") is None


def test_what_a_head_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-head" / "checkpoint-12").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-head")
    assert head_name(".") == head_name("checkpoint-12") == "my-head"
    assert head_name("someone/head") == "someone/head"
