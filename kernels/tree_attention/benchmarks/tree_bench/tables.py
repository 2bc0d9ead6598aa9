"""A record as rows: for the terminal by rich, for a page as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bars import Bar
from .ratios import BASELINES, CLOCKS, median
from .ways import KERNEL

_SHORT = dict(zip(BASELINES, ("sdpa", "best sdpa", "eager", "Flex"), strict=True))
_WIDTH = 140  # of the table; a narrower terminal wraps whole lines
HEADINGS = (
    "case", "clock", "us", "spread", "of\nfloor", "over one\nnode", "over no\nmask", "as models\ncall it",
    *(f"x {_SHORT[name]}" for name in BASELINES),
)  # fmt: skip
CAPTION = (
    "case: shape, keys / nodes, batch, dtype. graph: a CUDA graph's replay; launch: as a program calls it. us: the "
    "kernel's, median of the rounds. of floor: least possible time over it. x: how many times as long a baseline "
    "takes. -: not timed."
)


def rows(cases: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row a case and clock; a case whose kernel is wrong, or did not run, says so."""
    told = []
    for key, result in cases.items():
        kernel = result["ways"].get(KERNEL, {})
        if kernel.get("status") != "timed":
            told.append([key, kernel.get("status", "not tried"), *[""] * (len(HEADINGS) - 2)])
            continue
        told += [_row(key, clock, result) for clock in CLOCKS if clock in result["ratios"]]
    return told


def _row(key: str, clock: str, result: Mapping[str, Any]) -> list[str]:
    ratios, times = result["ratios"][clock], result["ways"][KERNEL][clock]
    figures = [ratios[name] for name in ("floor_fraction", "verify_overhead", "tree_tax", "call_tax")]
    figures += ratios["speedup"].values()
    spread = f"{times['lowest_us']:.1f}-{times['highest_us']:.1f}"
    return [key, clock, f"{times['median_us']:.1f}", spread, *("-" if f is None else f"{f:.2f}" for f in figures)]


def notes(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line a case: which candidate stands for each way, and what making its mask took; why what is missing is."""
    return [
        f"{key}: " + "; ".join(_note(name, way) for name, way in result["ways"].items())
        for key, result in cases.items()
    ]


def _note(name: str, way: Mapping[str, Any]) -> str:
    if way["status"] == "timed":
        how = f" by {way['candidate']}" if len(way["candidates"]) > 1 else ""
        return f"{name}{how} (mask {way['prepare_us']:.0f} us)"
    return f"{name} {way['status']}: " + ", ".join(f"{label}: {what}" for label, what in way["candidates"].items())


def heading(machine: Mapping[str, Any]) -> str:
    """The machine in a line, and whether the figures mean anything."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    line = f"{machine['device']}, driver {machine['driver']}, {packages}, commit {machine['commit']}"
    dry = f"DRY RUN: nothing here tells of speed; the kernel is {machine['kernel']}. "
    return dry + line if machine["dry_run"] else line


def show(record: Mapping[str, Any], bars: Sequence[Bar]) -> None:
    """Table, notes and bars on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(heading(record["machine"]), markup=False)
    table = Table(caption=CAPTION, box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(HEADINGS):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=number < 4, min_width=5)
    for row in rows(record["cases"]):
        table.add_row(*row)
    console.print(table)
    for note in notes(record["cases"]):
        console.print(note, markup=False, highlight=False)
    for bar in bars:
        value = "" if bar.value is None else f" {bar.value:.2f}"
        console.print(f"{bar.verdict}:{value} {bar.name}, {bar.least:g} is needed", markup=False)


def markdown(record: Mapping[str, Any]) -> str:
    """The same rows as a table for a page, with the machine above and the notes below."""
    lines = [heading(record["machine"]), ""]
    lines.append("| " + " | ".join(name.replace("\n", " ") for name in HEADINGS) + " |")
    lines.append("|" + "|".join(["---"] * 2 + ["---:"] * (len(HEADINGS) - 2)) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in rows(record["cases"])]
    return "\n".join([*lines, "", CAPTION, "", *(f"- {note}" for note in notes(record["cases"]))]) + "\n"


def time_of(result: Mapping[str, Any], name: str) -> float | None:
    """Microseconds of a way, through a graph where there was one."""
    found = (median(result["ways"], name, clock) for clock in CLOCKS)
    return next((value for value in found if value is not None), None)
