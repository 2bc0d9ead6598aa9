"""How our figures look, and how they become SVG files that come out the same each time: no dates, no random names.

Lines differ in colour, in marker and in dashes, so that they can be told apart by everybody and on paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ..release import install_command
from ..whole_files import written_whole

# Okabe and Ito's colours, which the colour-blind can tell apart; the row of all files together is black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
_STYLE: Any = {
    "svg.hashsalt": "hf-eagle3",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}


def check_drawing() -> None:
    """Find out whether figures can be drawn, before anything else is done.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Figures need matplotlib: run `{install_command('eval')}`.") from error


def canvas(title: str, height: float = 4.0, grid: Literal["x", "y"] = "y") -> tuple[Any, Any]:
    """A figure and its axes; `height` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(axis=grid)
    return figure, axes


@contextmanager
def style() -> Iterator[None]:
    """Our style over matplotlib's own defaults, whatever the user's configuration says."""
    check_drawing()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def write(figure: Any, path: Path) -> Path:
    """Write a figure to `path` as SVG, whole or not at all."""
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, format="svg", metadata={"Date": None})
    return path
