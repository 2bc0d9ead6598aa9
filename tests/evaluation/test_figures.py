"""Figures: drawn from records alone, and the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pytest

from hf_eagle3.evaluation.figures import check_drawing, draw_all


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
    assert {path.name for path in tmp_path.iterdir()} == names
    by_task = (tmp_path / "ratio-by-task-temperature-0.svg").read_text()
    assert "prompt lookup" in by_task
    assert "easy" in by_task
    assert "tokens trained on" in (tmp_path / "acceptance-by-training-tokens.svg").read_text()


def test_the_same_bytes_again_whatever_the_user_prefers(tmp_path: Path) -> None:
    first = draw_all([record(), training("a")], tmp_path / "one")
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.hashsalt": None}):
        second = draw_all([record(), training("a")], tmp_path / "two")
        assert matplotlib.rcParams["font.size"] == 20
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_lookup_is_drawn_only_where_it_was_measured(tmp_path: Path) -> None:
    rows = [{**row, "lookup_ratio": None} for row in record()["files"]]
    draw_all([{"files": rows}], tmp_path)
    assert "prompt lookup" not in (tmp_path / "ratio-by-task-temperature-0.svg").read_text()


def test_each_evaluation_has_files_of_its_own(tmp_path: Path) -> None:
    three = [record(), record(), record(label="some/other head")]
    names = {path.name for path in draw_all(three, tmp_path)}
    assert len(names) == 12
    for prefix in ("mine-", "mine-2-", "some-other-head-"):
        assert f"{prefix}ratio-by-task-temperature-1.svg" in names


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither files of questions, nor trees"):
        draw_all([{"label": "x", "history": []}], tmp_path)


def test_a_figure_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path, *_) = draw_all([training("a")], tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("hf_eagle3.whole_files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        draw_all([training("b")], tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"hf-eagle3\[eval\]"):
        check_drawing()
