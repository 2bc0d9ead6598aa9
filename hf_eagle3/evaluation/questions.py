"""Questions: JSONL files, one object a line with `turns`, of which the first is asked as a chat prompt.

This module knows nothing of heads or of time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Question:
    """One question: the file it stands in (without its ending), its name there, and its first turn."""

    file: str
    name: str
    text: str


def read_questions(
    folder: str | Path, files: Sequence[str] | None = None, limit: int | None = None
) -> dict[str, list[Question]]:
    """The questions of every `*.jsonl` in `folder`, by file name without its ending, in the files' own order.

    Args:
        folder: where the files are.
        files: only these, named with or without `.jsonl`; None means all of them.
        limit: at most so many of each file; None means all.

    Raises:
        OSError: no folder, no file, or a file that was named and is not there.
        ValueError: a line that is no JSON object with `turns` (the message gives file and line).
    """
    folder = Path(folder)
    there = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not there:
        raise OSError(f"No question files in {folder}: give a folder of .jsonl files, one object with `turns` a line.")
    wanted = list(there) if files is None else [name.removesuffix(".jsonl") for name in files]
    missing = [name for name in wanted if name not in there]
    if missing:
        raise OSError(f"No question file {missing[0]}.jsonl in {folder}; there are {', '.join(there)}.")
    return {name: _read_file(there[name], limit) for name in wanted}


# Hub data sets that heads are usually measured on: configuration, split, and the column that holds the question.
HUB_SETS: dict[str, tuple[str | None, str, str]] = {
    "tatsu-lab/alpaca": (None, "train", "instruction"),
    "openai/gsm8k": ("main", "test", "question"),
    "openai/openai_humaneval": (None, "test", "prompt"),
    "HuggingFaceH4/mt_bench_prompts": (None, "train", "prompt"),
    "google-research-datasets/natural_questions": ("default", "validation", "question"),
    "abisee/cnn_dailymail": ("3.0.0", "test", "article"),
}
_COLUMNS = ("turns", "prompt", "question", "instruction", "text")


def gather_questions(
    sources: Sequence[str], files: Sequence[str] | None = None, limit: int | None = None
) -> dict[str, list[Question]]:
    """The questions of folders, of single `.jsonl` files, and of Hub data sets by name (as `name`, or `name:split`).

    Raises:
        OSError, ValueError: as `read_questions` does, and for a Hub data set that cannot be had or asks nothing.
    """
    asked: dict[str, list[Question]] = {}
    for source in sources:
        path = Path(source)
        if path.suffix == ".jsonl" and path.is_file():
            asked[path.stem] = _read_file(path, limit)
        elif path.is_dir() or source.startswith((".", "/", "~")) or source.partition(":")[0].count("/") != 1:
            asked |= read_questions(path, files, limit)
        else:
            asked[source] = _read_hub(source, limit)
    return asked


def _read_hub(source: str, limit: int | None) -> list[Question]:
    """The first questions of a Hub data set, in its order, without fetching the rest."""
    from datasets import load_dataset

    name, _, split = source.partition(":")
    config, usual, column = HUB_SETS.get(name, (None, "test", ""))
    try:
        rows: Any = load_dataset(name, config, split=split or usual, streaming=True)
        questions: list[Question] = []
        for number, row in enumerate(rows):
            if limit is not None and len(questions) >= limit:
                break
            questions.append(Question(source, str(row.get("question_id", number)), _asked(row, column, source)))
    except (OSError, ConnectionError) as error:
        raise OSError(
            f"{name} is neither a folder here nor a Hub data set that can be had ({error}): give a folder of .jsonl "
            "files, or the name of a data set, with its split as in openai/gsm8k:test."
        ) from error
    return questions


def _asked(row: Mapping[str, Any], column: str, source: str) -> str:
    for name in (column, *_COLUMNS):
        value: Any = row.get(name)
        if isinstance(value, dict):  # natural questions: {"text": ...}
            value = value.get("text")
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str) and value.strip():
            return value
    raise ValueError(f"A row of {source} holds no question: a column {', '.join(_COLUMNS)} is needed.")


def encode_chat(tokenizer: PreTrainedTokenizerBase, text: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """`text` as a user's turn with the header of the answer after it; as it stands when the tokenizer has no template.

    Returns:
        `input_ids` and `attention_mask`, both int64 [1, length], on `device`.
    """
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": text}]
        encoded: Any = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        encoded = tokenizer(text, return_tensors="pt")
    return {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}


def _read_file(path: Path, limit: int | None) -> list[Question]:
    questions: list[Question] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and len(questions) >= limit:
                break
            if line.strip():
                questions.append(_parse(line, path, number))
    return questions


def _parse(line: str, path: Path, number: int) -> Question:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"Line {number} of {path} is not JSON ({error.msg}): one object a line is needed.") from error
    turns = row.get("turns") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise ValueError(f"Line {number} of {path} has no `turns`: a list of texts is needed, the first is asked.")
    return Question(path.stem, str(row.get("question_id", number)), turns[0])
