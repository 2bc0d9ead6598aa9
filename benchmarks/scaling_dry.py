"""The material of `scaling.py --dry-run`: the tests' tiny random target, and what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CONVERSATIONS, HELD_OUT = 72, 8
DRY_FIELDS: dict[str, Any] = {
    "dtype": "float32", "bf16": False, "max_steps": 4, "max_batch_tokens": 128, "draft_vocab_size": 40,
    "eval_prompts": 2, "eval_new_tokens": 8, "logging_steps": 4, "disable_tqdm": True,
}  # fmt: skip


def write_tiny_data(folder: Path) -> Any:
    """Put a data set into `folder`, unless one is there; gives the target whose words it holds."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    try:
        from helpers.tiny_training import own_rows, tiny_target
    finally:
        sys.path.pop(0)
    target = tiny_target()
    if not folder.exists():
        from datasets import Dataset, DatasetDict

        rows = own_rows(target, CONVERSATIONS)
        splits = {"train": Dataset.from_list(rows[HELD_OUT:]), "validation": Dataset.from_list(rows[:HELD_OUT])}
        DatasetDict(splits).save_to_disk(folder)
    return target
