"""benchmarks/trials.py: what is tried and for how long, real runs of it, cut and gone on with, and their table."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.benchmark_scripts import scripts_of
from helpers.tiny_training import own_rows, tiny_target
from transformers import AutoTokenizer

BASE = {
    "dtype": "float32", "bf16": False, "max_batch_tokens": 64, "draft_vocab_size": 40, "eval_prompts": 2,
    "eval_new_tokens": 8, "disable_tqdm": True, "ttt_stages": "1:2",
}  # fmt: skip


@pytest.fixture(scope="module")
def scripts() -> Any:
    return scripts_of(script="trials", plan="trials_plan", table="trials_table", shared="training_runs")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, pair_folders: Any) -> Path:
    """A folder with the tiny target, and a data set of its words."""
    from datasets import Dataset, DatasetDict

    folder, target = tmp_path_factory.mktemp("trials"), tiny_target()
    rows = own_rows(target)
    splits = {"train": Dataset.from_list(rows[4:]), "validation": Dataset.from_list(rows[:4])}
    DatasetDict(splits).save_to_disk(folder / "data")
    target.save_pretrained(folder / "target")
    AutoTokenizer.from_pretrained(pair_folders.target).save_pretrained(folder / "target")
    return folder


@pytest.fixture
def write(material: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of trials on the tiny target, changed by keyword, and gives its path."""
    base = {**BASE, "data": str(material / "data"), "target": str(material / "target")}

    def call(trials: Any, **changes: Any) -> Path:
        values = {"name": "first", "tokens": 200, "evaluations": 1, "base": base, "trials": trials, **changes}
        path = tmp_path / "trials.yaml"
        given = {name: value for name, value in values.items() if value is not None}
        path.write_text(yaml.safe_dump(given, sort_keys=False))
        return path

    return call


def test_runs_of_all_batches_see_equally_many_tokens(scripts: Any) -> None:
    from hf_eagle3.training.recipe import read_recipe

    lengths, answers = [16 + number % 48 for number in range(400)], [8] * 400
    whole = sum(lengths)
    for fields, of in (
        ({}, 1),
        ({"packing": True}, 1),
        ({"gradient_accumulation_steps": 4}, 1),
        ({"train_share": 0.5}, 2),
    ):
        recipe = read_recipe(None, {"data": "d", "max_batch_tokens": 256, **fields})
        steps = scripts.shared.steps_for(2 * whole, recipe, lengths, answers)
        assert steps == pytest.approx(scripts.shared.steps_for(whole, recipe, lengths, answers) * 2, abs=1)
        batches = scripts.shared.TokenBatches(lengths, 256, bool(fields.get("packing")))
        updates = len(batches) / fields.get("gradient_accumulation_steps", 1)
        assert steps == pytest.approx(2 * updates, rel=0.05), (
            f"{fields}: a share of 1/{of} makes more epochs, not updates"
        )


def test_each_kind_of_features_has_a_folder_of_its_own(
    scripts: Any, write: Any, material: Path, tmp_path: Path
) -> None:
    trials = {
        "base": None,
        "rate": {"learning_rate": 1e-4},
        "deep": {"boundaries": [3, 5, 6]},
        "last": {"boundaries": [-1]},
    }
    runs = {run.trial: run for run in scripts.plan.read_plan(write(trials), tmp_path / "work").runs}
    folders = {trial: run.recipe.features_dir for trial, run in runs.items()}
    assert folders["base"] == folders["rate"]
    assert len(set(folders.values())) == 3
    assert Path(folders["deep"]).name.startswith("3-5-6-")
    base = {**BASE, "data": str(material / "data"), "features_dir": "mine"}
    runs = {run.trial: run for run in scripts.plan.read_plan(write(trials, base=base), tmp_path / "work").runs}
    assert runs["rate"].recipe.features_dir == "mine"
    assert runs["deep"].recipe.features_dir != "mine"


def test_seeds_come_in_turns(scripts: Any, write: Any, tmp_path: Path) -> None:
    path = write({"a": {}, "b": {"seeds": [7]}, "c": {"learning_rate": 1e-4}}, seeds=[0, 1])
    runs = scripts.plan.read_plan(path, tmp_path / "work").runs
    assert [(run.trial, run.seed) for run in runs] == [("a", 0), ("b", 7), ("c", 0), ("a", 1), ("c", 1)]
    assert all(run.recipe.arguments["seed"] == run.seed for run in runs)
    assert [run.folder for run in runs][:2] == ["a-seed-0", "b-seed-7"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trials": {"x": {"max_steps": 5}}}, "trial 'x': max_steps cannot be tried"),
        ({"trials": {"x": {"learning_rat": 5}}}, "trial 'x': The recipe holds 'learning_rat'"),
        ({"trials": {"a b": {}, "a-b": {}}}, "several trials that would lie in a-b-seed-0"),
        ({"trials": {"x": {}}, "tokens": None}, "lacks tokens"),
        ({"trials": {"x": {}}, "tokens": -3}, "has tokens -3"),
        ({"trials": {"x": {}}, "steps": 4}, "has steps, which nothing knows"),
        ({"trials": {"x": {"seeds": 3}}}, "seeds is 3: give a list"),
        ({"trials": {}}, "has no trials"),
        ({"trials": {"x": {}}, "base": 5}, "has the base 5"),
    ],
)
def test_plans_that_cannot_be_are_refused(
    scripts: Any, write: Any, tmp_path: Path, capsys: Any, changes: dict[str, Any], sentence: str
) -> None:
    path = write(changes.pop("trials"), **changes)
    assert scripts.script.main(["run", str(path), "--out", str(tmp_path / "o"), "--json", str(tmp_path / "r")]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def in_this_process(command: list[str], output: Any, lock: int) -> int:
    """The command, without a second torch; the status that it ends with."""
    from contextlib import redirect_stderr, redirect_stdout

    from hf_eagle3 import cli

    assert command[1:3] == ["-m", "hf_eagle3.cli"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        patch.setattr(sys, "argv", ["hf-eagle3", *command[3:]])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def test_a_run_is_a_process_of_its_own(scripts: Any, write: Any, tmp_path: Path) -> None:
    """Of `hf-eagle3 train`, whose output is kept beside the head."""
    work, path = tmp_path / "work", write({"base": {}})
    given = ["run", str(path), "--out", str(work), "--json", str(tmp_path / "record.json")]
    assert scripts.script.main(given) == 0
    (run,) = json.loads((tmp_path / "record.json").read_text())["runs"]
    assert run["steps"] == json.loads((work / "base-seed-0" / "training.json").read_text())["steps"]
    assert (work / "base-seed-0" / "model.safetensors").is_file()
    assert "acceptance length on held-out prompts" in (work / "base-seed-0.log").read_text()


def test_a_process_that_is_ended_is_told_of(
    scripts: Any, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.script, "_process", lambda *_: -9)  # as the kernel ends one that takes too much memory
    given = ["run", str(write({"base": {}})), "--out", str(tmp_path / "work"), "--json", str(tmp_path / "record.json")]
    assert scripts.script.main(given) == 1
    assert json.loads((tmp_path / "record.json").read_text())["runs"][0]["failed"] == "ended by signal 9"


def test_from_a_file_of_trials_to_a_table(
    scripts: Any, write: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run fails and is told of; the same command tries that one again and leaves the others alone."""
    monkeypatch.setattr(scripts.script, "_process", in_this_process)
    markdown, record_path = tmp_path / "TRAINING.md", tmp_path / "record.json"
    given = ["--out", str(tmp_path / "work"), "--json", str(record_path), "--update", str(markdown)]
    trials: dict[str, Any] = {"base": {}, "last|state": {"boundaries": [-1], "head": {"norm_output": True}}}
    trials["broken"] = {"learning_rate": 1e30}
    path = write(trials)
    markdown.write_text("# Log\n")
    assert scripts.script.main(["run", str(path), *given]) == 1
    assert "must have the lines <!-- trials first -->" in capsys.readouterr().err
    assert not (tmp_path / "work").exists(), "nothing was trained for a table that has no place"
    markdown.write_text("# Log\n<!-- trials first -->\nold\n<!-- /trials first -->\nafter\n")
    assert scripts.script.main(["run", str(path), *given]) == 1
    record = json.loads(record_path.read_text())
    assert record["complete"]
    assert [("failed" in run) for run in record["runs"]] == [False, False, True]
    assert "lower learning rate" in record["runs"][2]["failed"]
    assert all(run["tokens_seen"] == pytest.approx(200, abs=64) for run in record["runs"][:2])
    assert all(run["acceptance_length"] >= 1 < run["chain_acceptance"] + 1e-9 for run in record["runs"][:2])
    assert str(tmp_path.parent) not in record_path.read_text(), "a record names no folder of this machine"
    text = markdown.read_text()
    assert text.startswith("# Log\n<!-- trials first -->\n| trial | changes |")
    assert text.endswith("\n<!-- /trials first -->\nafter\n")
    assert "last\\|state" in text
    assert "broken, seed 0, failed: " in text
    made = {log.name: log.stat().st_mtime_ns for log in (tmp_path / "work").glob("*.log")}
    trials["broken"] = {"learning_rate": 1e-4}
    assert scripts.script.main(["run", str(write(trials)), *given]) == 0
    again = {log.name: log.stat().st_mtime_ns for log in (tmp_path / "work").glob("*.log")}
    assert [name for name in made if made[name] != again[name]] == ["broken-seed-0.log"]
    assert "failed" not in markdown.read_text()
    before = markdown.read_bytes()
    assert scripts.script.main(["table", str(record_path), "--update", str(markdown)]) == 0
    assert markdown.read_bytes() == before
    trials["base"] = {"weight_decay": 0.1}
    assert scripts.script.main(["run", str(write(trials)), *given]) == 1
    assert "weight_decay was 0.0 and is 0.1" in capsys.readouterr().err


def test_a_run_that_names_no_dtype_is_known_again_on_another_machine(
    scripts: Any, write: Any, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the embedded target is then chosen by the machine, and written down."""
    import torch

    started = []

    def finished(command: list[str], *_: Any) -> int:
        given, folder = Path(command[command.index("--config") + 1]), Path(command[-1])
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(given.read_text())
        history = [{"eval_loss": 3.0, "eval_chain_acceptance": 2.0, "eval_acceptance_length": 2.0, "step": 1}]
        sizes = {"steps": 1, "tokens_seen": 200, "best_step": 1, "draft_vocabulary_coverage": 1.0}
        (folder / "training.json").write_text(json.dumps({**sizes, "history": history}))
        started.append(yaml.safe_load(given.read_text())["dtype"])
        return 0

    monkeypatch.setattr(scripts.script, "_process", finished)
    base = {name: value for name, value in BASE.items() if name != "dtype"} | {"data": str(material / "data")}
    path = write({"base": {}}, base=base)
    given = ["run", str(path), "--out", str(tmp_path / "work"), "--json", str(tmp_path / "record.json")]
    for able in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert scripts.script.main(given) == 0
    assert started == ["float32"]


def test_two_do_not_work_in_one_folder(scripts: Any, write: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "work").mkdir()
    with (tmp_path / "work" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        given = ["--out", str(tmp_path / "work"), "--json", str(tmp_path / "record.json")]
        assert scripts.script.main(["run", str(write({"a": {}})), *given]) == 1
    assert "Other trials, or a training that they left behind" in capsys.readouterr().err


def done(trial: str, seed: int, length: float, **more: Any) -> dict[str, Any]:
    figures = {"loss": 3.0 + seed, "chain_acceptance": 2.0, "acceptance_length": length, "tokens_seen": 1000}
    return {"trial": trial, "overrides": {}, "seed": seed, **figures, **more}


def test_the_table_gives_each_seed_and_the_mean(scripts: Any) -> None:
    runs = [done("base", 0, 2.5), done("wide", 0, 2.0, overrides={"boundaries": [3, 5], "packing": True})]
    runs += [done("base", 1, 2.75)]
    lines = scripts.table.trials_table({"runs": runs, "tokens": 1000, "complete": False}).split("\n")
    assert (
        lines[2]
        == "| base | nothing | 0, 1 | 1,000 | 3.500 (3.000, 4.000) | 2.000 (2.000, 2.000) | 2.625 (2.500, 2.750) |"
    )
    assert lines[3] == "| wide | `boundaries: [3, 5]`; `packing: true` | 0 | 1,000 | 3.000 | 2.000 | 2.000 |"
    assert lines[-1].startswith("Under way")


def test_what_is_no_yaml_is_refused(scripts: Any, write: Any, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: [")
    with pytest.raises(ValueError, match=r"base\.yaml is no YAML"):
        scripts.plan.read_plan(write({"base": {}}, base="base.yaml"), tmp_path / "work")
    with pytest.raises(ValueError, match="whose value is no YAML"):
        scripts.shared.given_fields(["boundaries=["])


@pytest.mark.parametrize("text", ["{}", "[", '{"runs": []}', '{"runs": [{"seed": 0}], "tokens": 5}'])
def test_what_is_no_record_is_refused(scripts: Any, tmp_path: Path, text: str, capsys: Any) -> None:
    (tmp_path / "record.json").write_text(text)
    assert scripts.script.main(["table", str(tmp_path / "record.json")]) == 1
    assert "is no record of trials" in capsys.readouterr().err


def test_a_run_that_was_never_measured_tells_nothing(scripts: Any) -> None:
    with pytest.raises(ValueError, match="never measured"):
        scripts.shared.of_the_head({"history": [{"loss": 1.0, "step": 1}], "best_step": 0})


def test_the_figures_are_those_of_the_best_checkpoint(scripts: Any) -> None:
    history = [{"eval_loss": 5.0 - step, "eval_acceptance_length": length, "step": step}
               for step, length in ((1, 2.0), (2, 2.5), (3, 2.25))]  # fmt: skip
    assert scripts.shared.of_the_head({"history": history, "best_step": 2})["acceptance_length"] == 2.5
    assert scripts.shared.of_the_head({"history": history, "best_step": 0})["acceptance_length"] == 2.25
