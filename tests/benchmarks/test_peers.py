"""benchmarks/peers.py without economize: its arithmetic, its refusals, and that other tokens are told of."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_eagle3.evaluation.lossless import Judge, Verdict
from hf_eagle3.evaluation.questions import Question
from hf_eagle3.evaluation.timing import Run, Settings, run_plain

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SAME, TIE, OTHER = Verdict(True), Verdict(False, 3, 0.1, 0.2), Verdict(False, 2, 0.5, 0.2)


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The script and its two modules, imported as they are when it is started."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        names = ("peers", "peers_economize", "peers_figures")
        script, economize, figures = (importlib.import_module(name) for name in names)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return SimpleNamespace(script=script, economize=economize, figures=figures)


def test_settings_are_tried_once_each(scripts: Any) -> None:
    half = scripts.economize.settings_to_try([1, 4, 4], [0.0, 0.5], torch.bfloat16)
    assert len(half) == len(set(half)) == 8
    whole = scripts.economize.settings_to_try([1, 4], [0.0], torch.float32)
    assert [(setting.depth, setting.precision) for setting in whole] == [(1, "float32"), (4, "float32")]


@pytest.fixture(scope="module")
def pair(pair_folders: Any) -> tuple[Any, Any, Any]:
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    head = AutoModel.from_pretrained(pair_folders.head).eval()
    return target, AutoTokenizer.from_pretrained(pair_folders.target), head


def told(renderable: Any) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def trial(scripts: Any, name: str, seconds: dict[str, float], verdict: Verdict, file: str = "a") -> Any:
    """Nine tokens in every way: eight forwards after the prompt's plain, four by lookup, two of a tree."""
    tokens = list(range(9))
    runs = {
        "plain": Run(tokens, seconds["plain"], 9),
        "lookup": Run(tokens, seconds["lookup"], 5),
        "ours": Run(tokens, seconds["ours"], 14, acceptance_lengths=[5, 3], tree_levels=[5, 5]),  # 11: a probe's
    }
    return scripts.figures.Trial(Question(file, name, ""), runs, {"lookup": verdict, "ours": SAME})


def test_rows_and_table(scripts: Any) -> None:
    trials = [
        trial(scripts, "1", {"plain": 8.0, "lookup": 4.0, "ours": 4.0}, SAME),
        trial(scripts, "2", {"plain": 8.0, "lookup": 16.0, "ours": 2.0}, TIE),
        trial(scripts, "3", {"plain": 16.0, "lookup": 12.0, "ours": 2.0}, OTHER),
    ]
    rows = {row.way: row for row in scripts.figures.rows_of(trials) if row.file == "a"}
    plain, lookup, ours = rows["plain"], rows["lookup"], rows["ours"]
    assert (plain.acceptance_length, plain.ratio, plain.low, plain.high, plain.total_ratio) == (1, 1, 1, 1, 1)
    assert (lookup.acceptance_length, ours.acceptance_length) == (2.0, 4.0)
    assert (ours.ratio, ours.low, ours.high, ours.total_ratio) == (4.0, 3.0, 6.0, 4.0)
    assert (lookup.ratio, lookup.total_ratio) == (pytest.approx(4 / 3), 1.0)
    assert (lookup.identical, lookup.near_ties, lookup.other) == (1, 1, 1)
    assert (ours.identical, ours.near_ties, ours.other) == (3, 0, 0)
    lines = told(scripts.figures.peers_table(list(rows.values()))).splitlines()
    assert next(line for line in lines if "lookup" in line).split() == (
        ["a", "lookup", "3", "2.00", "1.33", "0.92-1.67", "1.00", "1", "+", "1,", "1", "OTHER"]
    )
    assert next(line for line in lines if "ours" in line).split() == (
        ["ours", "4.00", "4.00", "3.00-6.00", "4.00", "3", "+", "0"]
    )


def test_peers_that_are_not_slower_are_named(scripts: Any) -> None:
    trials = [
        trial(scripts, "1", {"plain": 8.0, "lookup": 2.0, "ours": 4.0}, SAME),
        trial(scripts, "1", {"plain": 8.0, "lookup": 6.0, "ours": 2.0}, SAME, file="b"),
    ]
    assert [row.file for row in scripts.figures.rows_of(trials)] == ["a"] * 3 + ["b"] * 3 + ["all"] * 3
    assert scripts.figures.figures_of(trials)["ahead_of_ours"] == {"lookup": ["a"]}
    assert scripts.figures.ending(trials) == ["lookup is not slower than ours on a."]


def test_other_tokens_are_told_of(scripts: Any, pair: tuple[Any, Any, Any]) -> None:
    target, tokenizer, head = pair
    ways = scripts.script.ways_of(target, head, None, lookup=True)

    def wrong(inputs: Any, settings: Settings) -> Run:
        run = run_plain(target, inputs, settings)
        return dataclasses.replace(run, tokens=[*run.tokens[:3], (run.tokens[3] + 1) % 60, *run.tokens[4:]])

    questions = [Question("a", "7", "w1 w2 w3"), Question("a", "8", "w9 w8 w7")]
    given = {**ways, "economize": wrong}
    trials = scripts.script.measure(target, tokenizer, Judge(target, head), given, questions, Settings(12))
    rows = {row.way: row for row in scripts.figures.rows_of(trials)}
    assert (rows["economize"].identical, rows["economize"].other) == (0, 2)
    assert rows["ours"].identical == rows["lookup"].identical == 2
    lines = scripts.figures.ending(trials)[:2]
    assert [line.split(":")[0] for line in lines] == ["a 7, economize", "a 8, economize"]
    assert all("identical: NO, from token 3 on" in line for line in lines)
    assert "2 OTHER" in told(scripts.figures.peers_table(list(rows.values())))


def test_every_way_begins_in_its_turn(scripts: Any, pair: tuple[Any, Any, Any]) -> None:
    target, tokenizer, head = pair
    order: list[str] = []

    def way(name: str) -> Any:
        def run(inputs: Any, settings: Settings) -> Run:
            order.append(name if settings.max_new_tokens == 9 else f"{name} warms up")
            return Run([1], 1.0, 1)

        return run

    names = ("plain", "lookup", "ours")
    ways = {name: way(name) for name in names}
    questions = [Question("a", str(number), "w1") for number in range(3)]
    scripts.script.measure(target, tokenizer, Judge(target, head), ways, questions, Settings(9))
    assert order[:3] == [f"{name} warms up" for name in names]
    assert order[3:] == ["plain", "lookup", "ours", "lookup", "ours", "plain", "ours", "plain", "lookup"]


def test_without_economize_nothing_is_loaded_and_the_sentence_says_what_to_do(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(scripts.script, "load_pair", lambda *_, **__: pytest.fail("it was loaded"))
    assert scripts.script.main(["--questions", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "pip install --no-deps --target DIR economize==0.3.2" in error
    assert "--without economize" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", [["--economize-depths", "0"], ["--economize-confidences", "1.5"], ["--limit", "x"]])
def test_numbers_that_cannot_be_are_refused(
    scripts: Any, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scripts.script.main(["--questions", "q", *option])
    assert f"error: argument {option[0]}: " in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    param_dtype: str = "float32"


@dataclasses.dataclass
class Checkpoint:
    configs: list[HeadConfig]


class SlowPeer:
    """Answers as plain `generate` does; chains of other lengths than two cost it time."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def eval(self) -> SlowPeer:
        return self

    def decode(self, ids: torch.Tensor, length: int, decoding: Any, stop: int) -> Any:
        assert stop == self._target.generation_config.eos_token_id
        time.sleep(0.0 if decoding["cycle_length"] == 3 else 0.1)
        answer = self._target.generate(ids, max_new_tokens=length, do_sample=False)[0, ids.shape[1] :]
        return SimpleNamespace(tokens=answer, cost=["exact"] * len(answer))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A package of economize's name; what it was given to read."""
    seen: dict[str, Any] = {}
    module: Any = ModuleType("economize")
    module.__spec__ = importlib.machinery.ModuleSpec("economize", None)
    module.__version__ = "0.3.2"

    def read_checkpoint(folder: Path) -> Checkpoint:
        seen["config"] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Checkpoint([HeadConfig()])

    module.read_checkpoint = read_checkpoint
    module.attach = lambda target, checkpoint: SlowPeer(target)
    module.DecodeConfig = lambda **given: given
    monkeypatch.setitem(sys.modules, "economize", module)
    return seen


def test_from_end_to_end_with_a_pretended_economize(
    scripts: Any,
    pair: tuple[Any, Any, Any],
    pretended: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(scripts.script, "load_pair", lambda *_, **__: pair)
    for file in ("a", "b"):
        (tmp_path / f"{file}.jsonl").write_text('{"turns": ["w1 w2"]}\n{"turns": ["w5 w4 w3"]}\n', encoding="utf-8")
    path = tmp_path / "new" / "record.json"
    given = ["--questions", str(tmp_path), "--max-new-tokens", "6", "--trial-tokens", "4", "--trial-prompts", "2"]
    sizes = ["--economize-depths", "1", "2", "4", "--economize-confidences", "0"]
    assert scripts.script.main([*given, *sizes, "--dtype", "float32", "--json", str(path)]) == 0
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["complete"] is True
    assert "draft_vocab_size" in pretended["config"]  # the released layout, which economize knows by this
    assert record["economize"]["setting"] == {"depth": 2, "confidence": 0.0, "precision": "float32"}
    assert record["economize"]["trials"][0]["setting"]["depth"] == 2
    assert len(record["economize"]["trials"]) == 3
    assert record["provenance"]["packages"]["economize"] == "0.3.2"
    assert [(row["file"], row["way"]) for row in record["rows"]] == [
        (file, way) for file in ("a", "b", "all") for way in ("plain", "lookup", "economize", "ours")
    ]
    assert all(row["other"] == 0 for row in record["rows"])
    assert [row["acceptance_length"] for row in record["rows"] if row["way"] == "economize"] == [1.0] * 3
    assert len(record["questions"]) == 4
    assert set(record["questions"][0]["runs"]) == {"plain", "lookup", "economize", "ours"}
    assert set(record["questions"][0]["verdicts"]) == {"lookup", "economize", "ours"}


@pytest.mark.parametrize(("verdict", "status"), [(SAME, 0), (TIE, 0), (OTHER, 1)])
def test_the_status_tells_of_our_own_answers(
    scripts: Any,
    pair: tuple[Any, Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verdict: Verdict,
    status: int,
) -> None:
    monkeypatch.setattr(scripts.script, "load_pair", lambda *_, **__: pair)
    monkeypatch.setattr(Judge, "rule", lambda *_: verdict)
    (tmp_path / "a.jsonl").write_text('{"turns": ["w1 w2"]}\n', encoding="utf-8")
    given = ["--questions", str(tmp_path), "--max-new-tokens", "4", "--without", "economize", "lookup"]
    assert scripts.script.main(given) == status


def test_a_file_without_questions_is_refused(scripts: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("", encoding="utf-8")
    assert scripts.script.main(["--questions", str(tmp_path), "--without", "economize"]) == 1
    assert "holds no question" in capsys.readouterr().err
