"""Figures: drawn from records alone, the same bytes each time, and holding what the records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_eagle3.evaluation.figures import draw_all, read_records


def record(**overrides: Any) -> dict[str, Any]:
    row = {"name": "easy", "ratio": 1.4, "low": 1.2, "high": 1.5, "lookup_ratio": 1.1, "temperature": 0.0}
    rows = [{**row, "acceptance_rates": [0.7, 0.5]}, {**row, "name": "all", "acceptance_rates": [0.6, 0.4, 0.3]}]
    return {"label": "mine", "files": [*rows, {**rows[0], "temperature": 1.0}], **overrides}


def training(label: str) -> dict[str, Any]:
    steps = [{"eval_acceptance_length": 1 + n / 4, "num_input_tokens_seen": 1000 * n} for n in range(1, 4)]
    return {"label": label, "history": [{"loss": 3.0}, *steps]}


def test_every_figure_the_records_have_numbers_for(tmp_path: Path) -> None:
    names = {path.name for path in draw_all([record(), training("a"), training("b")], tmp_path)}
    assert names == {
        "acceptance-by-position-temperature-0.svg", "ratio-by-task-temperature-0.svg",
        "acceptance-by-position-temperature-1.svg", "ratio-by-task-temperature-1.svg",
        "acceptance-by-training-tokens.svg",
    }  # fmt: skip
    by_task = (tmp_path / "ratio-by-task-temperature-0.svg").read_text()
    assert "prompt lookup" in by_task
    assert "easy" in by_task
    assert "tokens trained on" in (tmp_path / "acceptance-by-training-tokens.svg").read_text()


def test_the_same_bytes_again(tmp_path: Path) -> None:
    for first, second in zip(
        draw_all([record(), training("a")], tmp_path / "one"), draw_all([record(), training("a")], tmp_path / "two"),
        strict=True,
    ):  # fmt: skip
        assert first.read_bytes() == second.read_bytes()


def test_two_evaluations_have_files_of_their_own(tmp_path: Path) -> None:
    names = {path.name for path in draw_all([record(), record(label="other")], tmp_path)}
    assert len(names) == 8
    assert "other-ratio-by-task-temperature-1.svg" in names


def test_records_are_read_by_file_and_by_folder(tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "training.json").write_text(json.dumps({"history": []}))
    (tmp_path / "speed.json").write_text(json.dumps(record(label="named")))
    assert [r["label"] for r in read_records([tmp_path / "head", tmp_path / "speed.json"])] == ["head", "named"]


@pytest.mark.parametrize("contents", ["{", "[]"])
def test_what_is_no_record_is_refused(tmp_path: Path, contents: str) -> None:
    (tmp_path / "x.json").write_text(contents)
    with pytest.raises(ValueError, match="hf-eagle3 eval"):
        read_records([tmp_path / "x.json"])


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither files of questions"):
        draw_all([{"label": "x", "history": []}], tmp_path)
