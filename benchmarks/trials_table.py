"""The Markdown table of a record of trials, and its place in a file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_eagle3.whole_files import written_whole

_COLUMNS = {
    "loss": ("validation loss", 3),
    "chain_acceptance": ("chain", 3),
    "acceptance_length": ("acceptance length", 3),
}


def trials_table(record: Mapping[str, Any]) -> str:
    """One row a trial: what it changes, and of each figure the mean and, of several seeds, each."""
    headings = ["trial", "changes", "seeds", "tokens", *(heading for heading, _ in _COLUMNS.values())]
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for trial in dict.fromkeys(run["trial"] for run in record["runs"]):
        own = [run for run in record["runs"] if run["trial"] == trial]
        done = [run for run in own if "failed" not in run]
        tokens = [run["tokens_seen"] for run in done]
        cells = [_text(trial), _changes(own[0]["overrides"]), ", ".join(str(run["seed"]) for run in own)]
        cells.append(f"{statistics.fmean(tokens):,.0f}" if tokens else "")
        cells += [_cell([run[name] for run in done], digits) for name, (_, digits) in _COLUMNS.items()]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_notes(record)]
    return "\n".join(lines)


def _notes(record: Mapping[str, Any]) -> list[str]:
    notes = [
        "Means of the seeds, in brackets each seed; of the best checkpoint of each run. Losses are compared only "
        "where loss, steps and draft vocabulary are the same. Chain: tokens per verification that a greedy chain of "
        "five drafts would have on the held-out text; acceptance length: of our decoder on held-out prompts; both "
        f"with the bonus. Every run was to see {record['tokens']:,} tokens."
    ]
    failed = [run for run in record["runs"] if "failed" in run]
    notes += [f"{_text(run['trial'])}, seed {run['seed']}, failed: {_text(run['failed'])}" for run in failed]
    return notes if record["complete"] else [*notes, "Under way: not all runs are done."]


def _changes(overrides: Mapping[str, Any]) -> str:
    """The changed fields as they stand in a recipe."""
    told = [f"{name}: {_plain(value)}" for name, value in overrides.items()]
    return "; ".join(f"`{_text(change)}`" for change in told) or "nothing"


def _plain(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.strip().removesuffix("...").strip()


def _cell(values: Sequence[float | None], digits: int) -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return ""
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    each = ", ".join(f"{value:.{digits}f}" for value in numbers)
    return mean if len(numbers) == 1 else f"{mean} ({each})"


def _text(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def update_block(path: Path, name: str, contents: str | None) -> None:
    """Put `contents` between the two marks of `name` in a Markdown file; with None only see whether they are there.

    Raises:
        OSError: if the file cannot be read or written.
        ValueError: if it does not have both marks, once each and in order.
    """
    first, last = f"<!-- trials {name} -->", f"<!-- /trials {name} -->"
    text = path.read_text(encoding="utf-8")
    before, opened, rest = text.partition(first)
    _, closed, after = rest.partition(last)
    if not opened or not closed or text.count(first) > 1 or text.count(last) > 1:
        raise ValueError(f"{path} must have the lines {first} and {last}, once each and in this order: write them in.")
    if contents is not None:
        with written_whole(path) as unfinished:
            unfinished.write_text(f"{before}{first}\n{contents}\n{last}{after}", encoding="utf-8")
