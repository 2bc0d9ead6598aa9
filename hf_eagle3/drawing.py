"""A draft tree as an SVG picture: root on the left, one column a level, the accepted path in colour.

Knows trees and text; nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .tree import DraftTree

COLUMN, LINE, MARGIN = 132, 26, 16  # pixels
ACCEPTED, REJECTED, INK = "#1a7f37", "#9aa4b2", "#24292f"


def draw_tree(tree: DraftTree, words: Sequence[str], accepted: Sequence[int], bonus: str, row: int = 0) -> str:
    """The picture of one verified tree.

    Args:
        tree: the nodes.
        words: the text of each node's token.
        accepted: nodes of the accepted path, root first.
        bonus: the text of the token that the target added after the path.
        row: which row of the batch.

    Returns:
        a whole SVG document, readable on light and dark pages.
    """
    children, depths = tree.children(row), tree.depths[row].tolist()
    scores, parents = tree.log_probs[row].tolist(), tree.parents[row].tolist()
    height_of = _rows(children)
    at = [(MARGIN + depth * COLUMN, MARGIN + LINE * (height_of[node] + 0.5)) for node, depth in enumerate(depths)]
    taken = set(accepted)
    edges = [
        _edge(at[parent], at[node], ACCEPTED if {node, parent} <= taken else REJECTED, math.exp(scores[node]))
        for node, parent in enumerate(parents)
        if parent >= 0
    ]
    labels = [_label(at[node], words[node], node in taken, node == 0) for node in range(tree.num_nodes)]
    end = at[accepted[-1]]
    # A leaf has its line to itself; beside a node with rejected children the bonus goes below the tree.
    below = MARGIN + LINE * (max(height_of) + 1.5)
    after = (end[0] + COLUMN, below if children[accepted[-1]] else end[1])
    labels += [_edge(end, after, ACCEPTED, 0.3, dashed=True), _label(after, bonus, True, False, dashed=True)]
    width = max(x for x, _ in [*at, after]) + COLUMN
    height = max(y for _, y in [*at, after]) + LINE / 2 + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13">'
        f'<rect width="100%" height="100%" rx="8" fill="#ffffff"/>{"".join(edges)}{"".join(labels)}</svg>\n'
    )


def _rows(children: list[list[int]]) -> list[float]:
    """A line for each node: leaves one below the other, a parent in the middle of its children."""
    lines = [0.0] * len(children)
    leaves = 0

    def place(node: int) -> None:
        nonlocal leaves
        for child in children[node]:
            place(child)
        if children[node]:
            lines[node] = sum(lines[child] for child in children[node]) / len(children[node])
        else:
            lines[node], leaves = leaves, leaves + 1

    place(0)
    return lines


def _edge(
    start: tuple[float, float], end: tuple[float, float], colour: str, probability: float, dashed: bool = False
) -> str:
    x0, y0, x1, y1 = start[0] + COLUMN - 34, start[1], end[0], end[1]
    middle = (x0 + x1) / 2
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<path d="M{x0:.0f} {y0:.1f} C{middle:.0f} {y0:.1f} {middle:.0f} {y1:.1f} {x1:.0f} {y1:.1f}" fill="none" '
        f'stroke="{colour}" stroke-width="{1 + 3 * min(1.0, probability):.1f}"{dash}/>'
    )


def _label(at: tuple[float, float], word: str, accepted: bool, root: bool, dashed: bool = False) -> str:
    shown = word.replace("\n", "\\n").replace(" ", "␣")
    shown = shown if len(shown) <= 11 else shown[:10] + "…"
    fill = INK if root else "#dafbe1" if accepted else "#f3f5f8"
    ink = "#ffffff" if root else ACCEPTED if accepted else "#57606a"
    border = INK if root else ACCEPTED if accepted else "#d0d7de"
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    width = COLUMN - 34
    return (
        f'<rect x="{at[0]:.0f}" y="{at[1] - 10:.1f}" width="{width}" height="20" rx="5" fill="{fill}" '
        f'stroke="{border}"{dash}/><text x="{at[0] + width / 2:.0f}" y="{at[1] + 4.5:.1f}" fill="{ink}" '
        f'text-anchor="middle">{escape(shown)}</text>'
    )
