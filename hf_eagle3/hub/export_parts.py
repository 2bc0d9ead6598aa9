"""What the layouts of all kinds of heads are made of: what a layout is, and parts of its config and its tensors.

Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..head_files import Tensors
from .conventions import PLAIN_FIELDS, Case
from .export_check import check

Fields = dict[str, Any]
# Tokens that vLLM drafts in a chain, where a head's own tree does not say how deep it goes.
CHAIN = 3


@dataclass(frozen=True)
class ExportLayout:
    """How a head is written for one family of readers.

    Args:
        name: what a user calls it by.
        config: the whole config.json.
        weights: the file of the tensors.
        serve: the command or call that takes the folder, with places for target, folder and tree.
        rename: patterns of canonical tensor names, and what to put in their place.
        edits: what becomes of the canonical tensors before, in order.
        needs_target: whether the files tell of the target as well.
        check: refuses a head that its readers would not compute as it is.
    """

    name: str
    config: Callable[[Case], Fields]
    weights: str
    serve: str
    rename: tuple[tuple[str, str], ...] = ()
    edits: tuple[Callable[[Case, Tensors], Tensors], ...] = ()
    needs_target: bool = False
    check: Callable[[Case, str, str | None], None] = check

    def tensors(self, case: Case) -> Tensors:
        """The tensors as they are named and chosen by this layout, contiguous, on the CPU."""
        tensors = dict(case.tensors)
        for edit in self.edits:
            tensors = edit(case, tensors)
        renamed: Tensors = {}
        for name, tensor in tensors.items():
            for pattern, replacement in self.rename:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor.detach().cpu().contiguous()
        return renamed


# ---------------------------------------------------------------------------------------------- tensors


def with_output_bias(case: Case, tensors: Tensors) -> Tensors:
    """Readers that have one switch for all biases of attention need the output's as well: zeros change nothing."""
    if not case.config.qkv_bias:
        return tensors
    names = [f"layers.{layer}.self_attn.o_proj.bias" for layer in range(case.config.num_hidden_layers)]
    return {**{name: torch.zeros(case.config.hidden_size, dtype=case.dtype) for name in names}, **tensors}


def with_targets_embeddings(case: Case, tensors: Tensors) -> Tensors:
    """For readers that want a head's file to hold them: the official program's EAGLE-1, and speculators, whose trainer
    always saves them."""
    if "embed_tokens.weight" in tensors:
        return tensors
    assert case.target is not None
    embeddings = case.target.embeddings()
    if tuple(embeddings.shape) != (case.config.vocab_size, case.config.hidden_size):
        raise ValueError(
            f"The embeddings of {case.target.name or 'the target'} are {list(embeddings.shape)}, but this head needs "
            f"[{case.config.vocab_size}, {case.config.hidden_size}]; pass the target that it was trained for."
        )
    return {**tensors, "embed_tokens.weight": embeddings.to(case.dtype)}


# ---------------------------------------------------------------------------------------------- configs


def layer_fields(case: Case) -> Fields:
    """What a config of Llama says of a head's geometry."""
    config: Any = case.config
    return {
        "model_type": "llama",
        **{name: getattr(config, name) for name in PLAIN_FIELDS},
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "num_hidden_layers": config.num_hidden_layers,
        "attention_bias": config.attention_bias or config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


def rope_fields(case: Case) -> Fields:
    """RoPE in the words of transformers 4 and of transformers 5, which say the same (trap 14)."""
    rope: Fields = dict(case.config.rope_parameters or {})
    theta = float(rope.pop("rope_theta", None) or case.config.default_theta)
    kind = rope.setdefault("rope_type", "default")
    return {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else rope,
        "rope_parameters": {**rope, "rope_theta": theta},
    }


def dtype_fields(case: Case) -> Fields:
    name = str(case.dtype).removeprefix("torch.")
    return {"torch_dtype": name, "dtype": name}
