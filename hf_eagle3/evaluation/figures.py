"""Figures of evaluations, sweeps and training runs, as SVG files that come out the same each time.

Drawn from records alone, so that they can be made again without running anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from .canvas import COLOURS, DASHES, MARKERS, canvas, check_drawing, style, write
from .records import (
    FEWEST_VERIFICATIONS,
    Record,
    Series,
    position_series,
    rows_at,
    temperatures,
    training_series,
)
from .tree_figure import draw_trees


def draw_all(records: Sequence[Record], folder: str | Path) -> list[Path]:
    """Every figure that `records` have the numbers for: acceptance by position, ratio by task, acceptance against
    training tokens, trees of sweeps. For the records, see [`records.read_records`]; only where there are several need
    they have labels.

    Raises:
        ValueError: if the records have nothing to draw.
        ImportError: if matplotlib is not installed.
    """
    folder = Path(folder)
    drawn: list[Path] = []
    with style():
        evaluated = [record for record in records if record.get("files")]
        for prefix, record in zip(_prefixes(evaluated), evaluated, strict=True):
            for temperature in temperatures(record):
                rows, ending = rows_at(record, temperature), f"temperature-{temperature:g}.svg"
                if lines := position_series(rows):
                    path = folder / f"{prefix}acceptance-by-position-{ending}"
                    drawn.append(write(_positions(lines, temperature), path))
                drawn.append(write(_ratios(rows, temperature), folder / f"{prefix}ratio-by-task-{ending}"))
        for unit in ("tokens", "steps"):
            if lines := training_series(records, unit):
                drawn.append(write(_training(lines, unit), folder / f"acceptance-by-training-{unit}.svg"))
    if swept := [record for record in records if record.get("trees")]:
        drawn.append(draw_trees(swept, folder / "trees.svg"))
    if not drawn:
        raise ValueError("The records hold neither files of questions, nor trees, nor measurements of a training run.")
    return drawn


def _prefixes(evaluated: Sequence[Record]) -> list[str]:
    """What the names of each record's figures begin with: nothing for a single one, else its label, made unique."""
    if len(evaluated) < 2:
        return [""] * len(evaluated)
    taken: list[str] = []
    for record in evaluated:
        label = re.sub(r"[^\w.-]+", "-", str(record["label"])).strip(".-") or "evaluation"
        names = (f"{label}-" if number == 1 else f"{label}-{number}-" for number in count(1))
        taken.append(next(name for name in names if name not in taken))
    return taken


def _positions(lines: Sequence[Series], temperature: float) -> Any:
    figure, axes = canvas(f"Drafts accepted, by position, at temperature {temperature:g}")
    _plot(axes, lines)
    axes.set_xlabel(f"position n, where {FEWEST_VERIFICATIONS} verifications or more tell of it")
    axes.set_ylabel("n-alpha: share accepted after n others")
    axes.set_ylim(0, 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _ratios(rows: Sequence[Record], temperature: float) -> Any:
    lookup = any(row.get("lookup_ratio") is not None for row in rows)
    thickness = 0.38 if lookup else 0.6
    shift = thickness / 2 if lookup else 0.0
    title = f"Speed, times plain generate, at temperature {temperature:g}"
    figure, axes = canvas(title, height=1.2 + len(rows) * (0.55 if lookup else 0.38), grid="x")
    below = [max(row["ratio"] - row["low"], 0) for row in rows]
    above = [max(row["high"] - row["ratio"], 0) for row in rows]
    places = [place - shift for place in range(len(rows))]
    axes.barh(
        places, [row["ratio"] for row in rows], thickness, xerr=[below, above], capsize=3, color=COLOURS[0],
        error_kw={"elinewidth": 1.2}, label="with the head",
    )  # fmt: skip
    if lookup:
        measured = [(n + shift, row["lookup_ratio"]) for n, row in enumerate(rows) if row.get("lookup_ratio")]
        places, ratios = [place for place, _ in measured], [ratio for _, ratio in measured]
        axes.barh(places, ratios, thickness, color="#c9d6de", edgecolor="#555555", label="prompt lookup")
        figure.legend(loc="outside lower center", ncols=2)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("median of the questions, and quartiles; 1: plain generate")
    return figure


def _training(lines: Sequence[Series], unit: str) -> Any:
    figure, axes = canvas("Acceptance length against training")
    _plot(axes, lines)
    axes.set_xlabel("tokens trained on, repeats included" if unit == "tokens" else "steps trained")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("acceptance length (bonus included)")
    return figure


def _plot(axes: Any, lines: Sequence[Series]) -> None:
    for number, line in enumerate(lines):
        whole = line.name == "all"
        axes.plot(
            line.x, line.y, label=line.name, marker=MARKERS[number % len(MARKERS)], markersize=5,
            linestyle="-" if whole else DASHES[number % len(DASHES)], linewidth=2.2 if whole else 1.4,
            color="black" if whole else COLOURS[number % len(COLOURS)], clip_on=False,
        )  # fmt: skip
    axes.figure.legend(loc="outside lower center", ncols=min(len(lines), 3))


__all__ = ["check_drawing", "draw_all"]
