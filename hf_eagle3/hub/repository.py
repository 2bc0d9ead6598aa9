"""A head's repository, laid out as a folder: weights, config, card, records of how it was made, and a little code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from . import cards, code
from .cards import CARD
from .export import serve_command
from .facts import EVALUATIONS, RECIPE, TRAINING
from .words import FILE as WORDS

# What lies beside a head and is worth publishing with it: how it was made, what was measured, what its card says by
# hand, or a card of its own, with the pictures in it.
RECORDS = (TRAINING, RECIPE, f"{EVALUATIONS}/*.json", WORDS, CARD, "*.png", "*.svg")
ENGINE_LAYOUTS = ("sglang", "vllm", "speculators", "eagle")


def lay_out(
    head: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    layout: str | None = None,
    target: Any = None,
    engine_version: str | None = None,
    records: str | os.PathLike | None = None,
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write the repository of `head` into `folder`, which is made.

    Args:
        repo_id: where it goes, which is what the card calls it.
        layout: one of `ENGINE_LAYOUTS`, whose repository has no code of ours; None for our own.
        target, engine_version: for a `layout`, as `export_head` takes them.
        records: the folder with the head's records; the one it was loaded from if None.

    Raises:
        ValueError: if there is no such layout.
        OSError: if `records` is no folder, or something cannot be written.
    """
    folder = Path(folder)
    if layout is None and (target is not None or engine_version is not None):
        raise ValueError("Got a target or an engine's version without a layout, which alone needs them; leave it out.")
    if layout is None:
        head.save_pretrained(folder, max_shard_size=max_shard_size)
        add_code(folder, type(head.config).__name__, type(head).__name__)
    else:
        head.save_pretrained(folder, layout=layout, target=target, engine_version=engine_version)
    copy_records(records if records is not None else head.name_or_path, folder, asked=records is not None)
    write_card(folder, repo_id, None if layout is None else _serve(head, layout, repo_id or folder.name, target))
    return folder


def _serve(head: PreTrainedModel, layout: str, repo_id: str, target: Any) -> str:
    named = target if isinstance(target, str) else getattr(target, "name_or_path", None)
    return serve_command(head, layout, repo_id, named or "TARGET")


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
                copy = folder / path.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
                if path.suffix in (".json", ".yaml"):
                    _drop_places(copy)


def _drop_places(record: Path) -> None:
    """Of paths on the machine that wrote a record, the last part is left: the rest is nobody's business."""
    text = record.read_text(encoding="utf-8")
    try:
        read = json.loads(text) if record.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return  # the card says what is wrong with it
    public = _without_places(read)
    if public != read:
        written = json.dumps(public, indent=1) if record.suffix == ".json" else yaml.safe_dump(public, sort_keys=False)
        record.write_text(written, encoding="utf-8")


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_places(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    whole = isinstance(value, str) and "\n" not in value and os.path.isabs(os.path.expanduser(value))
    return os.path.basename(os.path.normpath(value)) if whole else value


def write_card(folder: Path, repo_id: str | None = None, serve: str | None = None) -> None:
    """`README.md`, rendered from the files that are there; one that somebody wrote is left alone."""
    if not cards.is_by_hand(folder):
        cards.write_card(folder, repo_id, serve)


__all__ = ["ENGINE_LAYOUTS", "RECORDS", "add_code", "copy_records", "lay_out", "write_card"]
