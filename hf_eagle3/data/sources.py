"""Prompts from elsewhere: local files and Hub data sets, whatever of the usual forms they have.

What an assistant says in them is left out: the target writes its own answers. Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tally import Tally

STEP = "sources"
_FORMS = (
    "`messages` with role and content, ShareGPT's `conversations` with from and value, Alpaca's `instruction` and "
    "`input`, a list `turns`, or `prompt`, `question` or `text`"
)
_USER = ("user", "human")
_SUFFIXES = (".jsonl", ".json", ".txt", ".parquet", ".csv")


@dataclass(frozen=True)
class Prompt:
    """The user's `turns` in order, the `system` prompt if there is one, and the `source`, such as "my.jsonl:17"."""

    turns: tuple[str, ...]
    system: str | None = None
    source: str = ""


def read_prompts(source: str, split: str = "train", tally: Tally | None = None) -> Iterator[Prompt]:
    """The prompts of a file (.jsonl, .json, .txt with one prompt a line, .parquet, .csv), of a folder of such files,
    or of the `split` of a Hub data set.

    Rows that hold none are counted as dropped, and the first of each kind is noted with its place.

    Raises:
        OSError: if there is no such file or data set.
        ValueError: if no row at all holds a prompt.
    """
    tally = tally or Tally()
    usable, rows = 0, 0
    problems: dict[str, str] = {}
    for place, row in _rows(source, split):
        rows += 1
        prompt, problem = _prompt(row, place)
        if prompt is None:
            tally.dropped(STEP, problem)
            if problem not in problems:
                problems[problem] = place
                tally.noted(STEP, f"{problem}: first at {place}")
            continue
        usable += 1
        tally.kept(STEP)
        yield prompt
    if not usable:
        found = "; ".join(f"{problem} ({place})" for problem, place in problems.items()) or "it is empty"
        raise ValueError(f"{source} holds no prompt in its {rows} rows ({found}): a row needs {_FORMS}.")


def _rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    if path.is_dir() and not (path / "dataset_info.json").exists():
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if not files:
            raise OSError(f"There are no files in {source} that end in {', '.join(_SUFFIXES)}.")
        for file in files:
            yield from _file_rows(file)
    elif path.is_file():
        yield from _file_rows(path)
    elif path.suffix or source.startswith((".", "/", "~")):
        raise OSError(f"There is no file {source}: give a file, a folder, or the id of a Hub data set.")
    else:
        from datasets import load_dataset

        for number, row in enumerate(load_dataset(source, split=split, streaming=True)):
            yield f"{source}:{number}", row


def _file_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Line by line where a file has lines: `datasets` would refuse the whole file for one broken line of it."""
    if file.suffix in (".parquet", ".csv"):
        from datasets import load_dataset

        rows = load_dataset(file.suffix[1:], data_files=str(file), split="train", streaming=True)
        yield from ((f"{file.name}:{number}", row) for number, row in enumerate(rows, start=1))
        return
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        whole = _parsed(text)
        if isinstance(whole, dict):
            whole = next((value for value in whole.values() if isinstance(value, list)), [whole])
        yield from ((f"{file.name}:{number}", row) for number, row in enumerate(whole or [None], start=1))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{file.name}:{number}", {"text": line} if file.suffix == ".txt" else _parsed(line)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _prompt(row: Any, place: str) -> tuple[Prompt | None, str]:
    """The prompt of a row, or what it lacks."""
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        return None, "no JSON object"
    system, turns = _turns(row)
    if turns is None:
        return None, "an unknown form"
    turns = [turn.strip() for turn in turns if isinstance(turn, str) and turn.strip()]
    if not turns:
        return None, "no user turn"
    return Prompt(tuple(turns), system if isinstance(system, str) and system.strip() else None, place), ""


def _turns(row: dict[str, Any]) -> tuple[Any, list[Any] | None]:
    """System prompt and user turns; None where no form is known."""
    for field, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if isinstance(row.get(field), list):
            said = [(turn.get(role), turn.get(content)) for turn in row[field] if isinstance(turn, dict)]
            system = next((text for speaker, text in said if speaker == "system"), row.get("system"))
            return system, [text for speaker, text in said if speaker in _USER]
    system = row.get("system")
    if isinstance(row.get("turns"), list):
        return system, row["turns"]
    if "instruction" in row:
        parts = (row["instruction"], row.get("input"))
        return system, ["\n\n".join(part for part in parts if isinstance(part, str) and part.strip())]
    for field in ("prompt", "question", "text"):
        if isinstance(row.get(field), str):
            return system, [row[field]]
    return system, None
