"""The figure of a sweep: drawn from made-up records, the same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_eagle3.evaluation.figures import draw_all
from hf_eagle3.evaluation.tree_figure import draw_trees, sweep_name


def points(*sizes: int) -> list[dict[str, Any]]:
    return [{"size": size, "cost": 1 + size / 10, "low": 1.0, "high": 2 + size / 10} for size in sizes]


def record(native: bool = True, **settings: Any) -> dict[str, Any]:
    told = {"dtype": "torch.bfloat16", "device": "cpu", "native_products": native, **settings}
    tree = {"acceptance_length": 2.1, "mean": 1.4, "ratio": 1.3, "low": 1.2, "high": 1.6, "predicted": 1.5}
    return {
        "label": "trees",
        "provenance": {"machine": {"cpu": "A CPU", "gpu": "A GPU"}, "settings": told},
        "cost": {"context": 64, "repeats": 3, "verification": points(1, 8), "first": points(1), "level": points(1, 4)},
        "trees": [{**tree, "shape": [9, 3, 4]}, {**tree, "shape": [1, 1, 1], "mean": 0.9, "predicted": None}],
        "chosen": [9, 3, 4],
    }


def test_curve_trees_and_choice_are_drawn(tmp_path: Path) -> None:
    path = draw_trees([record()], tmp_path / "one.svg")
    drawn = path.read_text()
    for told in ("A CPU, bfloat16: verification", "a level of the head", "9, 3, 4", "1, 1, 1", "predicted", "chosen"):
        assert told in drawn
    draw_trees([record()], tmp_path / "two.svg")
    assert path.read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_several_devices_share_the_curve(tmp_path: Path) -> None:
    records = [record(), record(native=False), record(device="cuda:0")]
    drawn = draw_trees(records, tmp_path / "all.svg").read_text()
    for name in ("A CPU, bfloat16", "A CPU, bfloat16 (emulated)", "A GPU, bfloat16"):
        assert f"{name}: verification" in drawn
        assert f"times plain generate: {name}" in drawn
    assert drawn.count("What a forward costs") == 1


def test_a_record_without_curve_or_choice_has_its_trees_drawn(tmp_path: Path) -> None:
    early = record()
    del early["cost"], early["chosen"]
    early["trees"] = [{name: value for name, value in tree.items() if name != "predicted"} for tree in early["trees"]]
    drawn = draw_trees([early], tmp_path / "early.svg").read_text()
    assert "9, 3, 4" in drawn
    for absent in ("What a forward costs", "predicted", "chosen"):
        assert absent not in drawn


def test_a_name_says_what_is_known() -> None:
    assert sweep_name(record(native=False)) == "A CPU, bfloat16 (emulated)"
    assert sweep_name({"trees": [1]}) == "a device"


def test_what_is_no_sweep_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no trees"):
        draw_trees([{"files": []}], tmp_path / "none.svg")
    assert not list(tmp_path.iterdir())


def test_figures_draws_sweeps_too(tmp_path: Path) -> None:
    (path,) = draw_all([record()], tmp_path)
    assert path.name == "trees.svg"
