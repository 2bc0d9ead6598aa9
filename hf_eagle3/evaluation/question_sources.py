"""Where questions come from: `.jsonl` files, folders of them, and data sets, on the Hub or in a folder like one there.

`datasets` does the reading of the latter; here stands which of their columns is a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..release import install_command
from .questions import Question, read_question_file, read_questions


@dataclass(frozen=True)
class Place:
    """Where in a data set its questions are.

    Args:
        config: its configuration, where it has several.
        split: train, validation, test, ...
        columns: those that make up a question, joined by an empty line; the usual names are tried if there are none.
        form: what is asked, `{}` being what the columns hold.
    """

    config: str | None = None
    split: str = "test"
    columns: tuple[str, ...] = ()
    form: str = "{}"


# Data sets that heads are usually measured on.
KNOWN: dict[str, Place] = {
    "HuggingFaceH4/mt_bench_prompts": Place(None, "train", ("prompt",)),
    "abisee/cnn_dailymail": Place("3.0.0", "test", ("article",), "Summarize: {}"),
    "google-research-datasets/natural_questions": Place("default", "validation", ("question",)),
    "openai/gsm8k": Place("main", "test", ("question",)),
    "openai/openai_humaneval": Place(None, "test", ("prompt",), "Complete this Python function.\n\n{}"),
    "tatsu-lab/alpaca": Place(None, "train", ("instruction", "input")),
}
_USUAL_COLUMNS = ("turns", "prompt", "question", "instruction", "text")
_USUAL_NAMES = ("question_id", "prompt_id", "task_id", "id")


def gather_questions(
    sources: Sequence[str],
    files: Sequence[str] | None = None,
    limit: int | None = None,
    split: str | None = None,
    column: str | None = None,
) -> dict[str, list[Question]]:
    """The questions of all `sources`, by the name of their file or data set.

    Args:
        sources: folders of `.jsonl` files, single ones, or data sets: `owner/name`, with the configuration and the
            split where needed as in `openai/gsm8k/main:test`, or a folder that `datasets.load_dataset` can read.
        files: of folders only these, see [`read_questions`].
        limit: at most so many of each file or data set; None means all.
        split, column: where in the data sets the questions are, if not where [`KNOWN`] says.

    Raises:
        OSError: for a source that is not there or cannot be had.
        ValueError: for one that holds no questions, or has some under a name that another source uses too.
        ImportError: if a data set is asked for and `datasets` is not installed.
    """
    if files and not any(_has_question_files(source) for source in sources):
        raise ValueError(f"--files {files[0]} was given, but only a folder of .jsonl files has files to choose from.")
    asked: dict[str, list[Question]] = {}
    for source in sources:
        for name, questions in _read(source, files, limit, split, column).items():
            if name in asked:
                raise ValueError(f"Two of the sources have questions called {name}: rename one, or leave it out.")
            if not questions:
                raise ValueError(f"{name} holds no question: fill it, leave it out, or name the others by --files.")
            asked[name] = questions
    return asked


def _read(
    source: str, files: Sequence[str] | None, limit: int | None, split: str | None, column: str | None
) -> dict[str, list[Question]]:
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".jsonl":
            raise ValueError(f"{source} is no .jsonl file: one JSON object with `turns` a line is needed.")
        return {path.stem: read_question_file(path, limit)}
    looks_like_a_path = source.startswith((".", "/", "~")) or "/" not in source
    if _has_question_files(source) or (looks_like_a_path and not path.is_dir()):
        return read_questions(path, files, limit)
    if path.is_dir():
        place = Place(split=split or "test", columns=(column,) if column else ())
        return {path.name: _read_data_set(source, str(path.resolve()), path.name, place, limit)}
    name, place = _place(source, split, column)
    return {source: _read_data_set(source, name, source, place, limit)}


def _has_question_files(source: str) -> bool:
    return any(Path(source).expanduser().glob("*.jsonl"))


def _place(source: str, split: str | None, column: str | None) -> tuple[str, Place]:
    """Of `owner/name/configuration:split` the data set's name, and where its questions are."""
    whole, _, own_split = source.partition(":")
    parts = whole.split("/", 2)
    name = "/".join(parts[:2])
    place = KNOWN.get(name, Place())
    if len(parts) > 2:
        place = replace(place, config=parts[2])
    if own_split or split:
        place = replace(place, split=own_split or split or "")
    if column:
        place = replace(place, columns=(column,), form="{}")
    return name, place


def _read_data_set(source: str, name: str, file: str, place: Place, limit: int | None) -> list[Question]:
    """The first questions of a data set, in its order, without fetching the rest."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"{source} is a data set, which needs `datasets`: run `{install_command('train')}`."
        ) from error
    try:
        rows: Any = load_dataset(name, place.config, split=place.split, streaming=True)
        first = [dict(row) for row in islice(rows, limit)]
    except OSError as error:
        raise OSError(
            f"{source} is neither a folder of .jsonl files nor a data set that can be had ({_first_line(error)}): "
            "give a folder of .jsonl files, one object with `turns` a line, or a data set as openai/gsm8k/main:test."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"The split {place.split} of {source} cannot be read ({_first_line(error)}): name configuration and split "
            "as in openai/gsm8k/main:test, or the split by --questions-split."
        ) from error
    return [
        Question(file, _name(row, number), _asked(row, place, source)) for number, row in enumerate(first, start=1)
    ]


def _first_line(error: Exception) -> str:
    """What an error says at first, some go on for lines."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    told = [line for line in lines[:2] if line]
    return " ".join(told).rstrip(".")


def _name(row: Mapping[str, Any], number: int) -> str:
    return str(next((row[name] for name in _USUAL_NAMES if row.get(name) is not None), number))


def _asked(row: Mapping[str, Any], place: Place, source: str) -> str:
    columns = place.columns or next(((name,) for name in _USUAL_COLUMNS if _text(row.get(name))), ())
    told = [text for column in columns if (text := _text(row.get(column)))]
    if not told:
        wanted = " and ".join(place.columns) or f"any of {', '.join(_USUAL_COLUMNS)}"
        raise ValueError(
            f"A row of {source} holds no question in {wanted}; its columns are {', '.join(row)}: name the right one "
            "by --questions-column."
        )
    return place.form.format("\n\n".join(told))


def _text(value: Any) -> str | None:
    """The text in a column: itself, the first turn of a list, or the `text` of Natural Questions."""
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value.strip() else None
