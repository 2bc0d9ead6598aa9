"""The figure of a record: time against context beside the floor, and how many times as long the baselines take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .ratios import BASELINES
from .tables import heading, time_of
from .ways import KERNEL, NO_MASK

# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = ("#000000", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = (KERNEL, *BASELINES, NO_MASK)


def draw(record: Mapping[str, Any], path: Path) -> Path:
    """Writes an SVG of the contexts of the most frequent shape and tree of a record, whole or not at all.

    Raises:
        ValueError: if no case of the record has times, or the file is to be no SVG.
        ImportError: if matplotlib is not installed.
    """
    if path.suffix.lower() != ".svg":
        raise ValueError(f"The figure is an SVG, but {path} has another name; let it end in .svg.")
    import matplotlib
    from matplotlib.figure import Figure

    title, results = _contexts(record["cases"])
    with matplotlib.rc_context({"svg.hashsalt": "tree-attention", "svg.fonttype": "none", "legend.frameon": False}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        times, ratios = figure.subplots(1, 2)
        _times(times, results)
        _ratios(ratios, results)
        figure.suptitle(f"{title}\n{heading(record['machine'])}", fontsize=8)
        figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            figure.savefig(unfinished, format="svg", metadata={"Date": None})
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    return path


def _contexts(cases: Mapping[str, Any]) -> tuple[str, list[Mapping[str, Any]]]:
    """The largest group of cases that differ in their context alone."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in cases.values():
        if result["ratios"]:
            case = result["case"]
            title = f"{case['shape']['name']}, {case['nodes']} nodes, batch {case['batch']}, {case['dtype']}"
            groups.setdefault(title, []).append(result)
    if not groups:
        raise ValueError("The record holds no case in which the kernel was timed: measure first.")
    title = max(groups, key=lambda name: len(groups[name]))
    return title, sorted(groups[title], key=lambda result: result["case"]["keys"])


def _times(axes: Any, results: list[Mapping[str, Any]]) -> None:
    contexts = [result["case"]["keys"] for result in results]
    for number, name in enumerate(_LINES):
        _line(axes, contexts, [time_of(result, name) for result in results], name, number)
    floors = [result["floor"]["microseconds"] for result in results]
    axes.plot(contexts, floors, color="#888888", linestyle=":", label="floor")
    axes.set(xscale="log", yscale="log", xlabel="keys", ylabel="microseconds")
    axes.set_xticks(contexts, [str(context) for context in contexts])
    axes.minorticks_off()


def _ratios(axes: Any, results: list[Mapping[str, Any]]) -> None:
    contexts = [result["case"]["keys"] for result in results]
    own = [time_of(result, KERNEL) for result in results]
    for number, name in enumerate(BASELINES, start=1):
        other = [time_of(result, name) for result in results]
        ratios = [None if o is None or k is None else o / k for o, k in zip(other, own, strict=True)]
        _line(axes, contexts, ratios, name, number)
    axes.axhline(1, color="black", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="keys", ylabel="times the kernel's time")
    axes.set_xticks(contexts, [str(context) for context in contexts])
    axes.minorticks_off()


def _line(axes: Any, contexts: list[int], figures: list[float | None], name: str, number: int) -> None:
    points = [(context, figure) for context, figure in zip(contexts, figures, strict=True) if figure is not None]
    if points:
        axes.plot(
            *zip(*points, strict=True), color=_COLOURS[number], marker=_MARKERS[number], markersize=4, label=name
        )
