"""What heads of growing shares of the data tell together: a table, the gain of each doubling, and the figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from hf_eagle3.evaluation.canvas import COLOURS, DASHES, MARKERS, canvas, style, write
from hf_eagle3.evaluation.records import shape_in_words

Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Spread:
    """A line of points that were measured several times: of each the mean, the lowest and the highest."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


def spreads(runs: Runs, tree: str) -> list[Spread]:
    """For each objective the acceptance length with `tree` against answer tokens: mean, lowest and highest of the
    seeds at each share."""
    found = []
    for objective in dict.fromkeys(run["objective"] for run in runs):
        own = [run for run in runs if run["objective"] == objective]
        x, y, low, high = [], [], [], []
        for share in sorted({run["share"] for run in own}):
            at = [run for run in own if run["share"] == share]
            lengths = [run["acceptance"][tree]["acceptance_length"] for run in at]
            x.append(statistics.fmean(run["answer_tokens"] for run in at))
            y.append(statistics.fmean(lengths))
            low.append(min(lengths))
            high.append(max(lengths))
        found.append(Spread(objective, x, y, low, high))
    return found


def gain_per_doubling(line: Spread) -> float | None:
    """Acceptance length that twice the answer tokens add, by least squares over all shares; None for one share."""
    if len(line.x) < 2:
        return None
    return statistics.linear_regression([math.log2(tokens) for tokens in line.x], line.y).slope


def summary(runs: Runs) -> dict[str, Any]:
    """By tree and objective, the gain of each doubling; and how equal the work of all heads was."""
    trees = list(runs[0]["acceptance"]) if runs else []
    seen = [run["tokens_seen"] for run in runs]
    return {
        "gain_per_doubling": {
            tree: {line.name: gain_per_doubling(line) for line in spreads(runs, tree)} for tree in trees
        },
        "tokens_seen": {"fewest": min(seen, default=0), "most": max(seen, default=0)},
    }


def scaling_table(runs: Runs) -> Table:
    """A line for each objective and share."""
    caption = (
        "acceptance length: tokens per verification, bonus included, mean of the seeds (lowest-highest); epochs: how "
        "often each conversation was trained on"
    )
    table = Table(caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("objective", "share", "answer tokens", "epochs", "device's tree", "59, 8, 10"):
        table.add_column(heading, justify="left" if heading == "objective" else "right", no_wrap=True)
    for lines in zip(spreads(runs, "device"), spreads(runs, "paper"), strict=True):
        objective = lines[0].name
        shares = sorted({run["share"] for run in runs if run["objective"] == objective})
        for number, share in enumerate(shares):
            at = next(run for run in runs if run["share"] == share and run["objective"] == objective)
            cells = [
                f"{line.y[number]:.2f} ({line.low[number]:.2f}-{line.high[number]:.2f})"
                if line.low[number] < line.high[number]
                else f"{line.y[number]:.2f}"
                for line in lines
            ]
            name = objective if number == 0 else ""
            figures = (f"{share:g}", f"{lines[0].x[number]:,.0f}", f"{at['epochs']:.1f}")
            table.add_row(name, *figures, *cells, end_section=number == len(shares) - 1)
    return table


def draw(record: Mapping[str, Any], path: Path, tree: str = "paper") -> Path:
    """The figure of a record.

    Raises:
        ValueError: if the record has no heads.
        ImportError: if matplotlib is not installed.
    """
    runs = record.get("runs") or []
    if not runs:
        raise ValueError("The record holds no finished head, so there is nothing to draw.")
    shape = shape_in_words(runs[0]["acceptance"][tree]["tree"])
    what = f"Acceptance length against training data, tree {shape}"
    title = f"{what} (dry run: no figures)" if record.get("dry_run") else what
    with style():
        figure, axes = canvas(title)
        for number, line in enumerate(spreads(runs, tree)):
            _plot(axes, line, number)
        axes.set_xscale("log", base=2)  # each doubling takes the same room
        axes.set_xticks(sorted(spreads(runs, tree)[0].x))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        axes.set_xlabel("answer tokens in the training data; equal steps for all")
        axes.set_ylabel("acceptance length (bonus included)")
        figure.legend(loc="outside lower center", ncols=2)
        return write(figure, path)


def _plot(axes: Any, line: Spread, number: int) -> None:
    """A line through the means, and at each the range of the seeds."""
    colour = COLOURS[number % len(COLOURS)]
    axes.plot(
        line.x, line.y, label=line.name, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=5,
        linestyle=DASHES[number % len(DASHES)], linewidth=1.4, clip_on=False,
    )  # fmt: skip
    axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1.4)
