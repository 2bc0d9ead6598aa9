"""The JSON file of a benchmark: one machine, one state of the sources, a result for each case, written as it comes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FORMAT = 1
# What the tables and the figure read of every record.
_OF_A_MACHINE = {"dry_run", "kernel", "device", "driver", "packages", "commit"}
_OF_A_CASE = {"case", "floor", "ways", "ratios"}


class Record:
    """
    Args:
        path: of the file; None keeps the record in memory.
        machine: as from `machine.describe`.

    Raises:
        ValueError: if the file holds another machine's figures, another state's, or no record at all.
    """

    def __init__(self, path: Path | None, machine: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"format": FORMAT, "machine": machine, "cases": {}}
        if path is not None and path.exists():
            self.content = read(path)
            self._check_same(machine)

    @property
    def cases(self) -> dict[str, dict[str, Any]]:
        """Results by the cases' keys."""
        return self.content["cases"]

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Keep a result, in the file too, which is whole at any moment."""
        self.cases[key] = result
        if self.path is not None:
            write_whole(self.path, json.dumps(self.content, indent=1) + "\n")

    def _check_same(self, machine: dict[str, Any]) -> None:
        there = self.content["machine"]
        differing = [name for name in sorted({*there, *machine}) if there.get(name) != machine.get(name)]
        if differing:
            told = "; ".join(f"{name} {there.get(name)!r}, now {machine.get(name)!r}" for name in differing)
            raise ValueError(f"{self.path} holds figures that do not belong beside these ({told}); name another.")


def read(path: Path) -> dict[str, Any]:
    """The content of a record.

    Raises:
        ValueError: if the file is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [(content["machine"], _OF_A_MACHINE), *((case, _OF_A_CASE) for case in content["cases"].values())]
        if content["format"] == FORMAT and all(needed <= part.keys() for part, needed in parts):
            return content
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ValueError(f"{path} is no record of this benchmark (format {FORMAT}); name one that `measure --json` wrote.")


def check_writable(path: Path | None) -> None:
    """Better before a long measurement than after it.

    Raises:
        OSError: if no file can be written there.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = not path.is_dir() and os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise OSError(f"{path} cannot be written: name a file in a folder that can be.")


def write_whole(path: Path, text: str) -> None:
    """The file is there whole or not at all, whenever the writer is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
