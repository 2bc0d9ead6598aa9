"""Files that are there whole or not at all, whenever the writer is killed. Knows nothing of what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a sibling of `path` to write to, which takes its place in one step at the end; its folder is made.

    Raises:
        OSError: whatever keeps it from being written; nothing of it is left then, and a file that was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")  # several processes may write the same file
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


__all__ = ["written_whole"]
