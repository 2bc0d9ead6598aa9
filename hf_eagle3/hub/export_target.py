"""What an export must know of the target that a head drafts for, from a model in memory, a folder or the Hub.

Knows nothing of heads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

Part = Callable[[Any], Any]  # of a model, one of its modules


@dataclass(frozen=True)
class Target:
    """
    Args:
        name: its Hub id or folder; empty for a model that was never loaded from anywhere.
        architectures: as its config.json has them.
        embeddings: reads its input embeddings, `[vocab_size, hidden_size]`, in their own dtype. Without the factor
            that some targets multiply them by: a head of EAGLE-3 normalises what it reads of them, which takes it away
            again.
        output_embeddings: reads its output embeddings, `[vocab_size, hidden_size]`; they may be the same.
        scales_embeddings: whether its embedding layer multiplies by such a factor, which heads of EAGLE-1 then read.
    """

    name: str
    architectures: tuple[str, ...]
    num_layers: int
    vocab_size: int
    hidden_size: int
    embeddings: Callable[[], torch.Tensor]
    output_embeddings: Callable[[], torch.Tensor]
    scales_embeddings: Callable[[], bool]


def read_target(target: PreTrainedModel | str | os.PathLike) -> Target:
    """The facts of a target; its weights stay where they are until `embeddings` is called.

    Raises:
        OSError: if there is no such folder or repository.
    """
    if isinstance(target, (str, os.PathLike)):
        source = os.fspath(target)
        config = AutoConfig.from_pretrained(source)
        return _facts(config, source, cache(lambda: _skeleton(config)), lambda part: _stored(source, config, part))
    named = target.config.name_or_path or ""
    return _facts(target.config, named, lambda: target, lambda part: part(target).weight.detach())


def _facts(
    config: PreTrainedConfig, name: str, model: Callable[[], Any], weight: Callable[[Part], torch.Tensor]
) -> Target:
    text = config.get_text_config(decoder=True)
    # They are asked for more than once, and may have to be read from a file of many gigabytes.
    return Target(
        name=name,
        architectures=tuple(config.architectures or ()),
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        embeddings=cache(lambda: weight(_inputs)),
        output_embeddings=cache(lambda: weight(_outputs)),
        scales_embeddings=lambda: type(_inputs(model())).forward is not torch.nn.Embedding.forward,
    )


def _inputs(model: Any) -> Any:
    return model.get_input_embeddings()


def _outputs(model: Any) -> Any:
    return model.get_output_embeddings()


def _skeleton(config: PreTrainedConfig) -> Any:
    """The target without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _stored(source: str, config: PreTrainedConfig, part: Part) -> torch.Tensor:
    """One tensor out of the target's files, or out of the whole model where its files name it differently."""
    model = _skeleton(config)
    wanted = part(model)
    name = next(name for name, module in model.named_modules() if module is wanted) + ".weight"
    path = _file_with(source, name)
    if path is not None:
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 - it is no dictionary
                return file.get_tensor(name)
    whole = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    return part(whole).weight.detach()


def _file_with(source: str, name: str) -> str | None:
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        return cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    shard = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].get(name)
    return None if shard is None else cached_file(source, shard)
