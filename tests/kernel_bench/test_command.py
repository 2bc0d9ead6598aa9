"""The command on the CPU, all the way: measuring, going on, showing, drawing, tuning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tree_bench import command, measurement
from tree_bench.bars import bars
from tree_bench.cases import QUICK
from tree_bench.command import main
from tree_bench.leaf import submodule
from tree_bench.ways import KERNEL, SDPA

REPOSITORY = Path(__file__).resolve().parents[2]
BRIEF = ["measure", "--dry-run", "--shapes", "tiny", "--nodes", "5", "--dtypes", "fp32", "--rounds", "2"]
WAYS = ["--ways", KERNEL, "kernel, one node", SDPA, "no mask"]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "new" / "record.json"
    assert main([*BRIEF, "--contexts", "20", "40", *WAYS, "--json", str(path)]) == 0
    return path


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_record_names_the_machine_and_the_sources(record: Path) -> None:
    machine = content(record)["machine"]
    assert machine["dry_run"] is True
    assert machine["kernel"] == "the plain torch reference"
    assert {"device", "packages", "driver", "commit", "sources_sha256", "cuda"} <= set(machine)
    assert list(content(record)["cases"]) == ["tiny 20/5 x1 fp32", "tiny 40/5 x1 fp32"]


def test_calls_are_measured_as_generate_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `no_grad`: in inference mode torch leaves the operator's autograd layer out, which costs a launch much."""
    modes: list[tuple[bool, bool]] = []
    measure = measurement.measure

    def seen(*arguments: Any) -> dict[str, Any]:
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return measure(*arguments)

    monkeypatch.setattr(command, "measure", seen)
    assert main([*BRIEF, "--contexts", "20", "--ways", KERNEL]) == 0
    assert modes == [(False, False)]


def test_measured_cases_are_not_measured_again(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    measure = measurement.measure

    def seen(case: Any, *rest: Any) -> dict[str, Any]:
        asked.append(case.key)
        return measure(case, *rest)

    monkeypatch.setattr(command, "measure", seen)
    before = content(record)["cases"]["tiny 20/5 x1 fp32"]
    assert main([*BRIEF, "--contexts", "20", "30", *WAYS, "--json", str(record)]) == 0
    assert asked == ["tiny 30/5 x1 fp32"]
    assert content(record)["cases"]["tiny 20/5 x1 fp32"] == before
    assert main([*BRIEF, "--contexts", "30", *WAYS, "eager", "--json", str(record)]) == 0
    assert asked == ["tiny 30/5 x1 fp32", "tiny 30/5 x1 fp32"]  # one way was new


def test_a_case_is_kept_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, path = measurement.measure, tmp_path / "record.json"

    def interrupted(case: Any, *rest: Any) -> dict[str, Any]:
        if case.context == 40:
            raise KeyboardInterrupt
        return measure(case, *rest)

    monkeypatch.setattr(command, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([*BRIEF, "--contexts", "20", "40", *WAYS, "--json", str(path)])
    assert list(content(path)["cases"]) == ["tiny 20/5 x1 fp32"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_other_sources_need_another_record(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    changed = content(record)
    changed["machine"]["sources_sha256"] = "0"
    other.write_text(json.dumps(changed), encoding="utf-8")
    assert main([*BRIEF, "--contexts", "20", *WAYS, "--json", str(other)]) == 1
    assert "holds figures that do not belong beside these (sources_sha256 '0', now" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: {},
        lambda whole: [],
        lambda whole: whole | {"machine": [1]},
        lambda whole: whole | {"machine": {"dry_run": True}},
        lambda whole: whole | {"cases": {"tiny": {}}},
        lambda whole: whole | {"cases": {"tiny": 1}},
        lambda whole: whole | {"cases": []},
        lambda whole: whole | {"format": 0},
    ],
)
@pytest.mark.parametrize("asked", ["show", "markdown"])
def test_what_is_no_record_is_refused(
    asked: str, change: Any, record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(change(content(record))), encoding="utf-8")
    assert main([asked, str(other)]) == 1
    assert "is no record of this benchmark" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [[*BRIEF, "--json"], ["tune", "--dry-run", "--out"]])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "record.json"):
        assert main([*asked, str(place)]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "cannot be written: name a file" in said.err


@pytest.mark.parametrize(
    "asked",
    [
        ["measure", "--rounds", "0"],
        ["tune", "--out", "t.json", "--dims", "300"],
        ["tune", "--out", "t", "--dims", "0"],
    ],
)
def test_numbers_that_cannot_be_are_refused(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(asked)
    assert "error: argument --" in capsys.readouterr().err


def test_a_dry_run_says_that_it_tells_nothing_of_speed(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(record)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("DRY RUN: nothing here tells of speed; the kernel is the plain torch reference.")
    assert "tiny 20/5 x1 fp32" in shown
    assert "is needed" not in shown  # no bars


def test_the_tables_of_a_page(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    assert main(["markdown", str(record), "--out", str(page)]) == 0
    assert main(["markdown", str(record)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text == capsys.readouterr().out
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| tiny 20/5 x1 fp32 | launch |")
    assert "- tiny 20/5 x1 fp32: kernel (mask" in text


def test_the_figure(record: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, again = tmp_path / "one.svg", tmp_path / "again.svg"
    assert main(["figure", str(record), "--out", str(one)]) == 0
    assert main(["figure", str(record), "--out", str(again)]) == 0
    drawn = one.read_text(encoding="utf-8")
    assert drawn == again.read_text(encoding="utf-8")
    assert "tiny, 5 nodes, batch 1, fp32" in drawn
    assert "DRY RUN" in drawn
    assert SDPA in drawn


def test_a_figure_of_another_kind_is_refused(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure", str(record), "--out", str(tmp_path / "f.png")]) == 1
    assert "let it end in .svg" in capsys.readouterr().err
    assert not (tmp_path / "f.png").exists()


def test_a_figure_of_nothing_is_refused(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({**content(record), "cases": {}}), encoding="utf-8")
    assert main(["figure", str(empty), "--out", str(tmp_path / "f.svg")]) == 1
    assert "measure first" in capsys.readouterr().err


def test_without_a_device_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(["measure", "--quick"]) == 1
    assert "give --dry-run" in capsys.readouterr().err
    assert main(["measure", "--quick", "--device", "cpu"]) == 1
    assert "has no kernel to time" in capsys.readouterr().err
    assert main(["tune", "--out", "tuning.json", "--device", "cpu"]) == 1
    assert "has no kernel to time" in capsys.readouterr().err
    assert main(["measure", "--quick", "--device", "banana"]) == 1
    assert "names no device" in capsys.readouterr().err


def quick_result(floor_fraction: float, speedup: float, error: float = 0.001) -> dict[str, Any]:
    ratios = {"floor_fraction": floor_fraction, "speedup": {SDPA: speedup}}
    ways = {KERNEL: {"error": error}, SDPA: {"error": 0.001}}
    return {"ways": ways, "ratios": {"graph": ratios, "launch": ratios}}


def test_bars() -> None:
    assert {bar.verdict for bar in bars({})} == {"not measured"}
    eight, thirty_two, two = (case.key for case in QUICK)
    good = {eight: quick_result(0.61, 2.0), thirty_two: quick_result(0.6, 3.0), two: quick_result(0.2, 1.0)}
    assert {bar.verdict for bar in bars(good)} == {"reached"}
    bad = {eight: quick_result(0.59, 1.9), thirty_two: quick_result(0.5, 3.0, 0.003), two: quick_result(0.2, 0.99)}
    missed = [bar.name.split(":")[0] for bar in bars(bad) if bar.verdict == "MISSED"]
    assert missed == ["8k", "32k", "8k", "2k", "2k", "32k"]


def test_the_tuned_table_is_one_that_the_kernel_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tuning = tmp_path / "tuning.json", submodule("tuning")
    for dim in ("64", "128"):
        assert main(["tune", "--dry-run", "--out", str(path), "--dims", dim, "--dtypes", "fp32"]) == 0
    assert tuning.TUNING_FILE not in os.environ
    table = json.loads(path.read_text(encoding="utf-8"))
    assert sorted((entry["itemsize"], entry["width"]) for entry in table["cpu"]) == [(4, 64), (4, 128)]
    monkeypatch.setenv(tuning.TUNING_FILE, str(path))
    for entry in table["cpu"]:
        choice = tuning.choice_for("cpu", entry["itemsize"], entry["width"])
        assert (choice.prefix.rows, choice.resident) == (entry["prefix"]["rows"], entry["resident"])


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = REPOSITORY / "kernels" / "tree_attention" / "benchmarks" / "run.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path)
    for name in ("measure", "show", "markdown", "figure", "tune"):
        assert name in done.stdout
