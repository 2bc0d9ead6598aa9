"""From trials to figures to tables and files."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_eagle3.evaluation import report
from hf_eagle3.evaluation.lossless import Verdict
from hf_eagle3.evaluation.questions import Question
from hf_eagle3.evaluation.shares import Shares
from hf_eagle3.evaluation.speed import Trial, measure, summarise
from hf_eagle3.evaluation.timing import Run, Settings


def trial(plain: float, drafted: float, lengths: list[int], verdict: Verdict | None = None, tokens: int = 10) -> Trial:
    """A trial of `tokens` tokens that took so many seconds each way; its verifications of trees of three levels end it
    with their bonus token, once the rest was verified one by one."""
    lengths = [*lengths, *([1] * (tokens - 1 - sum(lengths)))]
    runs = {
        "plain": Run([5] * tokens, plain, tokens),
        "drafted": Run([5] * tokens, drafted, 1 + len(lengths), lengths, [3] * len(lengths)),
    }
    return Trial(Question("easy", "1", "w1"), runs, verdict)


def test_summary_of_known_trials() -> None:
    same = Verdict(identical=True)
    tie = Verdict(identical=False, position=3, gap=0.1, tolerance=0.5)
    wrong = Verdict(identical=False, position=3, gap=9.0, tolerance=0.5)
    trials = [
        trial(4, 2, [3, 1], same, tokens=5), trial(3, 3, [2], tie, tokens=3), trial(6, 2, [1, 1, 4], wrong, tokens=7),
    ]  # fmt: skip
    row = summarise("easy", trials, 0.0)
    assert (row.questions, row.identical, row.near_ties, row.mismatches) == (3, 1, 1, 1)
    assert row.acceptance_length == pytest.approx(12 / 6)
    assert (row.ratio, row.low, row.high) == pytest.approx((2.0, 1.5, 2.5))
    assert (row.tokens_per_second, row.plain_tokens_per_second) == pytest.approx((15 / 7, 15 / 13))
    assert row.total_ratio == pytest.approx((15 / 7) / (15 / 13))
    assert row.acceptance_counts == [(3, 6), (2, 3), (1, 2)]
    assert row.acceptance_rates == pytest.approx([1 / 2, 2 / 3, 1 / 2])
    assert row.lookup_ratio is None


def test_one_trial_is_its_own_quartiles_and_none_is_an_error() -> None:
    row = summarise("easy", [trial(3, 2, [2])])
    assert (row.ratio, row.low, row.high) == pytest.approx((1.5, 1.5, 1.5))
    with pytest.raises(ValueError, match="no question to summarise"):
        summarise("easy", [])


def test_table_shows_what_was_measured() -> None:
    """Uncut in eighty columns."""
    console = Console(width=80, record=True, file=StringIO())
    same = Verdict(identical=True)
    rows = [summarise(name, [trial(3, 2, [2, 3], same, tokens=6)]) for name in ("easy", "all")]
    console.print(report.speed_table(rows))
    shown = " ".join(console.export_text().split())
    assert "…" not in shown
    assert "bonus included" in shown
    assert "easy" in shown
    assert "2.50" in shown
    assert "1.50" in shown
    assert "prompt lookup" not in shown
    assert "3.0, 2.0" in shown  # six tokens in two seconds, and in three


def test_positions_that_few_verifications_tell_of_stand_in_brackets() -> None:
    console = Console(width=160, record=True, file=StringIO())
    rows = [summarise("all", [trial(3, 2, [2] * 9 + [3], tokens=22)], shares=Shares(0.5, 0.3, 0.2))]
    console.print(report.positions_table(rows))
    shown = console.export_text()
    assert "1.00" in shown  # ten of ten
    assert "0.10 " in shown  # one of ten
    assert "(0.00)" in shown  # none of one
    assert "50% / 30% / 20%" in shown


def test_lossless_line_counts_rulings() -> None:
    verdicts = [Verdict(True), Verdict(False, 2, 0.004, equal_in_float64=True), Verdict(False, 2, 3.0)]
    line = report.lossless_line(verdicts, 1.7)
    assert "3 questions · 1 identical · 1 the same in float64, widest gap 0.004 · 1 mismatches" in line
    assert "acceptance length 1.70" in line


def test_json_is_whole_and_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "results" / "speed.json"
    questions = [report.trial_record(trial(3, 2, [2], tokens=3))]
    report.write_json(path, {"provenance": report.provenance({"dtype": "bfloat16"}), "questions": questions})
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read["provenance"]["machine"]["cpu"]
    assert read["provenance"]["packages"]["transformers"].startswith("5.23")
    assert read["provenance"]["settings"] == {"dtype": "bfloat16"}
    assert read["questions"][0]["runs"]["drafted"] == {"tokens": 3, "forwards": 2, "seconds": 2}
    assert read["questions"][0]["tree_levels"] == [3]
    assert [entry.name for entry in path.parent.iterdir()] == ["speed.json"]


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    report.write_json(path, {"run": 1})
    with pytest.raises(TypeError):
        report.write_json(path, {"run": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"run": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_measuring_a_real_pair(pair_folders) -> None:
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    head = AutoModel.from_pretrained(pair_folders.head).eval()
    tokenizer = AutoTokenizer.from_pretrained(pair_folders.target)
    questions = [Question("easy", str(n), f"w{n} w{n + 1}") for n in range(3)]
    heard: dict[int, Trial] = {}
    short = Settings(max_new_tokens=8)
    trials = measure(target, tokenizer, head, questions, short, lookup=True, done=heard.__setitem__)
    assert [heard[number] for number in range(3)] == trials
    assert [next(iter(trial.runs)) for trial in trials] == ["plain", "drafted", "lookup"]
    assert all(trial.verdict is not None and trial.verdict.identical for trial in trials)
    row = summarise("easy", trials)
    assert row.lookup_ratio is not None
    assert row.acceptance_length >= 1.0
    sampled = measure(target, tokenizer, head, questions[:1], Settings(max_new_tokens=8, temperature=1.0))
    assert sampled[0].verdict is None
