"""What an evaluation has measured so far, beside its record until that is written: a killed one goes on from there.

A line is a JSON object: the first says what was asked for, each further one is an answered question.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .lossless import Verdict
from .questions import Question
from .speed import Trial
from .timing import Run


class Journal:
    """The answers of an evaluation that has not ended, read from where they lie and added to.

    Args:
        record: the file that the evaluation will write at its end; the journal is `.NAME.begun` beside it. None keeps
            nothing.
        asked_for: everything that the figures depend on, machine and versions included.

    Raises:
        ValueError: the journal there is of an evaluation of something else, or is none.
    """

    def __init__(self, record: Path | None, asked_for: Mapping[str, Any]) -> None:
        self.path = None if record is None else record.with_name(f".{record.name}.begun")
        self._trials: dict[tuple[float, int], Trial] = {}
        if self.path is not None:
            self._open(self.path, json.loads(json.dumps(asked_for)))

    def __len__(self) -> int:
        return len(self._trials)

    def answered(self, temperature: float) -> dict[int, Trial]:
        """What was measured at `temperature`, by the number of the question."""
        return {number: trial for (of, number), trial in self._trials.items() if of == temperature}

    def add(self, temperature: float, number: int, trial: Trial) -> None:
        """Keep one more answer, whatever becomes of this process."""
        self._trials[temperature, number] = trial
        if self.path is not None:
            self._append(self.path, {"temperature": temperature, "number": number, **asdict(trial)})

    def end(self) -> None:
        """Take the journal away: the record stands."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _open(self, path: Path, asked_for: dict[str, Any]) -> None:
        # What follows the last line's end was being written when the run was killed.
        whole = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
        if not whole[0]:
            path.write_bytes(b"")
            self._append(path, asked_for)
            return
        try:
            first, *answers = [json.loads(line) for line in whole[0].split(b"\n")]
            changed = _changes({**first}, asked_for)
            self._trials = {(line["temperature"], line["number"]): _trial(line) for line in answers}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no journal of an evaluation ({error}): delete it to begin again.") from error
        if changed:
            raise ValueError(
                f"{path} holds {len(self)} answers of an evaluation that was interrupted, and {changed[0]}: ask for "
                "the same again, give another --json, or delete the file to begin again."
            )
        if whole[2]:
            os.truncate(path, len(whole[0]) + 1)

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _trial(line: Mapping[str, Any]) -> Trial:
    runs = {mode: Run(**run) for mode, run in line["runs"].items()}
    verdict = None if line["verdict"] is None else Verdict(**line["verdict"])
    return Trial(Question(**line["question"]), runs, verdict)


def _changes(was: Mapping[str, Any], now: Mapping[str, Any], of: str = "") -> list[str]:
    """What differs, in words, down to the single setting."""
    changes: list[str] = []
    for name in {**was, **now}:
        one, other = was.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            changes += _changes(one, other, f"{of}{name}.")
        elif one != other:
            changes.append(f"{of}{name} was {one} and is {other}")
    return changes
