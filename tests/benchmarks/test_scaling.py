"""benchmarks/scaling.py all the way on a tiny target, cut and gone on with; what it reckons; what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.benchmark_scripts import scripts_of
from helpers.tiny_training import own_rows, tiny_target
from transformers import AutoModel

from hf_eagle3.data.store import load_dataset
from hf_eagle3.default_trees import CPU, DEFAULT_TREES
from hf_eagle3.training.share import nested_share


@pytest.fixture(scope="module")
def scripts() -> Any:
    return scripts_of(script="scaling", runs="scaling_runs", figure="scaling_figure", shared="training_runs")


def dry_run(work: Path, *more: str) -> list[str]:
    small = ["--shares", "1/4", "1", "--new-tokens", "12", "--prompts", "3", "--evaluations", "1"]
    return ["--dry-run", "--out", str(work), "--json", str(work / "record.json"), *small, *more]


def test_a_dry_run_goes_all_the_way_and_goes_on_where_it_was_cut(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, started = scripts.runs.train_head, list[str]()

    def cut(recipe: Any, target: Any, args: Any) -> Any:
        started.append(Path(args.output_dir).name)
        if len(started) == 2:
            raise OSError("No space left on device")
        return real(recipe, target, args)

    monkeypatch.setattr(scripts.runs, "train_head", cut)
    assert scripts.script.main(dry_run(tmp_path)) == 1
    assert "scaling: No space left on device" in capsys.readouterr().err
    assert json.loads((tmp_path / "record.json").read_text())["complete"] is False
    assert scripts.script.main(dry_run(tmp_path, "--figure", str(tmp_path / "figure.svg"))) == 0
    names = [f"{kind}-share-{share}-seed-0" for share in ("0.25", "1") for kind in ("eagle-3", "eagle-1")]
    assert started == [names[0], names[1], *names[1:]], "the first head was there already"
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["complete"], record["dry_run"]) == (True, True)
    check_runs(record, load_dataset(tmp_path / "data")["train"])
    check_heads(tmp_path)
    assert str(tmp_path) not in json.dumps(record), "a record names no folder of this machine"
    assert "dry run" in (tmp_path / "figure.svg").read_text()
    told = capsys.readouterr().out
    assert "EAGLE-1: " in told
    assert "for each doubling" in told


def check_runs(record: dict[str, Any], rows: Any) -> None:
    answers = [sum(mask) for mask in rows["loss_mask"]]
    for run in record["runs"]:
        kept = nested_share(answers, run["share"], 0)
        assert (run["conversations"], run["answer_tokens"]) == (len(kept), sum(answers[index] for index in kept))
        assert run["steps"] == 4
        assert run["on_the_way"][-1]["step"] == 4
        assert {name: found["tree"] for name, found in run["acceptance"].items()} == (
            {"device": list(vars(DEFAULT_TREES[CPU]).values()), "paper": [59, 8, 10, 0.0]}
        )
        assert all(
            found["acceptance_length"] >= 1 and found["verifications"] > 0 for found in run["acceptance"].values()
        )
    three, one = record["runs"][:2]
    assert three["draft_vocabulary_coverage"] == one["draft_vocabulary_coverage"]
    assert (three["recipe"]["boundaries"], three["recipe"]["loss_regression"]) == (None, 0.0)
    assert (one["recipe"]["boundaries"], one["recipe"]["ttt_stages"]) == ([-1], "1:1")
    assert (one["recipe"]["loss_regression"], one["recipe"]["loss_ce"]) == (1.0, 0.1)
    assert record["measured"]["first_conversation"] == 2
    assert record["measured"]["prompts"] == 3


def check_heads(work: Path) -> None:
    """The features are there once, and EAGLE-1's head has the target's own output rows."""
    assert [path.name for path in work.rglob("index.json")] == ["index.json"] * 2  # train, validation
    folder = work / "eagle-1-share-1-seed-0"
    head, target = AutoModel.from_pretrained(folder), tiny_target()
    assert head.config.reads_last_hidden_state
    assert head.lm_head.weight.equal(target.lm_head.weight[head.t2d].to(head.dtype))
    assert not list(folder.glob("checkpoint-*"))


def test_heads_of_other_settings_are_not_taken_for_these(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "eagle-3-share-0.25-seed-0"
    folder.mkdir()
    monkeypatch.setattr(scripts.runs, "train_head", lambda *_: pytest.fail("it was trained"))
    stated = {"recipe": {"learning_rate": 7.0}, "measured": {}}
    (folder / "scaling.json").write_text(json.dumps({"asked": stated, "run": {}}))
    assert scripts.script.main(dry_run(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "learning_rate was 7.0 and is 0.001" in error
    assert "give another --out" in error


def test_other_text_under_the_same_name_is_refused(
    scripts: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    only = ["--shares", "1"]
    assert scripts.script.main([*dry_run(tmp_path), *only]) == 0
    from datasets import Dataset, DatasetDict

    rows = own_rows(tiny_target(), 40)
    shutil.rmtree(tmp_path / "data")
    splits = {"train": Dataset.from_list(rows[8:]), "validation": Dataset.from_list(rows[:8])}
    DatasetDict(splits).save_to_disk(tmp_path / "data")
    capsys.readouterr()
    assert scripts.script.main([*dry_run(tmp_path), *only]) == 1
    assert "data was " in capsys.readouterr().err


def test_eagle_1s_recipe_differs_in_its_objective_and_inputs_alone(scripts: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: d\nlearning_rate: 3e-4\nloss: lk\nhead: {qk_norm: true, fc_norm: true}\nttt_stages: '1:5'\n"
    )
    three = scripts.runs.recipe_for("EAGLE-3", path, {"seed": 4}, {})
    one = scripts.runs.recipe_for("EAGLE-1", path, {"seed": 4}, {"learning_rate": 1e-4})
    assert three.head == {"qk_norm": True, "fc_norm": True}
    assert one.head == {"qk_norm": True, "norm_output": True}, "norms of the target's states alone are left out"
    assert one.arguments == {
        "learning_rate": 1e-4, "seed": 4, "loss": "soft_ce", "loss_ce": 0.1, "loss_regression": 1.0,
        "ttt_stages": "1:1", "freeze_output": True,
    }  # fmt: skip
    assert three.arguments == {"learning_rate": 3e-4, "seed": 4, "loss": "lk", "ttt_stages": "1:5"}


def made_up(objective: str, share: float, seed: int, length: float) -> dict[str, Any]:
    acceptance = {"tree": [59, 8, 10], "acceptance_length": length}
    return {
        "objective": objective, "share": share, "seed": seed, "answer_tokens": round(1000 * share),
        "epochs": 1 / share, "tokens_seen": 2000 + seed, "acceptance": {"paper": acceptance, "device": acceptance},
    }  # fmt: skip


def test_gains_and_spreads(scripts: Any, tmp_path: Path) -> None:
    runs = [made_up("EAGLE-3", share, seed, 2 + 0.5 * step + seed / 10)
            for step, share in enumerate((0.25, 0.5, 1.0)) for seed in (0, 1)]  # fmt: skip
    runs += [made_up("EAGLE-1", share, 0, 1.75) for share in (1.0, 0.5, 0.25)]
    three, one = scripts.figure.spreads(runs, "paper")
    assert three == scripts.figure.Spread(
        "EAGLE-3", [250, 500, 1000], [2.05, 2.55, 3.05], [2.0, 2.5, 3.0], [2.1, 2.6, 3.1]
    )
    assert one == scripts.figure.Spread("EAGLE-1", [250, 500, 1000], [1.75] * 3, [1.75] * 3, [1.75] * 3)
    found = scripts.figure.summary(runs)
    assert found["gain_per_doubling"]["paper"] == {"EAGLE-3": pytest.approx(0.5), "EAGLE-1": pytest.approx(0.0)}
    assert found["tokens_seen"] == {"fewest": 2000, "most": 2001}
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"runs": runs, **found}))
    figures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for figure in figures:
        assert scripts.script.main(["--draw", str(path), "--figure", str(figure)]) == 0
    assert figures[0].read_bytes() == figures[1].read_bytes()
    drawn = figures[0].read_text()
    assert all(text in drawn for text in ("EAGLE-3", "EAGLE-1", ">250<", ">1,000<", ", tree 59, 8, 10"))


def test_runs_end_with_a_measurement(scripts: Any) -> None:
    assert scripts.shared.length_fields(10, 4) == {"max_steps": 12, "eval_steps": 3, "save_steps": 3}
    assert scripts.shared.length_fields(8, 4) == {"max_steps": 8, "eval_steps": 2, "save_steps": 2}


@pytest.mark.parametrize("share", ["0", "2", "1/0", "half", "-1/2"])
def test_shares_that_cannot_be_are_refused(scripts: Any, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scripts.script.main(["--dry-run", "--out", "x", f"--shares={share}"])
    assert "is no share" in capsys.readouterr().err


def test_what_is_missing_is_told(scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scripts.script.main(["--data", "d"])
    assert "training needs --out" in capsys.readouterr().err
    assert scripts.script.main(["--data", "d", "--out", str(tmp_path)]) == 1
    assert "give --steps" in capsys.readouterr().err
    (tmp_path / "no.json").write_text("[]")
    assert scripts.script.main(["--draw", str(tmp_path / "no.json")]) == 1
    assert "is no record of this benchmark" in capsys.readouterr().err
    given = dry_run(tmp_path / "few", "--eagle1", "learning_rate")
    assert scripts.script.main(given) == 1
    assert "'learning_rate' was given; write a field" in capsys.readouterr().err
    assert (
        scripts.script.main(["--data", str(tmp_path / "few" / "data"), "--out", str(tmp_path / "all"), "--steps", "1"])
        == 1
    )
    assert "none are left to measure on" in capsys.readouterr().err
