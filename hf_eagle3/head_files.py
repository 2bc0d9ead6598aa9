"""The files of a head: its `config.json` as it is, its tensors, its generation config; from a folder or the Hub.

Nothing in them is ever run. Knows nothing of what the fields and tensors mean, nor how a file is had from the Hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from .hub_files import HUB_ARGUMENTS, absent, fetch, hub_arguments

# In the order of trust: safetensors before pickles where a repository holds both, as transformers does.
WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OF_ADAPTER = (
    "revision",
    "subfolder",
    "config",
)  # arguments that mean an adapter, where one is loaded, and not its head
BASE = "base_model_name_or_path"  # in an adapter's config: the head that it belongs to

Tensors = dict[str, torch.Tensor]


class IsAdapter(OSError):
    """Raised where an adapter was found in place of a whole head; `base` is the head that it belongs to."""

    def __init__(self, source: str | os.PathLike, base: str) -> None:
        super().__init__(f"{source} holds an adapter of the head {base}; load that head, and put the adapter on it.")
        self.base = base


def read_config(source: str | os.PathLike, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of a folder or Hub repository, or a file that is one, as it is, whatever its `model_type`.

    Raises:
        IsAdapter: if there is none, but an adapter's config.
        OSError: if there is none, or it is not JSON.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    path = os.fspath(source) if os.path.isfile(source) else fetch(source, CONFIG_NAME, hub)
    if path is None:
        adapter = fetch(source, ADAPTER_CONFIG_NAME, hub)
        if adapter is None:
            raise absent(source, (CONFIG_NAME,), hub)
        base = _read_json(adapter).get(BASE)
        if not base:
            raise OSError(f"{source} holds an adapter that does not say of which head; set `{BASE}` in its config.")
        raise IsAdapter(source, base)
    return _read_json(path)


def _read_json(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise OSError(f"{path} is not JSON ({_first_line(error)}); download or save it again.") from error
    if not isinstance(found, dict):
        raise OSError(f"{path} holds a JSON {type(found).__name__}, but an object is needed; save it again.")
    return found


def weight_files(kwargs: dict[str, Any]) -> tuple[str, ...]:
    """Which files to look for; takes the arguments that say so out of `kwargs`, and those that mean nothing here."""
    for name in ("trust_remote_code", "code_revision", "_from_auto", "_commit_hash"):
        kwargs.pop(name, None)
    if kwargs.pop("variant", None) is not None:
        raise ValueError("`variant` was given, but heads are stored in one variant only; leave it out.")
    safe = kwargs.pop("use_safetensors", None)
    return WEIGHT_FILES if safe is None else WEIGHT_FILES[:2] if safe else WEIGHT_FILES[2:]


def read_tensors(source: str, hub: Mapping[str, Any], files: tuple[str, ...]) -> Tensors:
    for name in files:
        path = fetch(source, name, hub)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return _read_file(path)
        tensors: Tensors = {}
        index = _read_json(path).get("weight_map")
        if not isinstance(index, dict):
            raise OSError(f"{path} has no `weight_map`, which says where the weights are; download or save it again.")
        for shard in sorted(set(index.values())):
            if os.path.basename(shard) != shard:
                raise OSError(f"{path} names the file {shard!r}, which is not beside it; save the head again.")
            part = fetch(source, shard, hub)
            if part is None:
                raise absent(source, (shard,), hub)
            tensors |= _read_file(part)
        return tensors
    raise absent(source, files, hub)


def _read_file(path: str) -> Tensors:
    """Tensors of one file; a pickle is read with `weights_only=True`, so that nothing in it can run."""
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                return {name: file.get_tensor(name) for name in names}
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise OSError(
            f"{path} cannot be read ({_first_line(error)}): it is truncated or not what its name says; "
            "download or save it again."
        ) from error
    except Exception as error:
        # torch raises `pickle.UnpicklingError` for code and for damage alike, and other types for odd archives.
        raise OSError(
            f"{path} is not a plain file of tensors and was refused without running anything in it "
            f"({type(error).__name__}); ask its author for safetensors."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise OSError(f"{path} holds no dictionary of tensors; ask its author for the head's state dict.")
    return loaded


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def read_generation_config(source: str | os.PathLike, hub: Mapping[str, Any]) -> GenerationConfig | None:
    path = fetch(source, GENERATION_CONFIG_NAME, hub)
    return None if path is None else GenerationConfig(**_read_json(path))


__all__ = [
    "ADAPTER_CONFIG_NAME",
    "ADAPTER_WEIGHTS",
    "BASE",
    "HUB_ARGUMENTS",
    "OF_ADAPTER",
    "IsAdapter",
    "Tensors",
    "fetch",
    "hub_arguments",
    "read_config",
    "read_generation_config",
    "read_tensors",
    "weight_files",
]
