"""Prompts from elsewhere: local files and Hub data sets, whatever of the usual forms they have.

What an assistant says in them is left out: the target writes its own answers. Knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..release import install_command
from .tally import Tally

STEP = "sources"
_FORMS = (
    "`messages` with role and content, ShareGPT's `conversations` with from and value, Alpaca's `instruction` and "
    "`input`, a list `turns`, or `prompt`, `question` or `text`"
)
_DIALOGUES = ("messages", "conversations", "conversation")
_PLAIN = ("prompt", "question", "text")
_ROLE, _CONTENT = ("role", "from"), ("content", "value")
_USER = ("user", "human", "prompter")
_SYSTEM = ("system", "system_prompt")
_SUFFIXES = (".jsonl", ".json", ".txt", ".parquet", ".csv")
# What `save_to_disk` leaves in the folder of a dataset, and of one split.
_SAVED = ("dataset_dict.json", "state.json")

Rows = Iterator[tuple[str, Any]]  # each with its place, such as "my.jsonl:17"


@dataclass(frozen=True)
class Prompt:
    """The user's `turns` in order, the `system` prompt if there is one, and the `source`, such as "my.jsonl:17"."""

    turns: tuple[str, ...]
    system: str | None = None
    source: str = ""


class _Unusable(ValueError):
    """Why a row is no prompt, in a few words."""


def read_prompts(source: str, split: str = "train", tally: Tally | None = None) -> Iterator[Prompt]:
    """The prompts of a file (.jsonl, .json, .txt with one prompt a line, .parquet, .csv), of a folder of such files,
    or of a dataset: a folder of `datasets` or a Hub id, with a configuration after it where one is needed
    ("openai/gsm8k/main").

    Rows are taken as they come, in the source's order. One that holds no prompt is counted as dropped, and the first
    of each kind is noted with its place.

    Args:
        split: of a dataset; files have none.
        tally: hears of each row under "sources".

    Raises:
        OSError: if there is no such file or dataset.
        ValueError: if `source` is empty, no row of a file or dataset holds a prompt, or there is no such split or
            configuration.
        ImportError: if `datasets` is needed and not installed.
    """
    tally, told = Tally() if tally is None else tally, set[str]()
    for name, rows in _parts(source, split):
        yield from _prompts_of(name, rows, tally, told)


def _prompts_of(name: str, rows: Rows, tally: Tally, told: set[str]) -> Iterator[Prompt]:
    """The prompts of one file or dataset; what is unusable is counted, and the first of a kind not `told` noted."""
    usable, seen = 0, 0
    problems: dict[str, str] = {}
    for place, row in rows:
        seen += 1
        try:
            prompt = _prompt(row, place)
        except _Unusable as error:
            problem = str(error)
            tally.dropped(STEP, problem)
            problems.setdefault(problem, place)
            if problem not in told:
                told.add(problem)
                tally.noted(STEP, f"{problem}: first at {place}")
            continue
        usable += 1
        tally.kept(STEP)
        yield prompt
    if not usable:
        found = "; ".join(f"{problem} ({place})" for problem, place in problems.items()) or "it is empty"
        raise ValueError(f"{name} holds no prompt in its {seen} rows ({found}): a row needs {_FORMS}.")


def _parts(source: str, split: str) -> Iterator[tuple[str, Rows]]:
    """The files and datasets of a source, each with its name and its rows."""
    path = Path(source).expanduser()
    if not path.parts:  # "", which would be the folder one happens to be in
        raise ValueError("An empty name was given as a source of prompts: give a file, a folder, or a Hub dataset.")
    if path.is_file():
        yield source, _file_rows(path)
    elif path.is_dir() and not any((path / name).exists() for name in _SAVED):
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith("."))
        if not files:
            raise OSError(
                f"There are no files in {source} that end in {', '.join(_SUFFIXES)}, and it is no dataset that "
                "`save_to_disk` wrote: name a file, or the folder that holds the files."
            )
        yield from ((str(file), _file_rows(file)) for file in files)
    elif path.is_dir() or not (path.suffix in _SUFFIXES or source.startswith((".", "/", "~"))):
        yield source, _dataset_rows(source, path, split)
    else:
        raise OSError(f"There is no file {source}: give a file, a folder, or the id of a Hub dataset.")


def _dataset_rows(source: str, path: Path, split: str) -> Rows:
    """The rows of a dataset. One from the Hub is downloaded and kept by `datasets` (and mapped, not read into memory)
    rather than streamed: prompts are gone through more than once, and again by every run that resumes."""
    datasets = _datasets()
    try:
        if path.is_dir():
            rows = _split_of(datasets.load_from_disk(str(path)), split, source)
        else:
            name, configuration = _split_id(source)
            rows = datasets.load_dataset(name, configuration, split=split)
    except OSError as error:
        raise OSError(
            f"{source} is neither a file or folder here nor a Hub dataset that can be had ({error}): give a file, a "
            "folder, or the id of a Hub dataset."
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"The split {split!r} of the dataset {source} cannot be read ({error}): choose another with --split, or "
            "name a configuration after the id, as in openai/gsm8k/main."
        ) from error
    for number, row in enumerate(rows):
        yield f"{source}:{number}", row


def _split_of(saved: Any, split: str, source: str) -> Any:
    """A saved dataset is one split, or has several by name."""
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise ValueError(f"it has {', '.join(saved)}")
    return saved[split]


def _split_id(source: str) -> tuple[str, str | None]:
    """Hub id and configuration: an id has one slash at most."""
    parts = source.split("/", 2)
    return "/".join(parts[:2]), parts[2] if len(parts) > 2 else None


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Hub datasets, .parquet and .csv are read by datasets, which is not installed: "
            f"{install_command('train')}, or give .jsonl, .json or .txt files."
        ) from error
    return datasets


def _file_rows(file: Path) -> Rows:
    if file.suffix in (".parquet", ".csv"):
        return _table_rows(file)
    if file.suffix == ".json":
        return _json_rows(file)
    return _line_rows(file)


def _table_rows(file: Path) -> Rows:
    datasets, kind = _datasets(), file.suffix[1:]
    try:
        rows = datasets.load_dataset(kind, data_files=str(file), split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{file.name}:{number}", row
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{file} cannot be read as {kind} ({str(error).strip()}): mend it, or save its rows as .jsonl."
        ) from error


def _line_rows(file: Path) -> Rows:
    """Line by line and not by `datasets`, which refuses a whole file for one broken line and does not say which.

    Lines end where "\\n" stands and nowhere else: JSON may hold the other signs that Python splits lines at.
    """
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                row = {"text": line} if file.suffix == ".txt" else _parsed(line)
            except UnicodeDecodeError:
                row = _Unusable("not UTF-8")
            except json.JSONDecodeError:
                row = _Unusable("broken JSON")
            except RecursionError:
                row = _Unusable("JSON nested too deep")
            yield f"{file.name}:{number}", row


def _json_rows(file: Path) -> Rows:
    """A list of rows, one of them, or an object with a list of them; read whole, which is what JSON asks for."""
    try:
        whole = _parsed(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):  # often it is lines of JSON under another name
        yield from _line_rows(file)
        return
    if isinstance(whole, dict) and not any(name in whole for name in (*_DIALOGUES, *_PLAIN, "turns", "instruction")):
        whole = next((value for value in whole.values() if isinstance(value, list)), whole)
    for number, row in enumerate(whole if isinstance(whole, list) else [whole], start=1):
        yield f"{file.name}:{number}", row


def _parsed(text: str) -> Any:
    """JSON, its whole numbers as float: none is a prompt, and Python refuses to read an int of 5000 digits."""
    return json.loads(text, parse_int=float)


def _prompt(row: Any, place: str) -> Prompt:
    """The prompt of a row.

    Raises:
        _Unusable: with what it lacks.
    """
    if isinstance(row, _Unusable):
        raise row
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise _Unusable("no JSON object")
    said = _said(row)
    turns = [text for text in (_text(content) for role, content in said if role in _USER) if text]
    if not turns:
        raise _Unusable("no user turn")
    systems = [_text(content) for role, content in said if role == "system"]
    systems += [_text(row[name]) for name in _SYSTEM if row.get(name) is not None]
    return Prompt(tuple(turns), next(filter(None, systems), None), place)


def _said(row: dict[str, Any]) -> list[tuple[str, Any]]:
    """Who said what, in order; the roles in small letters."""
    for name in (*_DIALOGUES, *_PLAIN[:1]):  # a `prompt` may be a dialogue too
        dialogue = _as_list(row.get(name))
        if dialogue is not None:
            if not all(isinstance(turn, dict) for turn in dialogue):
                raise _Unusable(f"`{name}` of another form")
            return [(str(_first(turn, _ROLE)).lower(), _first(turn, _CONTENT)) for turn in dialogue]
    if isinstance(row.get("turns"), list):
        return [("user", turn) for turn in row["turns"]]
    if row.get("instruction") is not None:
        parts = [_text(row[name]) for name in ("instruction", "input") if row.get(name) is not None]
        return [("user", "\n\n".join(filter(None, parts)))]
    for name in _PLAIN:
        if row.get(name) is not None:
            return [("user", row[name])]
    raise _Unusable("an unknown form")


def _as_list(value: Any) -> list[Any] | None:
    """The turns of a dialogue: a list, a list in JSON as tables have it, or columns as `datasets` makes of one."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = _parsed(value)
        except (json.JSONDecodeError, RecursionError):
            return None
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        return [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]
    return value if isinstance(value, list) else None


def _first(turn: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _text(content: Any) -> str:
    """What was said, without white space around it; the parts of a message joined if all of them are text."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "\n".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise _Unusable("a turn that is no text")
    return content.strip()
