"""Cards: every number traced to a file, every gap told as one, metadata that the Hub's own client reads back."""

from __future__ import annotations

import ast
import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.card_folders import SWEEP, make_head_folder, untraced_numbers
from huggingface_hub import ModelCard
from huggingface_hub.utils import logging as hub_logging
from typer.testing import CliRunner

from hf_eagle3 import cli, release
from hf_eagle3.evaluation.records import FEWEST_VERIFICATIONS
from hf_eagle3.hub.cards import eval_results, is_current, render_card, write_card
from hf_eagle3.hub.facts import read_facts

SHIPPED = Path(__file__).parents[2] / "model_cards" / "SmolLM2-135M-Instruct-EAGLE3"
# Of what the card of the shipped head says by hand, the figures: of the method and of how the text was made.
TYPED = {"4", "0.1.2", "0.7", "1", "2", "3", "135", "08"}  # the last of 1e-08
ALWAYS = {str(FEWEST_VERIFICATIONS), "0"}  # "fewer than 10 verifications", "a temperature above 0"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture(scope="module")
def records(pair_folders, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `hf-eagle3 eval --json` writes of a tiny pair: speed at two temperatures, and a lossless check."""
    folder = tmp_path_factory.mktemp("measured")
    for name in ("easy", "hard"):
        rows = [json.dumps({"question_id": n, "turns": [f"w{n} w{n + 3} w5"]}) for n in range(2)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    pair = ["--target", pair_folders.target, "--head", pair_folders.head, "--device", "cpu", "--max-new-tokens", "12"]
    asked = ["eval", *pair, "--questions", str(folder)]
    ways = {"speed.json": ["--temperature", "0", "--temperature", "1", "--no-shares"], "lossless.json": ["--lossless"]}
    for name, way in ways.items():
        done = run(*asked, *way, "--json", str(folder / name))
        assert done.exit_code == 0, done.output
    return {name: json.loads((folder / name).read_text()) for name in ways}


@pytest.fixture
def folder(records, pair_folders, tmp_path: Path) -> Path:
    whole = {**copy.deepcopy(records), "trees.json": SWEEP}
    return make_head_folder(tmp_path / "tiny-head", Path(pair_folders.head), whole)


def change(path: Path, field: str, value: Any) -> None:
    """Set a field of a JSON file, named by a path with dots; every row's, where the path meets a list."""

    def at(there: Any, names: list[str]) -> None:
        if isinstance(there, list):
            for each in there:
                at(each, names)
        elif len(names) == 1:
            there[names[0]] = value
        else:
            at(there[names[0]], names[1:])

    read = json.loads(path.read_text())
    at(read, field.split("."))
    path.write_text(json.dumps(read))


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_number_comes_from_a_file(folder: Path) -> None:
    card = render_card(folder)
    assert set(untraced_numbers(card, folder)) <= ALWAYS
    for title in ("Use", "Measured", "The same tokens", "The size of the tree", "The head", "How it was trained"):
        assert len(section(card, title)) > 50


def test_a_number_that_no_file_backs_would_be_found(folder: Path) -> None:
    card = render_card(folder)
    told = re.search(r"\| Easy ones \| 2 \| (\d\.\d\d) \|", card)
    assert told is not None
    assert untraced_numbers(card.replace(f"| {told[1]} |", "| 8.88 |"), folder).count("8.88") >= 1
    assert "3.33" in untraced_numbers(card.replace("Seen were 2,345", "Seen were 3.33"), folder)


def test_the_figures_are_those_of_the_record(folder: Path, records) -> None:
    card = render_card(folder)
    for row in records["speed.json"]["files"]:
        name = {"easy": "Easy ones", "all": "all together"}.get(row["name"], row["name"])
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
        assert f"| {name} | {row['questions']} | {row['acceptance_length']:.2f} | {ratio} |" in card
    told = next(row for row in records["lossless.json"]["files"] if row["name"] == "all")
    counts = f"4 | 12 | {told['identical']} | {told['near_ties']} | 0 |"
    tree = records["lossless.json"]["provenance"]["settings"]["tree"]
    sizes = f"{tree['num_assistant_tokens']}, {tree['tree_depth']}, {tree['tree_top_k']}"
    if tree["assistant_confidence_threshold"]:
        sizes += f", below {tree['assistant_confidence_threshold']:g}"
    assert f"| `evaluation/lossless.json` | float32 | {sizes} | {counts}" in card
    lengths = {row["name"]: row["acceptance_length"] for row in records["lossless.json"]["files"]}
    by_file = [lengths["easy"], lengths["hard"], (lengths["easy"] + lengths["hard"]) / 2]
    cells = " | ".join(f"{length:.2f}" for length in by_file)
    assert f"| `evaluation/lossless.json` | {sizes} | {cells} |" in card
    assert "### Temperature 0, float32" in card
    assert "### Temperature 1, float32" in card
    assert card.count("### Temperature") == 2  # a lossless check has no times to show


def test_trees_of_several_devices_and_what_their_nodes_cost(folder: Path) -> None:
    native = copy.deepcopy(SWEEP)
    native["provenance"]["settings"]["native_products"] = True
    native["cost"]["verification"] = [{"size": 1, "cost": 1.01}, {"size": 8, "cost": 1.26}]
    (folder / "evaluation" / "native.json").write_text(json.dumps(native))
    card = render_card(folder)
    trees = section(card, "The size of the tree")
    assert "| nodes | 1 | 8 | 16 |" in trees
    assert "| `evaluation/native.json` | 1.01 | 1.26 |  |" in trees
    assert "| `evaluation/trees.json` | 1.02 |  | 12.34 |" in trees
    assert "| `evaluation/trees.json`, a further level | 0.12 | 0.15 |" in trees
    assert "over a cache of\n321 positions" in trees
    assert "bfloat16 (emulated)" in trees
    assert "| 9 | 3 | 4 | 2.10 | 1.40 | 1.30 (1.20-1.60) | 1.77 |" in trees
    assert trees.count("is chosen: 7 nodes, 2 levels, top-4.") == 2
    assert set(untraced_numbers(card, folder)) <= ALWAYS


def test_a_sweep_without_costs_shows_its_trees(folder: Path) -> None:
    for field in ("cost", "trees.predicted"):
        change(folder / "evaluation" / "trees.json", field, None)
    trees = section(render_card(folder), "The size of the tree")
    assert "| 9 | 3 | 4 | 2.10 |" in trees
    for absent in ("predicted", "plain steps", "nodes expanded"):
        assert absent not in trees
    change(folder / "evaluation" / "trees.json", "trees.mean", None)
    assert "is chosen" not in render_card(folder)


def test_whether_a_record_multiplied_natively_may_be_told_by_hand(folder: Path) -> None:
    path, words = folder / "evaluation" / "trees.json", folder / "card.yaml"
    before = words.read_text()
    words.write_text(before + "records:\n  trees.json: {native_products: true}\n")
    with pytest.raises(ValueError, match="its native_products is True, but it is False"):
        render_card(folder)
    change(path, "provenance.settings.native_products", None)
    assert "(emulated)" not in render_card(folder)
    words.write_text(before + "records:\n  trees.json: {native_products: perhaps}\n")
    with pytest.raises(ValueError, match="'perhaps' as native_products, and true or false is needed"):
        render_card(folder)


def test_metadata_is_read_back_by_the_hubs_client(folder: Path) -> None:
    loaded = ModelCard.load(write_card(folder))
    facts = read_facts(folder)
    assert loaded.data.eval_results == eval_results(facts)
    assert len(loaded.data.eval_results) == 2 * 2 * 2  # files, temperatures, figures
    by_hand = loaded.data.eval_results[0]
    assert (by_hand.dataset_type, by_hand.dataset_config, by_hand.dataset_name) == ("some/easy", "main", "Easy ones")
    assert {result.metric_args["temperature"] for result in loaded.data.eval_results} == {0.0, 1.0}
    told = loaded.data.to_dict()
    assert told["base_model"] == "some/target"
    assert told["base_model_relation"] == "adapter"
    assert (told["license"], told["language"], told["pipeline_tag"]) == ("apache-2.0", ["en", "de"], "text-generation")
    assert told["library_name"] == "transformers"
    assert {"eagle3", "speculative-decoding", "draft-model"} <= set(told["tags"])
    assert told["model-index"][0]["name"] == "tiny-head"


def test_what_it_says_about_use_works(folder: Path, pair_folders, capsys: pytest.CaptureFixture[str]) -> None:
    card = render_card(folder, repo_id="me/tiny")
    assert release.INSTALL_COMMAND in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert len(ast.parse(code).body) <= 8
    own = code.replace("some/target", pair_folders.target).replace("me/tiny", str(folder))
    exec(compile(own, "the card", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 6


def test_no_evaluation(folder: Path) -> None:
    shutil.rmtree(folder / "evaluation")
    card = render_card(folder)
    assert "were not measured" in section(card, "Measured")
    assert "was not checked" in section(card, "The same tokens")
    assert "## How the figures" not in card
    assert "## The size of the tree" not in card
    assert "model-index" not in card
    assert ModelCard(card).data.eval_results is None
    assert set(untraced_numbers(card, folder)) <= ALWAYS


def test_no_lossless_record(folder: Path) -> None:
    (folder / "evaluation" / "lossless.json").unlink()
    change(folder / "evaluation" / "speed.json", "provenance.settings.dtype", "torch.bfloat16")
    assert "was not checked with this head" in section(render_card(folder), "The same tokens")


def test_a_lossless_record_alone_shows_no_speed(folder: Path) -> None:
    (folder / "evaluation" / "speed.json").unlink()
    card = render_card(folder)
    assert "were not measured" in section(card, "Measured")
    assert "every one came out the same" in section(card, "The same tokens")


@pytest.mark.parametrize(
    ("identical", "near_ties", "mismatches", "said"),
    [(2, 0, 0, "every one came out the same"), (1, 1, 0, "agree in float64"), (1, 0, 1, "**not** those of plain"),
     (1, 0, 0, "do not tell of every answer"), (1, None, None, "do not tell of every answer")],
)  # fmt: skip
def test_the_statement_follows_the_verdicts(
    folder: Path, identical: int, near_ties: int | None, mismatches: int | None, said: str
) -> None:
    counts = {"questions": 2, "identical": identical, "near_ties": near_ties, "mismatches": mismatches}
    (folder / "evaluation" / "speed.json").unlink()
    for name, count in counts.items():
        change(folder / "evaluation" / "lossless.json", f"files.{name}", count)
    assert said in section(render_card(folder), "The same tokens")
    change(folder / "evaluation" / "lossless.json", "provenance.settings.dtype", "torch.bfloat16")
    told = section(render_card(folder), "The same tokens")
    assert "was not checked with this head" in told
    assert ("differ by more than rounding" in told) == bool(mismatches)
    assert ("flip a near tie" in told) == bool(near_ties)


def test_no_training_record(folder: Path) -> None:
    (folder / "training.json").unlink()
    (folder / "card.yaml").write_text("base_model: some/target\n")
    assert "Nothing in this repository tells" in section(render_card(folder), "How it was trained")


def test_no_words(folder: Path) -> None:
    (folder / "card.yaml").unlink()
    card = render_card(folder)
    assert ModelCard(card).data.base_model == "some/other"  # the recipe's
    assert ModelCard(card).data.license is None
    assert "| easy | 2 |" in card


def test_nothing_but_the_head(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    card = render_card(folder)
    assert ModelCard(card).data.base_model is None
    assert set(untraced_numbers(card, folder)) <= ALWAYS
    assert "TARGET" in section(card, "Use")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "parameters" not in section(render_card(folder), "The head")


def test_one_temperature(folder: Path) -> None:
    path = folder / "evaluation" / "speed.json"
    read = json.loads(path.read_text())
    greedy = {**read, "files": [row for row in read["files"] if row["temperature"] == 0.0]}
    sampled = {**read, "files": [row for row in read["files"] if row["temperature"] == 1.0]}
    path.write_text(json.dumps(greedy))
    assert "Not measured: a GPU, sampling" in render_card(folder)
    path.write_text(json.dumps(sampled))
    assert "Not measured: a GPU, greedy decoding" in render_card(folder)


def test_with_and_without_a_gpu(folder: Path) -> None:
    path = folder / "evaluation" / "speed.json"
    change(path, "provenance.machine.gpu", "A Big GPU")
    assert "A Big GPU" not in render_card(folder)  # it is there, and was not used
    change(path, "provenance.settings.device", "cuda:0")
    card = render_card(folder)
    assert "### Temperature 0, float32, A Big GPU" in card
    assert "a GPU" not in section(card, "Measured")


@pytest.mark.parametrize("record", ["speed.json", "lossless.json", "trees.json"])
@pytest.mark.parametrize("part", ["provenance", "provenance.machine", "provenance.packages", "provenance.commit"])
def test_missing_provenance_is_no_word_of_python(folder: Path, record: str, part: str) -> None:
    if part == "provenance" or part in ("provenance.machine",) or record != "trees.json":
        change(folder / "evaluation" / record, part, None)
    card = render_card(folder)
    assert not re.search(r"\b(None|nan|inf|NaN|undefined)\b", card)
    assert set(untraced_numbers(card, folder)) <= ALWAYS


@pytest.mark.parametrize(
    "field",
    ["questions", "acceptance_length", "ratio", "low", "lookup_ratio", "identical", "acceptance_rates",
     "acceptance_counts", "shares"],
)  # fmt: skip
def test_a_missing_figure_is_told_or_left_out(folder: Path, field: str) -> None:
    change(folder / "evaluation" / "speed.json", f"files.{field}", None)
    card = render_card(folder)
    assert not re.search(r"\b(None|nan)\b", card)
    assert ("not measured |" in card) == (field in ("questions", "acceptance_length", "ratio"))
    assert ("acceptance by position" in card.split("Not measured:")[1].split("\n")[0]) == (field == "acceptance_rates")
    assert set(untraced_numbers(card, folder)) <= ALWAYS


def test_a_machines_folders_stay_there(folder: Path) -> None:
    card = render_card(folder)
    assert "somebody" not in card
    assert "| data | my-data |" in card
    assert "| learning_rate | 0.0009 |" in card


def test_an_adapter_has_a_card_too(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "some/head"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    card = render_card(folder)
    assert "| adapter of | some/head |" in card
    assert "| rank | 8 |" in card
    assert 'load_head("some/head", dtype=target.dtype)\nhead.load_adapter("tiny-head")' in card
    assert ModelCard(card).data.library_name == "peft"
    assert ModelCard(card).data.base_model == "some/head"


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    first = write_card(folder).read_bytes()
    assert write_card(folder).read_bytes() == first
    assert is_current(folder)


def test_a_card_is_written_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_card(folder).read_bytes()
    change(folder / "training.json", "steps", 4321)

    def full(source: Any, target: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_eagle3.whole_files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_card(folder)
    assert (folder / "README.md").read_bytes() == before
    assert not list(folder.glob(".README*"))


def test_the_command_writes_and_checks(folder: Path) -> None:
    assert run("card", str(folder), "--check").exit_code == 1
    assert run("card", str(folder)).output.strip() == str(folder / "README.md")
    assert run("card", str(folder), "--check").exit_code == 0
    change(folder / "training.json", "steps", 4321)
    done = run("card", str(folder), "--check")
    assert done.exit_code == 1
    assert "hf-eagle3 card" in done.output
    assert "4,321" not in (folder / "README.md").read_text()


def test_the_shipped_card_is_what_its_files_say() -> None:
    assert is_current(SHIPPED), f"run `hf-eagle3 card {SHIPPED.relative_to(SHIPPED.parents[1])}`"


def test_the_shipped_cards_figures_come_from_its_files() -> None:
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert set(untraced_numbers(card, SHIPPED)) <= TYPED | ALWAYS
    assert "In float32 every one came out the same" in card
    assert all(result.metric_value > 1 for result in ModelCard(card).data.eval_results)


def test_the_shipped_folder_is_small_and_has_its_records() -> None:
    names = {path.name for path in (SHIPPED / "evaluation").iterdir()}
    assert "cpu-speed.json" in names
    # Four records of 240 questions, a quarter of a megabyte each, and the sweep.
    assert sum(path.stat().st_size for path in (SHIPPED / "evaluation").iterdir()) < 1_500_000
    words = yaml.safe_load((SHIPPED / "card.yaml").read_text(encoding="utf-8"))
    assert set(words.get("records", {})) <= names


def test_a_card_is_read_without_complaint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub_logging.enable_propagation()
    ModelCard(render_card(folder))
    assert not caplog.records
