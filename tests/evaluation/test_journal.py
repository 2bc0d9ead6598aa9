"""A stopped evaluation goes on where it was, and never takes up what was measured for something else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_eagle3.evaluation import speed
from hf_eagle3.evaluation.journal import Journal
from hf_eagle3.evaluation.lossless import Verdict
from hf_eagle3.evaluation.measurement import Measurement
from hf_eagle3.evaluation.questions import Question
from hf_eagle3.evaluation.speed import Trial
from hf_eagle3.evaluation.timing import Run, Settings

ASKED = {"lossless": False, "settings": {"max_new_tokens": 8, "tree": (9, 5, 4)}}


def trial(name: str, verdict: Verdict | None = None) -> Trial:
    runs = {"plain": Run([1, 2], 0.5, 2), "drafted": Run([1, 2], 0.25, 2, [1], [3])}
    return Trial(Question("file", name, "wörter\n"), runs, verdict)


def begun(record: Path) -> Path:
    return record.with_name(f".{record.name}.begun")


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    record = tmp_path / "speed.json"
    journal = Journal(record, ASKED)
    told = [trial("a", Verdict(False, 1, 0.125, 0.5)), trial("b", Verdict(True)), trial("c")]
    journal.add(0.0, 0, told[0])
    journal.add(0.0, 3, told[1])
    journal.add(1.0, 0, told[2])
    again = Journal(record, ASKED)
    assert len(again) == 3
    assert again.answered(0.0) == {0: told[0], 3: told[1]}
    assert again.answered(1.0) == {0: told[2]}
    again.end()
    assert list(tmp_path.iterdir()) == []
    assert len(Journal(record, ASKED)) == 0


@pytest.mark.parametrize("torn", range(1, 40, 3))
def test_killed_in_the_middle_of_a_line(tmp_path: Path, torn: int) -> None:
    record = tmp_path / "speed.json"
    journal = Journal(record, ASKED)
    journal.add(0.0, 0, trial("a"))
    journal.add(0.0, 1, trial("b"))
    begun(record).write_bytes(begun(record).read_bytes()[:-torn])
    again = Journal(record, ASKED)
    assert again.answered(0.0) == {0: trial("a")}
    again.add(0.0, 1, trial("b"))
    assert Journal(record, ASKED).answered(0.0) == {0: trial("a"), 1: trial("b")}


def test_killed_before_the_first_line_stood(tmp_path: Path) -> None:
    record = tmp_path / "speed.json"
    begun(record).write_text('{"lossle')
    Journal(record, ASKED).add(0.0, 0, trial("a"))
    assert Journal(record, ASKED).answered(0.0) == {0: trial("a")}


def test_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    record = tmp_path / "speed.json"
    Journal(record, ASKED).add(0.0, 0, trial("a"))
    there = begun(record).read_bytes()
    changed = {**ASKED, "settings": {"max_new_tokens": 128, "tree": (9, 5, 4)}}
    with pytest.raises(ValueError, match=r"1 answers .* settings\.max_new_tokens was 8 and is 128: ask for the same"):
        Journal(record, changed)
    assert begun(record).read_bytes() == there


@pytest.mark.parametrize("text", ["no json\n", '{"lossless": false}\n{"temperature": 0}\n', "[]\n"])
def test_what_is_no_journal_is_refused(tmp_path: Path, text: str) -> None:
    record = tmp_path / "speed.json"
    begun(record).write_text(text)
    with pytest.raises(ValueError, match=r"no journal of an evaluation .* delete it to begin again"):
        Journal(record, ASKED)
    assert begun(record).read_text() == text


def test_without_a_record_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, ASKED)
    journal.add(0.0, 0, trial("a"))
    assert journal.answered(0.0) == {0: trial("a")}
    journal.end()
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """What nothing catches."""


def test_an_evaluation_goes_on_where_it_was_killed(
    pair_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    head = AutoModel.from_pretrained(pair_folders.head).eval()
    pair = target, AutoTokenizer.from_pretrained(pair_folders.target), head
    asked = {name: [Question(name, str(n), f"w{n} w{n + 1}") for n in range(3)] for name in ("easy", "hard")}
    measured: list[tuple[float, str, int]] = []
    run_modes, kill_at = speed.run_modes, [4, 5, 99]

    def counted(model: Any, head: Any, inputs: Any, settings: Settings, turn: int, lookup: bool) -> dict[str, Run]:
        if len(measured) == kill_at[0]:
            raise Killed
        runs = run_modes(model, head, inputs, settings, turn, lookup)
        measured.append((settings.temperature, next(iter(runs)), turn))
        return runs

    monkeypatch.setattr(speed, "run_modes", counted)
    record = tmp_path / "speed.json"

    def evaluate(temperatures: Sequence[float]) -> str:
        console = Console(record=True, width=200)
        settings = [Settings(8, temperature) for temperature in temperatures]
        measurement = Measurement(pair, asked, settings, console, json=record, shares=False)
        measurement.run()
        measurement.write(None)
        return console.export_text()

    for _ in range(2):
        with pytest.raises(Killed):
            evaluate([0.0, 1.0])
        assert not record.exists()
        kill_at.pop(0)
    with pytest.raises(ValueError, match=r"5 answers .* settings.temperature was \[0.0, 1.0\] and is \[0.0\]"):
        evaluate([0.0])
    weight = head.layers[0].mlp.down_proj.weight.data
    kept = weight.clone()
    weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"5 answers .* weights\.head was"):
        evaluate([0.0, 1.0])
    weight.copy_(kept)
    assert "going on after 5 answers" in evaluate([0.0, 1.0])
    # Each once, in the turns of a run that was never interrupted.
    turns = [(number, ("plain", "drafted")[number % 2]) for number in range(6)]
    assert measured == [(temperature, mode, number) for temperature in (0.0, 1.0) for number, mode in turns]
    written = json.loads(record.read_text())
    answers = [(line["temperature"], line["file"], line["question"]) for line in written["questions"]]
    assert answers == [(t, file, str(n)) for t in (0.0, 1.0) for file in ("easy", "hard") for n in range(3)]
    assert written["files"][0]["identical"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
