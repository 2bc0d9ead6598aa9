"""Conversations as token ids with a role per token, and the shards that hold them on disk.

Ids are stored as they were generated and never tokenised again: a text may tokenise differently from how the target
wrote it, and then mask and features would belong to other tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

TEMPLATE, USER, ANSWER = 0, 1, 2


@dataclass
class Conversation:
    """`ids` and `roles` (TEMPLATE, USER or ANSWER per token, the stop token of an answer being ANSWER), and `about`.

    `states [tokens - 1, width]` are the target's, where they were captured while the text was made; never saved here.
    """

    ids: list[int] = field(default_factory=list)
    roles: list[int] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    states: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def extend(self, ids: list[int], role: int) -> None:
        """Append `ids`, all of one `role`."""
        self.ids.extend(ids)
        self.roles.extend([role] * len(ids))

    def answer_mask(self) -> torch.Tensor:
        """Bool `[tokens]`: the tokens the target itself generated as an answer (what the loss is on)."""
        return torch.tensor(self.roles) == ANSWER

    @property
    def answer_tokens(self) -> int:
        return sum(role == ANSWER for role in self.roles)


def write_atomically(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Save a safetensors file under a temporary name and rename it, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata)
    os.replace(temporary, path)


def save_conversations(conversations: Iterable[Conversation], path: Path) -> None:
    """One shard: `ids` (uint16 where they fit, else int32) and `roles` uint8, both flat, `lengths` int64, and each
    `about` as JSON in the metadata."""
    rows = list(conversations)
    ids = torch.tensor([token for row in rows for token in row.ids], dtype=torch.int32)
    tensors = {
        "ids": ids.to(torch.uint16) if int(ids.max()) < 1 << 16 else ids,
        "roles": torch.tensor([role for row in rows for role in row.roles], dtype=torch.uint8),
        "lengths": torch.tensor([len(row.ids) for row in rows], dtype=torch.int64),
    }
    write_atomically(tensors, path, {"about": json.dumps([row.about for row in rows])})


def load_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of one shard file, or of a folder of `conversations-*.safetensors` in their order.

    Raises `OSError` when there is none.
    """
    files = sorted(path.glob("conversations-*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise OSError(
            f"No conversations under {path}: generate some first (`hf-eagle3 train` does) or name their folder."
        )
    for file in files:
        with safe_open(file, framework="pt") as shard:
            ids, roles = shard.get_tensor("ids").tolist(), shard.get_tensor("roles").tolist()
            lengths = shard.get_tensor("lengths").tolist()
            about = json.loads((shard.metadata() or {}).get("about", "[]")) or [{}] * len(lengths)
        start = 0
        for length, facts in zip(lengths, about, strict=True):
            yield Conversation(ids[start : start + length], roles[start : start + length], facts)
            start += length


def reshard(source: Path, folder: Path, size: int = 64) -> None:
    """Write what `source` (a shard or a folder of shards) holds into `folder`, `size` conversations a shard."""
    rows = list(load_conversations(source))
    for number, start in enumerate(range(0, len(rows), size)):
        save_conversations(rows[start : start + size], folder / f"conversations-{number:05d}.safetensors")
