"""A head's repository, laid out as a folder: weights, config, card, records of how it was made, and a little code."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from . import code

CARD = "README.md"
# What lies beside a head and is worth publishing with it: how it was made, what was measured, and its own card with
# the pictures in it.
RECORDS = ("training.json", "recipe.*", "eval*.json", CARD, "*.png", "*.svg")
ENGINE_LAYOUTS = ("sglang", "vllm", "speculators", "eagle")


def lay_out(
    head: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    layout: str | None = None,
    records: str | os.PathLike | None = None,
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write the repository of `head` into `folder`, which is made.

    Args:
        layout: one of `ENGINE_LAYOUTS`, whose repository has no code of ours; None for our own.
        records: the folder with the head's records; the one it was loaded from if None.

    Raises:
        ValueError: if there is no such layout.
        OSError: if `records` is no folder, or something cannot be written.
    """
    folder = Path(folder)
    if layout is None:
        head.save_pretrained(folder, max_shard_size=max_shard_size)
        add_code(folder, type(head.config).__name__, type(head).__name__)
    else:
        _export(head, folder, layout)
    copy_records(records if records is not None else head.name_or_path, folder, asked=records is not None)
    write_card(folder)
    return folder


def add_code(folder: Path, config_class: str, model_class: str) -> None:
    """The files of code, and `auto_map` in config.json; they are the same for every head of a class."""
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    config["auto_map"] = code.auto_map(config_class, model_class)
    texts = {
        CONFIG_NAME: json.dumps(config, indent=2, sort_keys=True) + "\n",
        f"{code.MODULE}.py": code.modeling_file(config_class, model_class),
        code.GENERATE: code.generate_file(),
        code.REQUIREMENTS: code.REQUIREMENT_LINE,
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def copy_records(source: str | os.PathLike, folder: Path, asked: bool) -> None:
    """Copy what of `RECORDS` lies in the folder `source`, which only has to be one if it was `asked` for."""
    if not os.path.isdir(source):
        if asked:
            raise OSError(f"The records {os.fspath(source)} are no folder; name the one where `training.json` lies.")
        return
    for pattern in RECORDS:
        for path in sorted(Path(source).glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def write_card(folder: Path) -> None:
    """`README.md`, rendered from the files that are there; a head's own is left alone."""
    if (folder / CARD).is_file():
        return
    data = ModelCardData(library_name="transformers", tags=["eagle3", "speculative-decoding", "draft-model"])
    ModelCard(f"---\n{data.to_yaml()}\n---\n\nAn EAGLE-3 draft head.\n").save(folder / CARD)


def _export(head: Any, folder: Path, layout: str) -> None:
    if layout not in ENGINE_LAYOUTS:
        raise ValueError(f"Got the layout {layout!r}; there are {', '.join(ENGINE_LAYOUTS)}, or none for our own.")
    if importlib.util.find_spec("hf_eagle3.hub.export") is None:
        raise ValueError(f"This version of hf-eagle3 cannot write the layout {layout!r}; leave it out, or update it.")
    head.save_pretrained(folder, layout=layout)


__all__ = ["ENGINE_LAYOUTS", "RECORDS", "add_code", "copy_records", "lay_out", "write_card"]
