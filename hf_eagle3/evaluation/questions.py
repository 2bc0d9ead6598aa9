"""Questions: JSONL files, one object a line with `turns`, of which the first is asked as a chat prompt.

This module knows nothing of heads or of time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    return {name: read_question_file(there[name], limit) for name in wanted}


def read_question_file(path: Path, limit: int | None = None) -> list[Question]:
    """The questions of one `.jsonl` file, at most `limit` of them.

    Raises:
        OSError, ValueError: as [`read_questions`] does.
    """
    questions: list[Question] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and len(questions) >= limit:
                break
            if line.strip():
                questions.append(_parse(line, path, number))
    return questions


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


def _parse(line: str, path: Path, number: int) -> Question:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"Line {number} of {path} is not JSON ({error.msg}): one object a line is needed.") from error
    turns = row.get("turns") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise ValueError(f"Line {number} of {path} has no `turns`: a list of texts is needed, the first is asked.")
    return Question(path.stem, str(row.get("question_id", number)), turns[0])
