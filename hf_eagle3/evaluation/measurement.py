"""One evaluation: every question at every temperature, shown as it ends, written down with its provenance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..pairing import tree_shape
from . import figures, report
from .questions import Question, encode_chat
from .shares import Shares, measure_shares
from .speed import Speed, Trial, measure, summarise
from .timing import Settings


class Measurement:
    """One `hf-eagle3 eval`: rounds of questions at one temperature after the other, shown as they end.

    Args:
        pair: target, tokenizer and head.
        asked: the questions of each file.
        lookup: whether prompt lookup is timed too.
        shares: whether it is measured, apart, where the time goes.
    """

    def __init__(
        self,
        pair: tuple[Any, Any, Any],
        asked: dict[str, list[Question]],
        console: Console,
        lookup: bool = False,
        shares: bool = True,
    ) -> None:
        self.pair, self.asked, self.console, self.lookup, self.shares = pair, asked, console, lookup, shares
        self.rows: list[Speed] = []
        self.answers: list[dict[str, Any]] = []
        self.settings: list[Settings] = []
        self.wrong = False

    def run(self, settings: Settings, lossless: bool) -> None:
        """Measure and show one temperature."""
        trials = self._trials(settings)
        rows = self._summarise(trials, settings)
        (_show_agreement if lossless else _show_speed)(trials, rows, self.console)
        self.rows += rows
        self.answers += [{"temperature": settings.temperature, **report.trial_record(trial)} for trial in trials]
        self.settings.append(settings)
        self.wrong |= any(trial.verdict is not None and not trial.verdict.lossless for trial in trials)

    def write(self, json: Path | None, folder: Path | None) -> None:
        """The record with its provenance, and the figures drawn of it, where they were asked for."""
        model = self.pair[0]
        where = f"{report.cpu_model()}, {model.device}, {str(model.dtype).removeprefix('torch.')}"
        self.console.print(where, highlight=False)
        asked = {**dataclasses.asdict(self.settings[0]), "dtype": str(model.dtype), "device": str(model.device)}
        asked["temperature"] = [settings.temperature for settings in self.settings]
        files = [dataclasses.asdict(row) for row in self.rows]
        record = {"provenance": report.provenance(asked), "files": files, "questions": self.answers}
        if json is not None:
            report.write_json(json, record)
        if folder is not None:
            for path in figures.draw_all([record], folder):
                self.console.print(str(path), highlight=False)

    def _trials(self, settings: Settings) -> list[Trial]:
        model, tokenizer, head = self.pair
        questions = [question for of_file in self.asked.values() for question in of_file]
        with Progress(console=self.console, transient=True) as progress:
            task = progress.add_task(f"questions, temperature {settings.temperature:g}", total=len(questions))
            return measure(
                model, tokenizer, head, questions, settings, self.lookup, lambda _: progress.advance(task)
            )

    def _summarise(self, trials: list[Trial], settings: Settings) -> list[Speed]:
        model, _, head = self.pair
        depth = tree_shape(model, head, dict(settings.tree), None).tree_depth
        rows = []
        for name in self.asked:
            own = [trial for trial in trials if trial.question.file == name]
            rows.append(summarise(name, own, settings, depth, self._shares(self.asked[name][:1], settings)))
        first = [of_file[0] for of_file in self.asked.values() if of_file]
        rows.append(summarise("all", trials, settings, depth, self._shares(first, settings)))
        return rows

    def _shares(self, questions: list[Question], settings: Settings) -> Shares | None:
        if not self.shares:
            return None
        model, tokenizer, head = self.pair
        prompts = [encode_chat(tokenizer, question.text, model.device) for question in questions]
        return measure_shares(model, head, prompts, settings)


def _show_speed(trials: list[Trial], rows: list[Speed], console: Console) -> None:
    console.print(f"temperature {rows[0].temperature:g}", style="bold")
    console.print(report.speed_table(rows))
    if any(row.acceptance_rates for row in rows):
        console.print(report.positions_table(rows))
    ratios = [row.ratio for row in rows[:-1]]
    mean, length = (sum(values) / len(values) for values in (ratios, [row.acceptance_length for row in rows[:-1]]))
    console.print(
        f"mean of the files' ratios {mean:.2f}, lowest {min(ratios):.2f}; of their acceptance lengths {length:.2f}",
        highlight=False,
    )


def _show_agreement(trials: list[Trial], rows: list[Speed], console: Console) -> None:
    for trial in trials:
        if trial.verdict is not None and not trial.verdict.identical:
            line = f"{trial.question.file} {trial.question.name}: {trial.verdict}"
            console.print(line, highlight=False, soft_wrap=True)
    verdicts = [trial.verdict for trial in trials if trial.verdict is not None]
    line = report.lossless_line(verdicts, rows[-1].acceptance_length)
    console.print(line, highlight=False, soft_wrap=True)
