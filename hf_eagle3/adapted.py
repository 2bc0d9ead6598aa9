"""A head that may lie behind an adapter of it: the adapter's repository names the head that it is put on.

Knows nothing of modules beyond what peft is asked to do with one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from . import head_files
from .checkpoint import Checkpoint, read_checkpoint
from .release import install_command


@dataclass(frozen=True)
class Adapter:
    """Where an adapter lies, and the Hub's arguments to fetch it with."""

    source: str | os.PathLike
    hub: dict[str, Any]

    def put_on(self, head: Any) -> None:
        """Load the adapter into `head`, in place.

        Raises:
            ImportError: if peft is not installed.
            OSError: if its weights are not what the Hub says they are.
        """
        head_files.fetch(self.source, head_files.ADAPTER_WEIGHTS, self.hub)  # checks its hash; transformers would not
        try:
            head.load_adapter(os.fspath(self.source), adapter_kwargs=self.hub)
        except ModuleNotFoundError as error:
            command = install_command("train")
            raise ImportError(f"{self.source} is an adapter, which needs peft: {command}") from error


def read_adapted(source: str | os.PathLike, kwargs: dict[str, Any]) -> tuple[Checkpoint, Adapter | None]:
    """What [`read_checkpoint`] reads, of the head that an adapter names where `source` is one, and that adapter.

    Takes out of `kwargs` what it serves.

    Raises:
        OSError, ValueError: as `read_checkpoint` does.
    """
    hub = dict(kwargs.pop("adapter_kwargs", None) or {})
    onto = hub.pop("_adapter_model_path", None)  # AutoModel has followed this adapter to its head
    given = dict(kwargs)
    try:
        found = read_checkpoint(source, kwargs)
    except head_files.IsAdapter as only:
        own = {name: given[name] for name in head_files.HUB_ARGUMENTS if given.get(name) is not None}
        onto, hub = source, {**own, **hub}
        for name in head_files.OF_ADAPTER:
            given.pop(name, None)
        kwargs.clear()
        kwargs.update(given)
        found = read_checkpoint(only.base, kwargs)
    return found, None if onto is None else Adapter(onto, hub)


__all__ = ["Adapter", "read_adapted"]
