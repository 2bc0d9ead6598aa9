"""Sweeps: ranking, choosing, and the command on a tiny pair, of which no time is judged."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sentences import sentence
from rich.console import Console
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_eagle3 import cli
from hf_eagle3.default_trees import DEFAULT_TREES, device_kind
from hf_eagle3.evaluation import report, sweep
from hf_eagle3.evaluation.cost_curve import CostCurve, Point
from hf_eagle3.evaluation.questions import Question
from hf_eagle3.evaluation.sweep import COMMON_SHAPES, Candidate, Entry, chosen, rank
from hf_eagle3.evaluation.timing import WHOLE_DISTRIBUTION, Run, Settings
from hf_eagle3.hub.facts import read_facts
from hf_eagle3.tree import TreeShape

SHIPPED = Path(__file__).parents[2] / "model_cards"
QUESTIONS = [Question("own", str(n), f"w{n} w{n + 3} w5") for n in range(3)]


def curve(steep: float) -> CostCurve:
    """A node costs `steep` plain steps, the head nothing."""
    nodes = [Point(size, 1 + steep * (size - 1), 1, 99) for size in (1, 64)]
    free = [Point(size, 0.0, 0.0, 0.0) for size in (1, 10)]
    return CostCurve(64, 1, nodes, free, free)


@pytest.fixture(scope="module")
def trio(pair_folders) -> tuple[Any, Any, Any]:
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    head = AutoModel.from_pretrained(pair_folders.head).eval()
    return target, AutoTokenizer.from_pretrained(pair_folders.target), head


def entry(shape: tuple[int, int, int], mean: float, length: float) -> Entry:
    return Entry(shape, length, mean, mean, mean, mean)


def test_common_shapes_are_trees_each_once() -> None:
    assert len(set(COMMON_SHAPES)) == len(COMMON_SHAPES)
    for nodes, depth, top_k, *threshold in COMMON_SHAPES:
        TreeShape(nodes, depth, top_k, *threshold)
        assert nodes <= top_k + (depth - 1) * top_k**2, "it could never have so many nodes"
        assert nodes >= depth
    assert set(DEFAULT_TREES.values()) <= {TreeShape(*shape) for shape in COMMON_SHAPES}


def test_of_trees_as_fast_as_the_best_the_one_of_fewest_nodes_is_chosen() -> None:
    fast, close, slower = entry((9, 3, 4), 1.500, 2.4), entry((5, 3, 2), 1.487, 2.0), entry((1, 1, 1), 1.480, 1.6)
    equal = entry((5, 4, 2), 1.490, 2.0)
    assert chosen([slower, close, fast]) is close
    assert chosen([close, equal, fast]) is chosen([equal, close, fast]) is equal
    assert chosen([slower, fast]) is fast
    assert chosen([slower]) is slower


def test_the_rule_in_code_is_the_measured_one() -> None:
    """Every sweep that lies with a shipped head chooses the default of what it was made on."""
    held = 0
    for folder in SHIPPED.iterdir():
        for evaluation in read_facts(folder).evaluations:
            if evaluation.shapes:
                how = evaluation.conditions
                assert None not in (how.device, how.dtype, how.native), evaluation.file
                kind = device_kind(torch.device(how.device), getattr(torch, how.dtype), how.native)
                measured = TreeShape(*chosen(evaluation.shapes).sizes)
                assert DEFAULT_TREES[kind] == measured, f"{evaluation.file}: default_trees.py says otherwise of {kind}"
                held += 1
    assert held


def test_a_steep_curve_ranks_small_trees_first_and_a_flat_one_large_ones(trio) -> None:
    shapes = [(1, 1, 1), (3, 3, 1), (10, 1, 10), (59, 3, 10)]
    heard: list[int] = []
    model, tokenizer, head = trio
    given = (model, tokenizer, head, QUESTIONS, shapes, [Settings(max_new_tokens=24)])
    steep = rank(*given, curve(0.5), lambda: heard.append(1))
    flat = rank(*given, curve(0.0))
    assert len(heard) == len(QUESTIONS)
    lengths = {candidate.shape: candidate.acceptance_length for candidate in flat}
    assert lengths == {candidate.shape: candidate.acceptance_length for candidate in steep}
    assert lengths[59, 3, 10] > lengths[1, 1, 1] >= 1.0
    assert steep[0].shape == (1, 1, 1)
    assert steep[-1].shape == (59, 3, 10)
    assert flat[0].acceptance_length == max(lengths.values())
    assert all(candidate.predicted == candidate.acceptance_length for candidate in flat)


def test_a_shape_beyond_the_curve_comes_last(trio) -> None:
    ranked = rank(*trio, QUESTIONS[:1], [(200, 3, 10), (1, 1, 1)], [Settings(max_new_tokens=6)], curve(0.0))
    assert [candidate.shape for candidate in ranked] == [(1, 1, 1), (200, 3, 10)]
    assert ranked[1].predicted is None


def test_sampled_answers_are_ranked_beside_greedy_ones(trio) -> None:
    """A drafted token is taken exactly when the target's own draw is that token, so any answer can be rehearsed."""
    ways = [Settings(max_new_tokens=24), Settings(max_new_tokens=24, temperature=1.0, sampling=WHOLE_DISTRIBUTION)]
    greedy, sampled, both = (
        rank(*trio, QUESTIONS, [(59, 3, 10)], asked, curve(0.0))[0].acceptance_length
        for asked in (ways[:1], ways[1:], ways)
    )
    assert sampled != greedy
    assert min(sampled, greedy) < both < max(sampled, greedy)


def test_trees_are_timed_at_every_temperature(monkeypatch: pytest.MonkeyPatch, trio) -> None:
    """Made-up clocks again: a drafted answer takes half the time of a plain one, a sampled one twice that."""
    monkeypatch.setattr(sweep, "run_plain", lambda *_: Run([5] * 9, 8.0, 9))
    monkeypatch.setattr(
        sweep, "run_drafted", lambda *given: Run([5] * 9, 4.0 if given[-1].greedy else 16.0, 5, [2] * 4, [2] * 4)
    )
    monkeypatch.setattr(sweep, "warm_up", lambda *_: None)
    (found,) = sweep.sweep(*trio, QUESTIONS, [(4, 2, 2)], [Settings(), Settings(temperature=1.0)])
    assert found.mean == pytest.approx(1.0), "a mean of ratios is the geometric one"
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(2.0))


def test_entries_stand_beside_what_was_predicted(monkeypatch: pytest.MonkeyPatch, trio) -> None:
    """Made-up clocks: plain takes a second a token, a drafted round of five nodes costs three of them."""

    def drafted(model: Any, head: Any, inputs: Any, settings: Settings) -> Run:
        return Run([5] * 9, 4 * 3.0, 5, [2] * 4, [2] * 4)

    monkeypatch.setattr(sweep, "run_plain", lambda *_: Run([5] * 9, 9.0, 9))
    monkeypatch.setattr(sweep, "run_drafted", drafted)
    monkeypatch.setattr(sweep, "warm_up", lambda *_: None)
    (found,) = sweep.sweep(*trio, QUESTIONS, [(4, 2, 2)], [Settings()], curve=curve(0.5))
    assert found.mean == found.ratio == pytest.approx(9 / 12)
    assert found.predicted == pytest.approx(2 / 3)
    (unpriced,) = sweep.sweep(*trio, QUESTIONS, [(4, 2, 2), (4, 2, 2)], [Settings()])  # is timed once
    assert unpriced.predicted is None


def test_tables_show_what_was_measured() -> None:
    """Uncut in eighty columns."""
    console = Console(width=80, record=True, file=io.StringIO())
    rows = [Entry((9, 3, 4), 2.1, 1.4, 1.3, 1.2, 1.6, 1.77), Entry((59, 8, 10, 0.35), 2.9, 0.9, 0.8, 0.7, 1.0)]
    console.print(report.sweep_table(rows))
    console.print(report.sweep_table(rows[1:]))
    console.print(report.candidates_table([Candidate((7, 2, 4), 2.34, 1.56), Candidate((99, 9, 9), 3.45, None)]))
    made_up = CostCurve(
        77,
        5,
        [Point(1, 1.01, 0.9, 1.1), Point(8, 3.21, 3.0, 3.5)],
        [Point(1, 0.11, 0.1, 0.2)],
        [Point(1, 0.07, 0.0, 0.1)],
    )
    console.print(report.cost_table(made_up))
    shown = console.export_text()
    assert "…" not in shown
    for told in (
        "1.77", "1.20-1.60", "2.34", "1.56", "3.45", "3.21", "3.00-3.50", "0.11", "0.07", "over 77 cached", "10 <0.35",
    ):  # fmt: skip
        assert told in shown
    assert shown.count("predicted") == 3  # heading and caption of the first table, heading of the candidates


# ---------------------------------------------------------------------- the command


@pytest.fixture
def options(pair_folders, tmp_path: Path) -> list[str]:
    rows = [json.dumps({"question_id": n, "turns": [question.text]}) for n, question in enumerate(QUESTIONS)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows), encoding="utf-8")
    pair = ["--target", pair_folders.target, "--head", pair_folders.head, "--device", "cpu", "--max-new-tokens", "8"]
    return ["sweep", "--questions", str(tmp_path), "--context", "16", "--repeats", "1", *pair]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


def test_the_command_measures_writes_and_draws(options: list[str], tmp_path: Path) -> None:
    out, figure = tmp_path / "trees.json", tmp_path / "trees.svg"
    shapes = ["--shape", "1,1,1", "--shape", "5,3,2"]
    shown = run(*options, *shapes, "--json", str(out), "--figure", str(figure))
    assert shown.exit_code == 0, shown.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert {tuple(tree["shape"]) for tree in record["trees"]} == {(1, 1, 1), (5, 3, 2)}
    assert all(tree["predicted"] > 0 for tree in record["trees"])
    assert tuple(record["chosen"]) in {(1, 1, 1), (5, 3, 2)}
    assert "chosen" in shown.output
    assert "the default for 'cpu' is" in shown.output
    assert record["candidates"] == []
    cost = record["cost"]
    assert (cost["context"], cost["repeats"]) == (16, 1)
    assert [point["size"] for point in cost["verification"]] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 60, 64]
    settings = record["provenance"]["settings"]
    assert (settings["native_products"], settings["dtype"], settings["prompts"]) == (True, "torch.float32", 3)
    assert isinstance(record["provenance"]["machine"]["cpu_multiplies_in_bfloat16"], bool)
    drawn = run("figures", str(out), "--out", str(tmp_path / "again"))
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "again" / "trees.svg").read_bytes() == figure.read_bytes()


def test_finalists_are_those_that_rank_first(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "trees.json"
    shapes = ["--shape", "1,1,1", "--shape", "3,3,1", "--shape", "5,3,2", "--shape", "3,3,1"]
    shown = run(*options, *shapes, "--finalists", "2", "--json", str(out))
    assert shown.exit_code == 0, shown.output
    record = json.loads(out.read_text(encoding="utf-8"))
    ranked = [tuple(candidate["shape"]) for candidate in record["candidates"]]
    assert len(ranked) == 3
    assert {tuple(tree["shape"]) for tree in record["trees"]} == set(ranked[:2])


def test_without_repeats_there_is_no_curve(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "trees.json"
    shown = run(*options, "--shape", "1,1,1", "--repeats", "0", "--json", str(out))
    assert shown.exit_code == 0, shown.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["cost"] is None
    assert record["trees"][0]["predicted"] is None


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--temperature", "-1"], "The temperature is -1"),
        (["--finalists", "2", "--repeats", "0"], "--finalists was given with --repeats 0"),
        (["--shape", "1,2"], "--shape 1,2 was given; three whole numbers are needed"),
        (["--shape", "5,2,2,much"], "--shape 5,2,2,much was given; three whole numbers are needed"),
        (["--shape", "0,2,1"], "`num_assistant_tokens` is 0"),
        (["--shape", "5,2,2,1.5"], "`assistant_confidence_threshold` is 1.5"),
        (["--context", "2"], "over 2 cached positions: give 3 to 249"),
    ],
)
def test_what_does_not_fit_is_refused(options: list[str], more: list[str], told: str) -> None:
    assert told in sentence(ValueError, lambda: _raise(run(*options, *more).exception))


def _raise(error: BaseException | None) -> None:
    assert error is not None
    raise error
