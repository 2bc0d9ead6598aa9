"""Records of evaluations and of training runs, and the series of numbers that figures are drawn from.

A record is what `hf-eagle3 eval --json` or `sweep --json` wrote, a head's `training.json`, or the `trainer_state.json`
of a checkpoint.
Knows nothing of drawing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

# A rate that fewer verifications tell of says nothing yet.
FEWEST_VERIFICATIONS = 10
_OF_TRAINING = ("training.json", "trainer_state.json")
_UNITS = {"num_input_tokens_seen": "tokens", "step": "steps"}


def shape_in_words(shape: Sequence[float]) -> str:
    """The sizes of a sweep's tree, with the threshold where it ends early: "9, 3, 4", "12, 6, 6 ended below 0.4"."""
    sizes, threshold = ", ".join(map(str, shape[:3])), sum(shape[3:])
    return f"{sizes} ended below {threshold:g}" if threshold else sizes


@dataclass(frozen=True)
class Series:
    """One line of a figure: what it is called, and its points."""

    name: str
    x: list[float]
    y: list[float]


def read_records(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The records at `paths`, each a JSON file or the folder of a trained head or checkpoint.

    Each is labelled by its file's, or its head's, name unless it has a `label`.

    Raises:
        OSError: if one cannot be read.
        ValueError: if one is no record.
    """
    return [_read_record(Path(path)) for path in paths]


def _read_record(path: Path) -> dict[str, Any]:
    file = next((path / name for name in _OF_TRAINING if (path / name).is_file()), path / _OF_TRAINING[0])
    file = file if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON ({error}): give what `hf-eagle3 eval --json` wrote.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{file} holds no record: give what `hf-eagle3 eval --json` or `train` wrote.")
    if any("temperature" not in row or "acceptance_rates" not in row for row in record.get("files", ())):
        raise ValueError(
            f"{file} was written by an earlier version, without temperatures: run `hf-eagle3 eval` again."
        )
    if "log_history" in record:
        record = {"history": record["log_history"]}
    name = head_name(file.parent) if file.name in _OF_TRAINING else file.stem
    return {"label": name, **record}


def head_name(folder: str | Path) -> str:
    """What a head is called: its folder, for a checkpoint the folder that it stands in, on the Hub its id."""
    path = Path(folder)
    if path.exists():
        path = path.resolve()
        return path.parent.name if path.name.startswith("checkpoint-") else path.name
    return str(folder)


def trained_tokens(head: str | Path) -> int | None:
    """How many tokens a head was trained on, repeats included; None where its folder does not say."""
    try:
        record = _read_record(Path(head))
    except (OSError, ValueError):
        return None  # on the Hub, or not trained by us: nothing says it
    history = record.get("history")
    best = record.get("best_step")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    told = [entry for entry in entries if "num_input_tokens_seen" in entry and best in (None, 0, entry.get("step"))]
    return int(told[-1]["num_input_tokens_seen"]) if told else None


def temperatures(record: Record) -> list[float]:
    """At which `record` was measured, ascending."""
    return sorted({row["temperature"] for row in record.get("files", ())})


def rows_at(record: Record, temperature: float) -> list[Record]:
    """The files of an evaluation at one temperature, the row of all together last."""
    return [row for row in record["files"] if row["temperature"] == temperature]


def position_series(rows: Sequence[Record]) -> list[Series]:
    """n-alpha against n, a line a file, without the positions that hardly any verification tells of."""
    lines = []
    for row in rows:
        rates = row["acceptance_rates"]
        counts = row.get("acceptance_counts") or [(0, FEWEST_VERIFICATIONS)] * len(rates)
        told = [position for position, (_, asked) in enumerate(counts) if asked >= FEWEST_VERIFICATIONS]
        if told:
            lines.append(Series(row["name"], [float(n) for n in told], [rates[n] for n in told]))
    return lines


def training_series(records: Sequence[Record], unit: str) -> list[Series]:
    """Acceptance length against what the head was trained on, in `unit`: "tokens" or "steps".

    A training run's own measurements make a line. So do evaluations of heads of one label, at one temperature, if
    their records say how many tokens the heads were trained on.
    """
    lines = []
    for record in records:
        if (points := _history(record, unit)) is not None:
            lines.append(Series(f"{record['label']}, held-out prompts", *points))
    if unit == "tokens":
        lines += _evaluated(records)
    return lines


def _history(record: Record, unit: str) -> tuple[list[float], list[float]] | None:
    """What a run noted as it went; tokens where it counted them, else steps."""
    measured = [entry for entry in record.get("history", ()) if "eval_acceptance_length" in entry]
    counter = next((name for name in _UNITS if measured and all(name in entry for entry in measured)), None)
    if counter is None or _UNITS[counter] != unit:
        return None
    points = sorted((float(entry[counter]), float(entry["eval_acceptance_length"])) for entry in measured)
    return [x for x, _ in points], [y for _, y in points]


def _evaluated(records: Sequence[Record]) -> list[Series]:
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if record.get("training_tokens") is None:
            continue
        for temperature in temperatures(record):
            name = f"{record['label']}, questions at temperature {temperature:g}"
            together = rows_at(record, temperature)[-1]["acceptance_length"]
            points.setdefault(name, []).append((float(record["training_tokens"]), together))
    return [Series(name, [x for x, _ in sorted(own)], [y for _, y in sorted(own)]) for name, own in points.items()]
