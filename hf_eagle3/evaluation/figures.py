"""Figures of an evaluation, as SVG files that come out the same each time: no dates, no random names.

Drawn from the JSON records alone, so that they can be made again without running anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Told apart by colour, by marker and by grey level.
_COLOURS = ("#0b3c5d", "#d95f02", "#1b9e77", "#7570b3", "#a6761d", "#e7298a", "#666666")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_all(records: Sequence[Mapping[str, Any]], folder: str | Path) -> list[Path]:
    """Every figure that `records` have the numbers for: acceptance by position, ratio by task, acceptance against
    training tokens. Records are `eval`'s JSON or a head's `training.json`.

    Raises:
        ValueError: if the records have nothing to draw.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    evaluated = [record for record in records if record.get("files")]
    for record in evaluated:
        own = f"{record['label']}-" if len(evaluated) > 1 else ""
        for temperature in sorted({row["temperature"] for row in record["files"]}):
            rows = [row for row in record["files"] if row["temperature"] == temperature]
            ending = f"temperature-{temperature:g}.svg"
            if any(row["acceptance_rates"] for row in rows):
                drawn.append(_positions(rows, temperature, folder / f"{own}acceptance-by-position-{ending}"))
            drawn.append(_ratios(rows, temperature, folder / f"{own}ratio-by-task-{ending}"))
    curves = {str(record.get("label", f"run {n}")): record for n, record in enumerate(records) if _measured(record)}
    if curves:
        drawn.append(_training(curves, folder / "acceptance-by-training-tokens.svg"))
    if not drawn:
        raise ValueError("The records hold neither files of questions nor measurements of a training run.")
    return drawn


def read_records(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The JSON records at `paths`; each is labelled by its file's or its head's name unless it has a `label`.

    Raises:
        OSError: if one cannot be read.
        ValueError: if one is no record.
    """
    records = []
    for path in map(Path, paths):
        file = path / "training.json" if path.is_dir() else path
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON ({error.msg}): give what `hf-eagle3 eval --json` wrote.") from error
        if not isinstance(record, dict):
            raise ValueError(f"{file} holds no record: give what `hf-eagle3 eval --json` or `train` wrote.")
        name = file.parent.name if file.name == "training.json" else file.stem
        records.append({"label": name, **record})
    return records


def _measured(record: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Tokens trained on and acceptance length, where a training run noted both."""
    return [
        (entry["num_input_tokens_seen"], entry["eval_acceptance_length"])
        for entry in record.get("history", [])
        if "eval_acceptance_length" in entry and "num_input_tokens_seen" in entry
    ]


def _positions(rows: Sequence[Mapping[str, Any]], temperature: float, path: Path) -> Path:
    figure, axes = _canvas(f"Accepted drafts by position, temperature {temperature:g}")
    for number, row in enumerate(row for row in rows if row.get("acceptance_rates")):
        rates = row["acceptance_rates"]
        whole = row["name"] == "all"
        axes.plot(
            range(len(rates)), rates, label=row["name"], marker=_MARKERS[number % len(_MARKERS)],
            color="black" if whole else _COLOURS[number % len(_COLOURS)], linewidth=2.5 if whole else 1.5,
        )  # fmt: skip
    axes.set_xlabel("position n: drafts accepted before")
    axes.set_ylabel("n-alpha: share accepted")
    axes.set_ylim(0, 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, ncols=2)
    return _write(figure, path)


def _ratios(rows: Sequence[Mapping[str, Any]], temperature: float, path: Path) -> Path:
    figure, axes = _canvas(f"Tokens per second over plain generate, temperature {temperature:g}")
    names = [row["name"] for row in rows]
    ratios = [row["ratio"] for row in rows]
    spread = [
        [max(row["ratio"] - row["low"], 0) for row in rows],
        [max(row["high"] - row["ratio"], 0) for row in rows],
    ]
    lookup = any(row.get("lookup_ratio") is not None for row in rows)
    shift = 0.2 if lookup else 0.0
    places = [place - shift for place in range(len(names))]
    axes.bar(places, ratios, width=0.38, yerr=spread, capsize=3, color=_COLOURS[0], label="with the head")
    if lookup:
        others = [row.get("lookup_ratio") or 0 for row in rows]
        places = [place + shift for place in range(len(names))]
        axes.bar(places, others, width=0.38, color="#b8c4cc", edgecolor="#555555", label="prompt lookup")
        axes.legend(frameon=False)
    axes.axhline(1.0, color="#333333", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_ylabel("ratio (median, quartiles)")
    return _write(figure, path)


def _training(curves: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    figure, axes = _canvas("Acceptance length on held-out prompts while training")
    for number, (label, record) in enumerate(curves.items()):
        tokens, lengths = zip(*_measured(record), strict=True)
        marker, colour = _MARKERS[number % len(_MARKERS)], _COLOURS[number % len(_COLOURS)]
        axes.plot(tokens, lengths, marker=marker, color=colour, label=label)
    axes.set_xlabel("tokens trained on, repeats included")
    axes.set_ylabel("acceptance length (bonus included)")
    axes.legend(frameon=False)
    return _write(figure, path)


def _canvas(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _write(figure: Any, path: Path) -> Path:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "hf-eagle3", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path
