"""A recommended reading written down: config fields and tensors of a head, each file whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from .. import head_files
from ..whole_files import written_whole
from .alternatives import Reading, changed
from .subject import Subject, assemble, complete

NATIVE = "hf-eagle3"


def check_in_place(head: str | os.PathLike) -> None:
    """Refuse to write into what is no folder, or may not be written to.

    Raises:
        ValueError: saying what to pass instead.
    """
    if not Path(head).is_dir():
        raise ValueError(
            f"--write was given, but {head} is no folder of this machine; pass --write-to DIR, and the mended head is "
            "saved there."
        )
    if not os.access(head, os.W_OK):
        raise ValueError(
            f"--write was given, but the folder {head} may not be written to; pass --write-to DIR, and the mended "
            "head is saved there."
        )


def check_new_folder(folder: str | os.PathLike) -> None:
    """Refuse a folder that holds something already.

    Raises:
        ValueError: naming it.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"--write-to {folder} is there already and not an empty folder; name another one.")


def write_in_place(subject: Subject, reading: Reading) -> list[str]:
    """Mend the head in its own folder, in our layout, and say what was changed.

    A head of our layout gets the changed fields, and new weights only if tensors changed. One of another layout
    becomes ours: its config is replaced, and its weights stand in `model.safetensors`, which every reader prefers.
    """
    folder, config = Path(subject.source), subject.config
    if config is None:
        raise ValueError(f"{subject.source} could not be read as an EAGLE-3 head, so nothing was written; mend that.")
    mended, tensors = changed(reading, config, subject.tensors)
    native = subject.layout is not None and subject.layout.name == NATIVE
    fields = {name: getattr(mended, name) for change in reading.values() for name in change.fields}
    tensors = complete(tensors, mended)
    if not native:
        fields = {**json.loads(mended.to_json_string(use_diff=False)), "architectures": ["Eagle3DraftModel"]}
        fields["dtype"] = str(subject.dtype).removeprefix("torch.")
    told = []
    if not native or _differing(subject, tensors):
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        _replace(folder / SAFE_WEIGHTS_NAME, lambda path: save_file(whole, path, metadata={"format": "pt"}))
        told.append(f"{folder / SAFE_WEIGHTS_NAME}: {', '.join(_differing(subject, tensors)) or 'our names'}")
    if fields:
        content = {**subject.fields, **fields} if native else fields
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        _replace(folder / CONFIG_NAME, lambda path: path.write_text(text, encoding="utf-8"))
        named = ", ".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
        told.append(f"{folder / CONFIG_NAME}: {named if native else 'in our layout'}")
    return told


def write_new(subject: Subject, reading: Reading, folder: str | os.PathLike) -> list[str]:
    """Save the mended head in a new folder, in our layout and in the dtype it was stored in."""
    if subject.config is None:
        raise ValueError(f"{subject.source} could not be read as an EAGLE-3 head, so nothing was written; mend that.")
    config, tensors = changed(reading, subject.config, complete(subject.tensors, subject.config))
    head = assemble(config, tensors)
    kept = head_files.read_generation_config(subject.source, subject.hub)
    head.generation_config = kept or head.generation_config
    path = Path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        head.save_pretrained(unfinished)
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [f"{path}: the whole head in our layout, {', '.join(change.told for change in reading.values())}"]


def _differing(subject: Subject, tensors: Any) -> list[str]:
    before = subject.tensors
    return sorted(
        name
        for name in {**before, **tensors}
        if name not in tensors or name not in before or not torch.equal(tensors[name], before[name])
    )


def _replace(path: Path, write: Any) -> None:
    """Write a file whole, with the mode of what is there."""
    with written_whole(path) as unfinished:
        write(unfinished)
        model = path if path.exists() else path.parent / CONFIG_NAME
        unfinished.chmod(model.stat().st_mode)
