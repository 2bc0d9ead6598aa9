"""Checkpoints that survive: which of them are whole, and what becomes of a save that fails.

Trainer writes `trainer_state.json` last and sweeps older checkpoints away only then: so a checkpoint is whole exactly
if that file is there and can be read, whenever the process was killed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)


def newest(folder: str | Path) -> Path | None:
    """The whole checkpoint of the most steps under `folder`; half-written newer ones are removed."""
    for path in sorted(Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=step_of, reverse=True):
        if is_whole(path):
            return path
        logger.warning("%s was not written to its end and is removed", path)
        shutil.rmtree(path)
    return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        state = json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(state.get("global_step") == step_of(path))


def step_of(path: Path) -> int:
    """The update after which a checkpoint was made; -1 for a folder of another name."""
    digits = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(digits) if digits.isdecimal() else -1


@contextmanager
def intact(folder: str | Path, step: int, writing: bool = True) -> Iterator[None]:
    """Around the writing of a checkpoint: one that fails is removed and told in a sentence.

    Args:
        writing: this process is the one that writes `trainer_state.json`. One that is there already, of an earlier
            run over the same folder, goes first: a checkpoint that is being written is not whole.

    Raises:
        OSError: whatever kept it from being written (a full disk, mostly).
    """
    unfinished = Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    if writing:
        (unfinished / TRAINER_STATE_NAME).unlink(missing_ok=True)
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors wrap a full disk, each its way
        shutil.rmtree(unfinished, ignore_errors=True)
        last = newest(folder)
        kept = f"the last good one is {last}" if last else "there is none before it"
        raise OSError(
            f"The checkpoint of step {step} could not be written ({error}); {kept}: see what is wrong there "
            "(a full disk, mostly) and run the same command again, which goes on from it."
        ) from error
