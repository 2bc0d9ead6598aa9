"""One evaluation: every question at every temperature, shown as it ends, written down with its provenance."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from hashlib import sha256
from json import dumps as json_text
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from .. import embedded
from ..fingerprint import model_fingerprint
from ..pairing import tree_shape
from . import figures, report
from .journal import Journal
from .questions import Question, encode_chat
from .records import head_name, trained_tokens
from .shares import Spent, measure_time
from .speed import Speed, Trial, measure, summarise
from .timing import Settings

# Of each file so many questions are answered once more to see where the time goes.
SHARED_QUESTIONS = 3


class Measurement:
    """One `hf-eagle3 eval`: rounds of questions at one temperature after the other, shown as they end.

    Args:
        pair: target, tokenizer and head.
        asked: the questions of each file.
        settings: of the rounds, which differ in their temperature alone.
        json: the record to write. What was measured lies in a [`Journal`] beside it until then, and is not measured
            again.
        lossless: compare tokens; times are of no account.
        lookup: whether prompt lookup is timed too.
        shares: whether it is measured, apart, where the time goes.
        label: what the record is called; the head's name if not given.

    Raises:
        ValueError: an interrupted evaluation of something else wrote to the same record.
    """

    def __init__(
        self,
        pair: tuple[Any, Any, Any],
        asked: dict[str, list[Question]],
        settings: Sequence[Settings],
        console: Console,
        *,
        json: Path | None = None,
        lossless: bool = False,
        lookup: bool = False,
        shares: bool = True,
        label: str | None = None,
    ) -> None:
        self.pair, self.asked, self.settings, self.console = pair, asked, settings, console
        self.json, self.lossless, self.lookup, self.shares = json, lossless, lookup, shares and not lossless
        head = pair[2].name_or_path
        self.label, self.training_tokens = label or head_name(head), trained_tokens(head)
        self.rows: list[Speed] = []
        self.means: list[dict[str, float]] = []
        self.answers: list[dict[str, Any]] = []
        self.wrong = False
        self._journal = Journal(json, self._wanted())

    def run(self) -> None:
        """Measure and show all rounds."""
        if len(self._journal):
            self.console.print(f"going on after {len(self._journal)} answers: {self._journal.path}", highlight=False)
        for settings in self.settings:
            self._round(settings)

    def write(self, folder: Path | None) -> None:
        """The record with its provenance, and the figures drawn of it, where they were asked for."""
        model = self.pair[0]
        where = f"{report.cpu_model()}, {model.device}, {str(model.dtype).removeprefix('torch.')}"
        self.console.print(where, highlight=False)
        record = self._record()
        if self.json is not None:
            report.write_json(self.json, record)
            self._journal.end()
        if folder is not None:
            for path in figures.draw_all([record], folder):
                self.console.print(str(path), highlight=False)

    def _round(self, settings: Settings) -> None:
        trials = self._trials(settings)
        rows = self._summarise(trials, settings)
        means = _means(rows[:-1])
        if self.lossless:
            _show_agreement(trials, rows, self.console)
        else:
            _show_speed(trials, rows, means, self.console)
        self.rows += rows
        self.means.append(means)
        self.answers += [{"temperature": settings.temperature, **report.trial_record(trial)} for trial in trials]
        self.wrong |= any(trial.verdict is not None and not trial.verdict.lossless for trial in trials)

    def _record(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "training_tokens": self.training_tokens,
            "lossless": self.lossless,
            "provenance": report.provenance(self._asked_for()),
            "files": [dataclasses.asdict(row) for row in self.rows],
            "means": self.means,
            "questions": self.answers,
        }

    def _wanted(self) -> dict[str, Any]:
        """What the answers in a journal must have been measured for, to be taken as they are."""
        text = json_text([dataclasses.astuple(question) for question in self._questions()])
        asked = {"lossless": self.lossless, "lookup": self.lookup, "questions": sha256(text.encode()).hexdigest()}
        weights = {name: model_fingerprint(self.pair[place]) for name, place in (("target", 0), ("head", 2))}
        return {**asked, "weights": weights, **report.provenance(self._asked_for())}

    def _questions(self) -> list[Question]:
        return [question for of_file in self.asked.values() for question in of_file]

    def _asked_for(self) -> dict[str, Any]:
        """Every setting that the figures depend on, those that were left to the pair and its device included."""
        model, _, head = self.pair
        settings = self.settings[0]
        return {
            **dataclasses.asdict(settings),
            "tree": dataclasses.asdict(tree_shape(model, head, dict(settings.tree), None)),
            "temperature": [each.temperature for each in self.settings],
            "target": embedded.public_name(model.name_or_path),
            "head": embedded.public_name(head.name_or_path),
            "generation_config": model.generation_config.to_diff_dict(),
            "dtype": str(model.dtype),
            "device": str(model.device),
        }

    def _trials(self, settings: Settings) -> list[Trial]:
        model, tokenizer, head = self.pair
        questions, there = self._questions(), self._journal.answered(settings.temperature)
        with Progress(console=self.console, transient=True) as progress:
            name = f"questions, temperature {settings.temperature:g}"
            task = progress.add_task(name, total=len(questions), completed=len(there))

            def keep(number: int, trial: Trial) -> None:
                self._journal.add(settings.temperature, number, trial)
                progress.advance(task)

            return measure(model, tokenizer, head, questions, settings, self.lookup, there, keep)

    def _summarise(self, trials: list[Trial], settings: Settings) -> list[Speed]:
        rows: list[Speed] = []
        spent = Spent()
        for name, questions in self.asked.items():
            own = [trial for trial in trials if trial.question.file == name]
            shares = None
            if self.shares:
                of_file = self._time(questions[:SHARED_QUESTIONS], settings)
                spent, shares = spent + of_file, of_file.shares
            rows.append(summarise(name, own, settings.temperature, shares))
        rows.append(summarise("all", trials, settings.temperature, spent.shares if self.shares else None))
        return rows

    def _time(self, questions: Sequence[Question], settings: Settings) -> Spent:
        model, tokenizer, head = self.pair
        prompts = [encode_chat(tokenizer, question.text, model.device) for question in questions]
        return measure_time(model, head, prompts, settings)


def _means(rows: Sequence[Speed]) -> dict[str, float]:
    """Over the files, each of which weighs the same however many questions it has."""
    names = ("acceptance_length", "ratio", "tokens_per_second", "plain_tokens_per_second")
    means = {name: statistics.fmean(getattr(row, name) for row in rows) for name in names}
    return {"temperature": rows[0].temperature, **means}


def _show_speed(trials: list[Trial], rows: list[Speed], means: dict[str, float], console: Console) -> None:
    console.print(f"temperature {rows[0].temperature:g}", style="bold")
    console.print(report.speed_table(rows))
    if any(row.acceptance_rates for row in rows):
        console.print(report.positions_table(rows))
    _show_differences(trials, console)
    lowest = min(row.ratio for row in rows[:-1])
    console.print(
        f"mean of the files' ratios {means['ratio']:.2f}, lowest {lowest:.2f}; of their acceptance lengths "
        f"{means['acceptance_length']:.2f} (bonus included)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _show_agreement(trials: list[Trial], rows: list[Speed], console: Console) -> None:
    _show_differences(trials, console)
    verdicts = [trial.verdict for trial in trials if trial.verdict is not None]
    line = report.lossless_line(verdicts, rows[-1].acceptance_length)
    console.print(line, highlight=False, soft_wrap=True)


def _show_differences(trials: list[Trial], console: Console) -> None:
    """Where the drafted answer parts from the plain one, and by how much the two tokens' logits differ there."""
    for trial in trials:
        if trial.verdict is not None and not trial.verdict.identical:
            line = f"{trial.question.file} {trial.question.name}: {trial.verdict}"
            console.print(line, highlight=False, soft_wrap=True)
