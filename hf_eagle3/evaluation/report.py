"""Reports: a table for the reader, a JSON file with its provenance for the record."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from ..native_products import multiplies_natively
from ..whole_files import written_whole
from .cost_curve import CostCurve
from .lossless import Verdict
from .records import FEWEST_VERIFICATIONS
from .speed import Speed, Trial
from .sweep import Candidate, Entry

_PACKAGES = ("hf-eagle3", "torch", "transformers", "accelerate")


def speed_table(rows: Sequence[Speed]) -> Table:
    """One row a file; the prompt-lookup column is there when it was measured."""
    lookup = any(row.lookup_ratio is not None for row in rows)
    caption = (
        "n: questions; length: acceptance length, tokens per verification, bonus included; ratio: tokens/s over plain "
        "generate's, median of the questions; totals: the same of all tokens together; tokens/s: with the head, plain"
    )
    table = Table(caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 0 if lookup else 1))
    table.add_column("file", no_wrap=True, min_width=14)
    for heading in ("n", "length", "ratio", "quartiles", "totals"):
        table.add_column(heading, justify="right", no_wrap=True)
    if lookup:
        table.add_column("prompt\nlookup", justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("identical\n+ ties", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, lookup), end_section=row is rows[-2] if len(rows) > 1 else False)
    return table


def positions_table(rows: Sequence[Speed]) -> Table:
    """One row a file, one column a position: the share of drafts accepted there, and where the time went."""
    caption = (
        "n-alpha: drafts accepted at level n + 1 of the tree, of those that got so far (--tree-top-k 1: the papers' "
        f"chain); in brackets: fewer than {FEWEST_VERIFICATIONS} verifications tell of it"
    )
    timed = any(row.shares is not None for row in rows)
    if timed:
        caption += "; target: the prompt's forward included"
    table = Table(caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file")
    most = max(len(row.acceptance_rates) for row in rows)
    for position in range(most):
        table.add_column(f"{position}-alpha", justify="right")
    if timed:
        table.add_column("time: target\n/ draft / rest", justify="right")
    for row in rows:
        rates = _rates(row) + [""] * (most - len(row.acceptance_rates))
        shares = row.shares
        parts = "" if shares is None else f"{shares.target:.0%} / {shares.draft:.0%} / {shares.rest:.0%}"
        cells = [row.name, *rates, *([parts] if timed else [])]
        table.add_row(*cells, end_section=row is rows[-2] if len(rows) > 1 else False)
    return table


_SIZES = ("draft\nnodes", "depth", "top-k")


def sweep_table(entries: Sequence[Entry]) -> Table:
    """One row a tree, the fastest first."""
    predicted = any(entry.predicted is not None for entry in entries)
    caption = "acceptance length: bonus included; ratios: to plain generate, answer by answer; geometric mean"
    caption += "; predicted: by that length and the cost curve" if predicted else ""
    table = Table(caption=caption, box=box.SIMPLE_HEAD, collapse_padding=True)  # or eighty columns are too few
    headings = (*_SIZES, "acceptance\nlength", "mean\nratio", "median", "quartiles")
    for heading in (*headings, *["predicted"] * predicted):
        table.add_column(heading, justify="right")
    for entry in entries:
        sizes = _sizes(entry.shape)
        spread = f"{entry.low:.2f}-{entry.high:.2f}"
        figures = (f"{figure:.2f}" for figure in (entry.acceptance_length, entry.mean, entry.ratio))
        table.add_row(*sizes, *figures, spread, *[_told(entry.predicted)] * predicted)
    return table


def _sizes(shape: Sequence[float]) -> list[str]:
    """Nodes, depth and top-k; with the last the threshold below which levels end, where there is one."""
    nodes, depth, top_k, *threshold = shape
    return [str(nodes), str(depth), str(top_k) + "".join(f" <{value:g}" for value in threshold)]


def candidates_table(candidates: Sequence[Candidate]) -> Table:
    """One row a tree, as ranked before any was timed: the most promising first."""
    table = Table(caption="rehearsed on plain answers, and priced by the cost curve", box=box.SIMPLE_HEAD)
    for heading in (*_SIZES, "acceptance\nlength", "predicted\nratio"):
        table.add_column(heading, justify="right")
    for candidate in candidates:
        sizes = _sizes(candidate.shape)
        table.add_row(*sizes, f"{candidate.acceptance_length:.2f}", _told(candidate.predicted))
    return table


def cost_table(curve: CostCurve) -> Table:
    """The verification by nodes beside the head's work by top-k."""
    caption = (
        f"in plain steps of one token, over {curve.context} cached positions, medians of {curve.repeats} pairs; first "
        "level: with the states taken in"
    )
    table = Table(caption=caption, box=box.SIMPLE_HEAD)
    headings = ("nodes", "verification", "quartiles", "top-k", "first level", "further level")
    for heading in headings:
        table.add_column(heading, justify="right")
    drafting = list(zip(curve.first, curve.level, strict=True))
    for row in range(max(len(curve.verification), len(drafting))):
        cells = ["", "", ""]
        if row < len(curve.verification):
            point = curve.verification[row]
            cells = [str(point.size), f"{point.cost:.2f}", f"{point.low:.2f}-{point.high:.2f}"]
        if row < len(drafting):
            first, level = drafting[row]
            cells += [str(first.size), f"{first.cost:.2f}", f"{level.cost:.2f}"]
        table.add_row(*cells)
    return table


def lossless_line(verdicts: Sequence[Verdict], acceptance_length: float) -> str:
    """The outcome of a lossless check in one line: how many agreed, how the others were ruled, at which acceptance."""
    identical = sum(verdict.identical for verdict in verdicts)
    ruled = [verdict for verdict in verdicts if not verdict.identical and verdict.lossless]
    gaps = [verdict.gap for verdict in ruled if verdict.gap is not None]
    parts = [f"{len(verdicts)} questions", f"{identical} identical"]
    if ruled:
        widest = f", widest gap {max(gaps):.2g}" if gaps else ""
        how = "the same in float64" if ruled[0].equal_in_float64 is not None else "near ties"
        parts.append(f"{len(ruled)} {how}{widest}")
    parts.append(f"{sum(not verdict.lossless for verdict in verdicts)} mismatches")
    return " · ".join([*parts, f"acceptance length {acceptance_length:.2f} (bonus included)"])


def trial_record(trial: Trial) -> dict[str, Any]:
    """One question as plain data; seconds are kept because the provenance beside them names the machine."""
    runs = {
        mode: {"tokens": len(run.tokens), "forwards": run.forwards, "seconds": round(run.seconds, 4)}
        for mode, run in trial.runs.items()
    }
    return {
        "file": trial.question.file,
        "question": trial.question.name,
        "acceptance_length": trial.runs["drafted"].acceptance_length,
        "acceptance_lengths": trial.runs["drafted"].acceptance_lengths,
        "tree_levels": trial.runs["drafted"].tree_levels,
        "runs": runs,
        "verdict": None if trial.verdict is None else asdict(trial.verdict),
    }


def provenance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Machine, versions, commit and settings: what a reader needs to repeat or to doubt a figure."""
    machine = {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": _gpu()}
    return {
        "machine": {**machine, "cpu_multiplies_in_bfloat16": multiplies_natively(torch.bfloat16, "cpu")},
        "python": platform.python_version(),
        "packages": package_versions(),
        "commit": _commit(),
        "settings": dict(settings),
    }


def package_versions() -> dict[str, str | None]:
    """Of the packages that decide what comes out; None for one that is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def check_writable(path: str | Path) -> None:
    """See to it that a record can be written to `path`: better before a long measurement than after it.

    Raises:
        OSError: if it cannot.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        what = "is a folder" if path.is_dir() else "lies in a folder that may not be written to"
        raise OSError(f"{path} {what}: name a file for the record.")


def write_json(path: str | Path, record: Mapping[str, Any]) -> None:
    """Writes `record` whole or not at all."""
    with written_whole(Path(path)) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def cpu_model() -> str:
    """The processor's own name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cells(row: Speed, lookup: bool) -> list[str]:
    cells = [
        row.name,
        str(row.questions),
        f"{row.acceptance_length:.2f}",
        f"{row.ratio:.2f}",
        f"{row.low:.2f}-{row.high:.2f}",
        f"{row.total_ratio:.2f}",
    ]
    if lookup:
        cells.append("" if row.lookup_ratio is None else f"{row.lookup_ratio:.2f}")
    return [*cells, f"{row.tokens_per_second:.1f}, {row.plain_tokens_per_second:.1f}", _agreement(row)]


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _rates(row: Speed) -> list[str]:
    """The rates of a row; what hardly any verification tells of stands in brackets."""
    told = zip(row.acceptance_rates, row.acceptance_counts, strict=True)
    return [f"{rate:.2f}" if asked >= FEWEST_VERIFICATIONS else f"({rate:.2f})" for rate, (_, asked) in told]


def _agreement(row: Speed) -> str:
    if not row.identical + row.near_ties + row.mismatches:
        return "sampled"
    return f"{row.identical} + {row.near_ties}" + (f", {row.mismatches} WRONG" if row.mismatches else "")


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the clone that runs, with `-dirty` when files differ from it; None for an installed package."""
    clone = Path(__file__).resolve().parents[2]
    if not (clone / ".git").exists():
        return None
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
