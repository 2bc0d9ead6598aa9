"""The files of a head: its `config.json` as it is, its tensors, its generation config; from a folder or the Hub.

Nothing in them is ever run. Knows nothing of what the fields and tensors mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

# In the order of trust: safetensors before pickles where a repository holds both, as transformers does.
WEIGHT_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

Tensors = dict[str, torch.Tensor]


def read_config(source: str | os.PathLike, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of a folder or Hub repository as it is, whatever its `model_type`.

    Raises:
        OSError: if there is none, or it is not JSON.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    return PreTrainedConfig.get_config_dict(source, **hub)[0]


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
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return _read_file(path)
        shards = sorted(set(json.loads(Path(path).read_text())["weight_map"].values()))
        tensors: Tensors = {}
        for shard in shards:
            tensors |= _read_file(str(cached_file(source, shard, **hub)))
        return tensors
    raise OSError(f"{source} holds none of {', '.join(files)}; a head needs its weights in one of them.")


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
    path = cached_file(source, "generation_config.json", _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        return None
    try:
        return GenerationConfig(**json.loads(Path(path).read_text()))
    except json.JSONDecodeError as error:
        raise OSError(f"{path} is not JSON ({error.msg}); delete it or save the head again.") from error
