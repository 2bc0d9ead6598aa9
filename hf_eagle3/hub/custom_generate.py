"""`generate(custom_generate="owner/head", trust_remote_code=True)`: what the file in that repository calls.

Repositories out there call `generate_with(__file__, model, **kwargs)`: that much of this module stays as it is.
"""

from __future__ import annotations

import inspect
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from ..hub_files import HUB_ARGUMENTS
from ..loading import load_head

# Heads are small beside a target, but not nothing: a process keeps those that it used last.
KEPT = 4
_heads: OrderedDict[tuple[Any, ...], PreTrainedModel] = OrderedDict()
_lock = threading.Lock()


def generate_with(code: str, target: PreTrainedModel, **kwargs: Any) -> Any:
    """`target.generate` by the head that lies in the repository (at the commit) of the file `code`.

    Args:
        code: `__file__` of a repository's `custom_generate/generate.py`, where transformers has put it.
        kwargs: everything that `generate` was given, the Hub's arguments (`token`, `cache_dir`, ...) among them.

    Raises:
        ValueError: if another assistant was given too, or the folder is not known that the code came from.
        OSError, ValueError: as `load_head` and `generate(assistant_model=head)` do.
    """
    if kwargs.pop("assistant_model", None) is not None:
        raise ValueError("Got both `assistant_model` and the `custom_generate` of a head; leave out one of them.")
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    source, commit = home_of(code, asked_for())
    if commit is not None:
        hub["revision"] = commit
    return target.generate(**kwargs, assistant_model=_head(source, hub, target))


def home_of(code: str, asked: str | None) -> tuple[str, str | None]:
    """The repository and commit, or the folder and None, that a file in transformers' folder of modules came from.

    A repository's file lies under owner, name and commit there, which hold even where the repository has another name
    by now; a folder's only under the folder's last name and a hash, so what `generate` was asked for has to say which.
    """
    parts = Path(code).parts
    where = len(parts) - 1 - parts[::-1].index(TRANSFORMERS_DYNAMIC_MODULE_NAME)
    *names, state = parts[where + 1 : -2]
    if re.fullmatch(r"[0-9a-f]{40}", state):
        exact = asked is not None and not os.path.isdir(asked)
        return (str(asked) if exact else "/".join(map(_unmangled, names))), state
    if asked is None or not os.path.isdir(asked):
        raise ValueError(
            f"The code of a head's folder {'/'.join(names)} was called without `generate`, so where the head lies is "
            "not known; call `target.generate(..., custom_generate=folder, trust_remote_code=True)`."
        )
    return os.path.abspath(asked), None


def asked_for() -> str | None:
    """What the nearest `generate` of transformers was given as `custom_generate`, which it does not hand on."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "generate" and frame.f_globals.get("__name__") == GenerationMixin.__module__:
            asked = frame.f_locals.get("custom_generate")
            if isinstance(asked, str):
                return asked
        frame = frame.f_back
    return None


def _unmangled(name: str) -> str:
    """A part of a repository's id, out of the name that transformers makes a module of."""
    name = name.replace("_dot_", ".").replace("_hyphen_", "-")
    return name[1:] if re.match(r"_\d", name) else name


def _head(source: str, hub: dict[str, Any], target: PreTrainedModel) -> PreTrainedModel:
    """The head on the target's device and in its dtype, loaded once a process; two threads wait for each other."""
    device, dtype = _device_of(target), target.dtype
    key = (source, hub.get("revision"), _stamp(source), device, dtype)
    with _lock:
        if key not in _heads or hub.get("force_download"):
            _heads[key] = load_head(source, dtype=dtype, **hub).to(device)
        _heads.move_to_end(key)
        while len(_heads) > KEPT:
            _heads.popitem(last=False)
        return _heads[key]


def _device_of(target: PreTrainedModel) -> torch.device:
    """Where the target's last states come out: an offloaded module's weights are on `meta`, its hook knows better."""
    hook = getattr(target.get_output_embeddings(), "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or target.device)


def _stamp(source: str) -> int:
    """When a folder's files were last written; 0 for a repository, whose commits never change."""
    if not os.path.isdir(source):
        return 0
    return max((path.stat().st_mtime_ns for path in Path(source).iterdir() if path.is_file()), default=0)


__all__ = ["asked_for", "generate_with", "home_of"]
