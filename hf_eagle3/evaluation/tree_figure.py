"""The figure of a sweep: what forwards cost by their nodes, and what trees came to, measured and predicted.

Drawn from records of `hf-eagle3 sweep` alone; several of them, of several devices or dtypes, share the cost curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .canvas import COLOURS, DASHES, MARKERS, style, write
from .records import Record, shape_in_words

_CHOSEN = COLOURS[2]


def draw_trees(records: Sequence[Record], path: Path) -> Path:
    """Draw sweeps into one SVG file.

    Raises:
        ValueError: if a record holds no trees.
        ImportError: if matplotlib is not installed.
    """
    if not records or not all(record.get("trees") for record in records):
        raise ValueError("A record holds no trees: give what `hf-eagle3 sweep --json` wrote.")
    priced = [record for record in records if record.get("cost")]
    heights = [3.2] * bool(priced) + [0.7 + 0.26 * len(record["trees"]) for record in records]
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, sum(heights) + 0.6), layout="constrained")
        panels = list(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        if priced:
            _costs(panels.pop(0), priced)
        for axes, record in zip(panels, records, strict=True):
            _trees(axes, record)
        return write(figure, path)


def sweep_name(record: Record) -> str:
    """On what, and in which dtype, a sweep was made; as far as its provenance tells."""
    provenance = record.get("provenance") or {}
    settings, machine = provenance.get("settings") or {}, provenance.get("machine") or {}
    on_gpu = str(settings.get("device") or "cpu") != "cpu"
    dtype = str(settings.get("dtype") or "").removeprefix("torch.")
    if settings.get("native_products") is False:
        dtype += " (emulated)"
    return ", ".join(filter(None, (machine.get("gpu") if on_gpu else machine.get("cpu"), dtype))) or "a device"


def _costs(axes: Any, records: Sequence[Record]) -> None:
    for number, record in enumerate(records):
        cost, colour, name = record["cost"], COLOURS[number % len(COLOURS)], sweep_name(record)
        marker = MARKERS[number % len(MARKERS)]
        nodes, verification = _columns(cost["verification"])
        axes.plot(
            nodes, verification["cost"], color=colour, marker=marker, markersize=4, label=f"{name}: verification"
        )
        axes.fill_between(nodes, verification["low"], verification["high"], color=colour, alpha=0.2, linewidth=0)
        widths, level = _columns(cost["level"])
        axes.plot(
            widths, level["cost"], color=colour, linestyle=DASHES[3], marker=marker, markersize=3,
            label=f"{name}: a level of the head",
        )  # fmt: skip
    axes.set_title("What a forward costs, in plain steps of one token")
    axes.set_xlabel("nodes of the tree, root included; of the head's level, those expanded")
    axes.set_ylabel("median and quartiles")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend(loc="upper left", fontsize=8)


def _columns(points: Sequence[Mapping[str, Any]]) -> tuple[list[int], dict[str, list[float]]]:
    columns = {name: [float(point[name]) for point in points] for name in ("cost", "low", "high")}
    return [int(point["size"]) for point in points], columns


def _trees(axes: Any, record: Record) -> None:
    trees = record["trees"]
    best, places = record.get("chosen"), range(len(trees))
    means = [tree["mean"] for tree in trees]
    spread = [
        [max(tree["mean"] - tree["low"], 0) for tree in trees],
        [max(tree["high"] - tree["mean"], 0) for tree in trees],
    ]
    colours = [_CHOSEN if list(tree["shape"]) == best else COLOURS[0] for tree in trees]
    axes.barh(places, means, 0.6, xerr=spread, capsize=2, color=colours, error_kw={"elinewidth": 1.0})
    predicted = [(place, tree["predicted"]) for place, tree in enumerate(trees) if tree.get("predicted") is not None]
    if predicted:
        rows, ratios = [place for place, _ in predicted], [ratio for _, ratio in predicted]
        axes.plot(ratios, rows, linestyle="none", marker="D", markersize=5, color="white", markeredgecolor="black")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(places, [shape_in_words(tree["shape"]) for tree in trees], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_title(f"Speed, times plain generate: {sweep_name(record)}" + (" (green: chosen)" if best else ""))
    axes.set_ylabel("nodes, levels, top-k", fontsize=8)
    axes.set_xlabel(
        "mean of the answers, and quartiles" + ("; diamonds: predicted by the cost curve" if predicted else "")
    )
