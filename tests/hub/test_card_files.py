"""What a head's folder must not hold: each is told in one sentence, and no card is written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.card_folders import SWEEP, make_head_folder
from helpers.targets import GOLDEN
from typer.testing import CliRunner

from hf_eagle3 import cli
from hf_eagle3.hub.cards import is_by_hand, render_card, target_of, write_card
from hf_eagle3.hub.facts import read_facts, read_json

ROW = {"name": "easy", "questions": 2, "acceptance_length": 2.5, "ratio": 1.5, "low": 1.4, "high": 1.6}
EARLY = {"provenance": {"settings": {"temperature": 0.0, "tree": {}, "dtype": "torch.float32"}}, "files": [ROW]}


@pytest.fixture
def folder(pair_folders, tmp_path: Path) -> Path:
    return make_head_folder(
        tmp_path / "tiny-head", Path(pair_folders.head), {"trees.json": SWEEP, "early.json": EARLY}
    )


def refusal(folder: Path) -> str:
    """The sentence that refuses `folder`, after which there is no card."""
    with pytest.raises(ValueError, match=r".") as refused:
        write_card(folder)
    told = str(refused.value)
    assert "\n" not in told
    assert told.endswith((".", "?"))
    assert not (folder / "README.md").exists()
    return told


@pytest.mark.parametrize("name", ["training.json", "config.json", "evaluation/early.json"])
@pytest.mark.parametrize(
    "contents",
    ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "{", "", "[1]", "\xff\xfe", '{"a": ' + "[" * 100_000],
)
def test_a_file_that_is_no_object_of_finite_numbers(folder: Path, name: str, contents: str) -> None:
    (folder / name).write_bytes(contents.encode("latin-1"))
    assert name.rsplit("/", 1)[-1] in refusal(folder)


def test_finite_numbers_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1.25, "b": -2, "c": null}')
    assert read_json(tmp_path / "x.json") == {"a": 1.25, "b": -2, "c": None}
    assert read_json(tmp_path / "missing.json") == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [("acceptance_length", "2.5"), ("ratio", [1.5]), ("questions", 2.5), ("identical", True), ("name", None),
     ("name", 3), ("temperature", "hot"), ("acceptance_rates", 0.5), ("acceptance_rates", ["0.5"])],
)  # fmt: skip
def test_a_row_with_a_wrong_field(folder: Path, field: str, value: Any) -> None:
    (folder / "evaluation" / "early.json").write_text(json.dumps({**EARLY, "files": [{**ROW, field: value}]}))
    assert "evaluation/early.json" in refusal(folder)


def test_rates_and_counts_that_do_not_go_together(folder: Path) -> None:
    row = {**ROW, "acceptance_rates": [0.5, 0.4], "acceptance_counts": [[1, 2]]}
    (folder / "evaluation" / "early.json").write_text(json.dumps({**EARLY, "files": [row]}))
    assert "do not go together" in refusal(folder)


@pytest.mark.parametrize("record", [{}, {"files": []}, {"speed": []}, {"files": [3]}, {"trees": [{"shape": [1, 2]}]}])
def test_what_is_no_evaluation(folder: Path, record: dict[str, Any]) -> None:
    (folder / "evaluation" / "odd.json").write_text(json.dumps(record))
    assert "evaluation/odd.json" in refusal(folder)


def test_a_cut_weight_file(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in refusal(folder)


def test_a_folder_without_a_head(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("base_modle: x", "did you mean base_model?"),
        ("prose: {limit: x}", "did you mean limits?"),
        ("language: no", "language"),  # YAML 1.1's way to say Norwegian
        ("tags: eagle", "tags"),
        ("[]", "list"),
        ("a: [", "cannot be used"),
        ("records: {early.json: {tree: {tree_depth: .nan}}}", "cannot be used"),
        ("prose: &all {limits: *all}", "cannot be used"),
        ("records: {missing.json: {lossless: true}}", "missing.json"),
        ("questions: {easy: {title: x}}", "title"),
        ("prose: {limits: '{{ training.no_such_field }}'}", "no_such_field"),
        ("prose: {limits: '{{ training.recipe.init }}'}", "empty"),
        ("prose: {limits: '{% for x in %}'}", "limits"),
        ("prose: {limits: '{{ name | fixed }}'}", "limits"),
        ("prose: {limits: '{{ config.__class__.__mro__ }}'}", "limits"),
        ("prose: {limits: '{{ training.update({}) }}'}", "limits"),
    ],
)
def test_words_that_cannot_be_used(folder: Path, words: str, told: str) -> None:
    (folder / "card.yaml").write_text(words)
    assert told in refusal(folder)


def test_empty_words(folder: Path) -> None:
    (folder / "card.yaml").write_text("# nothing yet\n")
    assert "| easy | 2 | 2.50 | 1.50 (1.40-1.60) |" in render_card(folder)


def test_early_records_are_completed_by_hand_and_never_contradicted(folder: Path) -> None:
    tree = {"num_assistant_tokens": 9, "tree_depth": 3, "tree_top_k": 4}
    words = {"records": {"early.json": {"tree": tree}}}
    (folder / "card.yaml").write_text(yaml.safe_dump(words))
    assert "a tree of 9 nodes, 3 levels, top-4" in render_card(folder)
    other = {
        **EARLY,
        "provenance": {"settings": {**EARLY["provenance"]["settings"], "tree": {**tree, "tree_depth": 4}}},
    }
    (folder / "evaluation" / "early.json").write_text(json.dumps(other))
    assert "early.json" in refusal(folder)


def test_early_records_may_be_called_lossless_checks(folder: Path) -> None:
    (folder / "card.yaml").write_text("records: {early.json: {lossless: true}}")
    assert "\n| easy |" not in render_card(folder)  # no row of speeds
    (folder / "evaluation" / "early.json").write_text(json.dumps({**EARLY, "lossless": False}))
    assert "lossless" in refusal(folder)


def test_the_target_comes_from_the_recipe_where_nobody_says_it(folder: Path) -> None:
    (folder / "card.yaml").unlink()
    recipe = folder / "recipe.yaml"
    for said, target in (
        ("org/model", "org/model"),
        (None, "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("/some/where", None),
    ):
        recipe.write_text(yaml.safe_dump({"target": said}))
        assert target_of(read_facts(folder)) == target


def test_the_name_is_the_repositorys_where_it_has_one(folder: Path) -> None:
    assert read_facts(folder).name == "tiny-head"
    assert read_facts(folder, "me/other").name == "other"
    assert 'load_head("me/other"' in render_card(folder, "me/other")
    (folder / "card.yaml").write_text("repo_id: you/third")
    assert read_facts(folder).repo_id == "you/third"


def test_a_table_holds_whatever_a_record_says(folder: Path) -> None:
    row = {**ROW, "name": "a|b\nc"}
    (folder / "evaluation" / "early.json").write_text(json.dumps({**EARLY, "files": [row]}))
    assert "| a\\|b c | 2 |" in render_card(folder)


def test_the_command_says_it_in_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "training.json").write_text('{"steps": NaN}')
    monkeypatch.setattr(sys, "argv", ["hf-eagle3", "card", str(folder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "training.json" in told


# ---------------------------------------------------------------------- whose card, and of what


def test_a_card_written_by_hand_is_not_replaced_unasked(folder: Path) -> None:
    (folder / "README.md").write_text("My own card.\n")
    asked = CliRunner().invoke(cli.app, ["card", str(folder)])
    assert "was written by hand" in str(asked.exception)
    assert (folder / "README.md").read_text() == "My own card.\n"
    assert CliRunner().invoke(cli.app, ["card", str(folder), "--force"]).exit_code == 0
    assert not is_by_hand(folder)
    assert CliRunner().invoke(cli.app, ["card", str(folder)]).exit_code == 0


def test_a_model_that_is_no_head_gets_no_card(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "llama_target" / "config.json", tmp_path)
    with pytest.raises(ValueError, match="'llama' model and no draft head"):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()
