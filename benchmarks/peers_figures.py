"""What a run beside the peers comes to: rows, a table, and whose answers are not plain `generate`'s.

Knows nothing of how an answer was made.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from hf_eagle3.evaluation.lossless import Verdict
from hf_eagle3.evaluation.questions import Question
from hf_eagle3.evaluation.speed import quartiles
from hf_eagle3.evaluation.timing import Run

PLAIN, LOOKUP, ECONOMIZE, OURS, TOGETHER = "plain", "lookup", "economize", "ours", "all"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One question, answered in every way; verdicts on all but the plain answer."""

    question: Question
    runs: Mapping[str, Run]
    verdicts: Mapping[str, Verdict]

    def ratio(self, way: str) -> float:
        """Tokens per second over those of plain `generate`."""
        return self.runs[way].tokens_per_second / self.runs[PLAIN].tokens_per_second


@dataclasses.dataclass(frozen=True)
class Row:
    """What one way came to on one file, or on all together.

    Args:
        acceptance_length: tokens per forward of the target, bonus included, the prompt's forward and its token left
            out: over all forwards, so that long answers weigh more.
        ratio, low, high: wall clock against plain `generate`: the median of the questions' ratios, their quartiles.
        total_ratio: the same from the sums of tokens and seconds.
        identical, near_ties, other: answers with plain's tokens, with others by rounding alone, with others.
    """

    file: str
    way: str
    questions: int
    acceptance_length: float
    ratio: float
    low: float
    high: float
    total_ratio: float
    identical: int
    near_ties: int
    other: int


def acceptance_length(runs: Sequence[Run]) -> float:
    """Tokens per forward of the target after the prompt's, bonus included; 1.0 where no such forward was made.

    Lookup's first forward may already accept drafts: they count here, a little in its favour.
    """
    forwards = sum(len(run.acceptance_lengths) or run.forwards - 1 for run in runs)
    return sum(len(run.tokens) - 1 for run in runs) / forwards if forwards else 1.0


def rows_of(trials: Sequence[Trial]) -> list[Row]:
    """The rows of each file, plain's among them, and then those of all files together."""
    by_file: dict[str, list[Trial]] = {}
    for trial in trials:
        by_file.setdefault(trial.question.file, []).append(trial)
    by_file[TOGETHER] = list(trials)
    return [_row(file, way, own) for file, own in by_file.items() for way in own[0].runs]


def _row(file: str, way: str, trials: Sequence[Trial]) -> Row:
    ratios = [trial.ratio(way) for trial in trials]
    verdicts = [trial.verdicts[way] for trial in trials if way in trial.verdicts]
    return Row(
        file,
        way,
        len(trials),
        acceptance_length([trial.runs[way] for trial in trials]),
        statistics.median(ratios),
        *quartiles(ratios),
        _overall_rate(trials, way) / _overall_rate(trials, PLAIN),
        identical=sum(verdict.identical for verdict in verdicts),
        near_ties=sum(verdict.lossless and not verdict.identical for verdict in verdicts),
        other=sum(not verdict.lossless for verdict in verdicts),
    )


def _overall_rate(trials: Sequence[Trial], way: str) -> float:
    return sum(len(trial.runs[way].tokens) for trial in trials) / sum(trial.runs[way].seconds for trial in trials)


def peers_table(rows: Sequence[Row]) -> Table:
    """One section a file, one line a way; plain's, all ones, is left out."""
    caption = (
        "n: questions; length: tokens per target forward, bonus included; ratio: tokens/s over plain generate's, "
        "median of the questions; totals: the same of all tokens together; answers: plain's tokens + near ties"
    )
    table = Table(caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", no_wrap=True)
    table.add_column("way", no_wrap=True)
    for heading in ("n", "length", "ratio", "quartiles", "totals", "answers"):
        table.add_column(heading, justify="right", no_wrap=True)
    for _, section in itertools.groupby((row for row in rows if row.way != PLAIN), key=lambda row: row.file):
        lines = list(section)
        for row in lines:
            first = row is lines[0]
            figures = (f"{row.acceptance_length:.2f}", f"{row.ratio:.2f}", f"{row.low:.2f}-{row.high:.2f}")
            answers = f"{row.identical} + {row.near_ties}" + (f", {row.other} OTHER" if row.other else "")
            cells = (*figures, f"{row.total_ratio:.2f}", answers)
            name, count = (row.file, str(row.questions)) if first else ("", "")
            table.add_row(name, row.way, count, *cells, end_section=row is lines[-1])
    return table


def ahead_of_ours(rows: Sequence[Row]) -> dict[str, list[str]]:
    """For each peer the files on which its median ratio is not below ours."""
    ours = {row.file: row.ratio for row in rows if row.way == OURS}
    ahead: dict[str, list[str]] = {}
    for row in rows:
        if row.way != OURS and row.ratio >= ours[row.file]:
            ahead.setdefault(row.way, []).append(row.file)
    return ahead


def ending(trials: Sequence[Trial]) -> list[str]:
    """A line for each answer that is not plain's: whose, where, and whether rounding explains it; then one for each
    peer that is not slower than ours somewhere.
    """
    lines = []
    for trial in trials:
        for way, verdict in trial.verdicts.items():
            if not verdict.identical:
                lines.append(f"{trial.question.file} {trial.question.name}, {way}: {verdict}")
    for way, files in ahead_of_ours(rows_of(trials)).items():
        lines.append(f"{way} is not slower than ours on {', '.join(files)}.")
    return lines


def figures_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """The rows, the files on which a peer is not slower than ours, and every question, as plain data."""
    rows = rows_of(trials)
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "ahead_of_ours": ahead_of_ours(rows),
        "questions": [_trial_record(trial) for trial in trials],
    }


def _trial_record(trial: Trial) -> dict[str, Any]:
    runs = {}
    for way, run in trial.runs.items():
        counts = {"tokens": len(run.tokens), "seconds": round(run.seconds, 4), "forwards": run.forwards}
        runs[way] = {**counts, "acceptance_length": acceptance_length([run])}
    verdicts = {way: dataclasses.asdict(verdict) for way, verdict in trial.verdicts.items()}
    return {"file": trial.question.file, "question": trial.question.name, "runs": runs, "verdicts": verdicts}
