"""The tables of a card about the size of the tree: what sweeps measured, and which tree each chooses."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.sweep import chosen
from .evaluations import Evaluation
from .tables import fixed, spread, table, tree_in_words

_KNOBS = ("nodes", "levels", "top-k")
_THRESHOLD = "ended below"  # which probability of the nodes to expand


def sweep_table(evaluation: Evaluation) -> str:
    predicted = any(shape.predicted is not None for shape in evaluation.shapes)
    early = any(len(shape.sizes) > len(_KNOBS) for shape in evaluation.shapes)
    lines = []
    for shape in evaluation.shapes:
        ratios = spread(shape.ratio, shape.low, shape.high)
        sizes = [*map(str, shape.sizes[:3]), *["".join(f"{value:g}" for value in shape.sizes[3:])] * early]
        expected = "" if shape.predicted is None else fixed(shape.predicted)
        cells = [*sizes, fixed(shape.acceptance_length), fixed(shape.mean), ratios]
        lines.append([*cells, *[expected] * predicted])
    knobs = [*_KNOBS, *[_THRESHOLD] * early]
    head = [*knobs, "acceptance length", "mean ratio", "median (quartiles)", *["predicted ratio"] * predicted]
    return table(head, lines, numbers=True)


def choice(evaluation: Evaluation) -> str:
    """Which tree a sweep chooses, in a sentence; empty where means or lengths are missing."""
    if any(shape.mean is None or shape.acceptance_length is None for shape in evaluation.shapes):
        return ""
    best = chosen(evaluation.shapes).sizes
    return (
        "Of the trees within a hundredth of the best mean ratio the one of fewest nodes is chosen: "
        f"{tree_in_words(best)}."
    )


def cost_table(evaluations: Sequence[Evaluation]) -> str:
    """What a verification costs by its nodes, a row for each sweep that tells; empty where none does."""
    priced = [(each, each.costs) for each in evaluations if each.costs and each.costs.verification]
    if not priced:
        return ""
    sizes = sorted({size for _, costs in priced for size in costs.verification})
    lines = [
        [
            f"`{each.file}`",
            *("" if size not in costs.verification else fixed(costs.verification[size]) for size in sizes),
        ]
        for each, costs in priced
    ]
    return table(["nodes", *map(str, sizes)], lines, numbers=True)


def level_table(evaluations: Sequence[Evaluation]) -> str:
    """What a level of the head costs by the nodes expanded, likewise."""
    priced = [(each, each.costs) for each in evaluations if each.costs and each.costs.level]
    if not priced:
        return ""
    sizes = sorted({size for _, costs in priced for size in (*costs.level, *costs.first)})
    lines = [
        [f"`{each.file}`, {name}", *("" if size not in points else fixed(points[size]) for size in sizes)]
        for each, costs in priced
        for name, points in (("the first level", costs.first), ("a further level", costs.level))
    ]
    return table(["nodes expanded", *map(str, sizes)], lines, numbers=True)
