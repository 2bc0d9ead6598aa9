"""Heads in the layouts that serving engines load: checked against what the layout can say, then written whole.

A head is never written in a layout whose readers would compute something else in silence; see `export_check`.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from .. import layouts
from ..head_files import WEIGHT_FILES, Tensors, read_config
from .conventions import Case
from .export_layouts import layout_named
from .export_parts import CHAIN, ExportLayout
from .export_target import Target, read_target

Write = Callable[[Path], None]


def export_head(
    head: Any,
    folder: str | os.PathLike,
    layout: str,
    target: PreTrainedModel | str | os.PathLike | None = None,
    engine_version: str | None = None,
) -> Path:
    """Write a head in the layout of another program.

    Args:
        head: an [`Eagle3DraftModel`] or [`EagleDraftModel`]; its dtype is kept.
        folder: is made; in one that is there, other files are left alone.
        layout: "sglang", "vllm", "speculators" or "eagle" (the official program).
        target: the model that the head is for, or its Hub id or folder. "speculators" needs it, for its name and its
            embeddings; "eagle" for the embeddings of a head of EAGLE-1 that borrows them; the others take from it
            which boundaries the head reads where its config leaves that open, and whether what a head brings is the
            target's.
        engine_version: of what will read it. Conventions that older versions would pass over in silence are written
            only if this says that it is no older.

    Returns:
        The folder, which then holds `config.json` and the weights.

    Raises:
        ValueError: if the layout cannot say how this head computes, or head and target do not belong together.
        TypeError: if `head` is no draft head.
        OSError: if the folder cannot be written, or holds another head.
    """
    chosen = layout_named(layout, _kind(head))
    case = _case(head, target)
    if chosen.needs_target and not (case.target and case.target.name):
        raise ValueError(
            f"The layout {layout!r} names the target and may hold its embeddings; pass `target=`, its Hub id, its "
            "folder or the loaded model."
        )
    chosen.check(case, layout, engine_version)
    path = Path(folder)
    _refuse_other_heads(path, chosen)
    tensors, config = chosen.tensors(case), chosen.config(case)
    write_whole(
        path,
        {
            chosen.weights: lambda file: _save_tensors(tensors, file),
            CONFIG_NAME: lambda file: _save_json(config, file),
        },
    )
    return path


def serve_command(head: Any, layout: str, folder: str | os.PathLike, target: str = "TARGET") -> str:
    """How the program that reads a layout is started with an exported head, with the head's own tree.

    Where the head leaves the size of its tree open: 59 nodes, 8 levels and 10 children, which are the default of a GPU
    here; vLLM, which drafts a chain, gets 3 tokens.
    """
    knobs = head.generation_config
    nodes, steps = knobs.num_assistant_tokens or 59, knobs.tree_depth or 8
    places = {
        "steps": steps,
        "steps_less_one": steps - 1,
        "top_k": knobs.tree_top_k or 10,
        "tokens": nodes + 1,
        "chain": knobs.tree_depth or CHAIN,
    }
    return layout_named(layout, _kind(head)).serve.format(folder=os.fspath(folder), target=target, **places)


def _kind(head: Any) -> str:
    if not isinstance(head, PreTrainedModel):
        raise TypeError(
            f"Got a {type(head).__name__} to export; pass a draft head (of a peft adapter: "
            "`head.merge_and_unload()` first)."
        )
    return str(head.config.model_type)


def _case(head: Any, target: Any) -> Case:
    tensors = head.state_dict()
    known = None if target is None else read_target(target)
    if known is not None:
        _check_pair(head, known)
    return Case(head.config, tensors, head.dtype, known, getattr(head.generation_config, "tree_depth", None))


def _check_pair(head: Any, target: Target) -> None:
    config = head.config
    ours, theirs = (config.vocab_size, config.target_hidden_size), (target.vocab_size, target.hidden_size)
    if ours != theirs:
        raise ValueError(
            f"The head is for a target of {ours[0]} tokens and width {ours[1]}, but {target.name or 'the one given'} "
            f"has {theirs[0]} and {theirs[1]}; pass the target that it was trained for."
        )
    config.boundaries_for(target.num_layers)


def _refuse_other_heads(folder: Path, layout: ExportLayout) -> None:
    """A folder keeps its files, so one head's weights must not come to lie beside another's config."""
    others = [name for name in WEIGHT_FILES if name != layout.weights and (folder / name).exists()]
    there = layouts.recognise(read_config(folder, {})) if (folder / CONFIG_NAME).exists() else None
    if others or (there is not None and there.name == "hf-eagle3"):
        raise OSError(
            f"{folder} already holds a head ({', '.join(others) or CONFIG_NAME}), which the layout {layout.name!r} "
            "would not replace whole; choose another folder."
        )


# ---------------------------------------------------------------------------------------------- files


def write_whole(folder: Path, files: Mapping[str, Write]) -> None:
    """Write files into a folder. A new folder comes in one step; in one that is there nothing changes until all are
    written, and then each is replaced whole, the last one last.

    Raises:
        OSError: whatever kept one from being written.
    """
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    unfinished.mkdir()
    try:
        for name, write in files.items():
            write(unfinished / name)
        if not folder.exists():
            os.replace(unfinished, folder)
            return
        for name in files:
            os.replace(unfinished / name, folder / name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _save_tensors(tensors: Tensors, file: Path) -> None:
    if file.name == SAFE_WEIGHTS_NAME:
        # `save_file` would make a file that only this user can read; who serves it is often another.
        file.write_bytes(save(tensors, metadata={"format": "pt"}))
    else:
        torch.save(tensors, file)


def _save_json(config: Mapping[str, Any], file: Path) -> None:
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
