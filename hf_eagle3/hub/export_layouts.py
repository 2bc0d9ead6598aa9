"""The layouts that heads are exported to: how each writes the config and names and chooses the tensors.

The inverse of `hf_eagle3.layouts`; what a layout cannot say was refused before (`export_check`). Knows nothing of
files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

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


def _without_idle_maps(case: Case, tensors: Tensors) -> Tensors:
    """Where both vocabularies are one, readers take no map, or stumble over one (vLLM)."""
    idle = ("d2t", "t2d") if case.config.draft_vocab_size == case.config.vocab_size else ()
    return {name: tensor for name, tensor in tensors.items() if name not in idle}


def _without_targets_embeddings(case: Case, tensors: Tensors) -> Tensors:
    """SGLang puts the target's in their place wherever the widths are the same."""
    same = case.config.target_hidden_size == case.config.hidden_size
    return {name: tensor for name, tensor in tensors.items() if not (same and name == "embed_tokens.weight")}


def _with_output_bias(case: Case, tensors: Tensors) -> Tensors:
    """Readers that have one switch for all biases of attention need the output's as well: zeros change nothing."""
    if not case.config.qkv_bias:
        return tensors
    zero = torch.zeros(case.config.hidden_size, dtype=case.dtype)
    names = [f"layers.{layer}.self_attn.o_proj.bias" for layer in range(case.config.num_hidden_layers)]
    return {**dict.fromkeys(names, zero), **tensors}


def _with_targets_embeddings(case: Case, tensors: Tensors) -> Tensors:
    """The library's trainer always saves them, and its model is of no use without."""
    assert case.target is not None
    if "embed_tokens.weight" in tensors:
        return tensors
    embeddings = case.target.embeddings()
    if tuple(embeddings.shape) != (case.config.vocab_size, case.config.hidden_size):
        raise ValueError(
            f"The embeddings of {case.target.name} are {list(embeddings.shape)}, but this head needs "
            f"[{case.config.vocab_size}, {case.config.hidden_size}]; pass the target that it was trained for."
        )
    return {**tensors, "embed_tokens.weight": embeddings.to(case.dtype)}


# ---------------------------------------------------------------------------------------------- configs


def _layer(case: Case) -> Fields:
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


def _rope(case: Case) -> Fields:
    """RoPE in the words of transformers 4 and of transformers 5, which say the same (trap 14)."""
    rope: Fields = dict(case.config.rope_parameters or {})
    theta = float(rope.pop("rope_theta", None) or case.config.default_theta)
    kind = rope.setdefault("rope_type", "default")
    return {
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else rope,
        "rope_parameters": {**rope, "rope_theta": theta},
    }


def _window(case: Case) -> Fields:
    config = case.config
    if config.sliding_window is None:
        return {"sliding_window": None, "use_sliding_window": False}
    kinds = ["sliding_attention"] * config.num_hidden_layers
    return {"sliding_window": config.sliding_window, "use_sliding_window": True, "layer_types": kinds}


def _width(case: Case) -> Fields:
    """Readers ask whether this is there at all, so it is there only where it says something."""
    config = case.config
    return {} if config.target_hidden_size == config.hidden_size else {"target_hidden_size": config.target_hidden_size}


def _dtype(case: Case) -> Fields:
    name = str(case.dtype).removeprefix("torch.")
    return {"torch_dtype": name, "dtype": name}


def _flags(case: Case) -> Fields:
    """Said even where they are false: what their absence means differs from reader to reader (trap 8)."""
    names = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    return {name: getattr(case.config, name) for name in names}


def _eagle(case: Case) -> Fields:
    """As the first released heads: the program reads `rope_theta` and `rope_scaling`, and boundaries are its own."""
    rope = _rope(case)
    scaling = rope["rope_scaling"] and {"type": rope["rope_scaling"]["rope_type"], **rope["rope_scaling"]}
    # It keeps a head's own embeddings only if this is set, whatever the width (official `cnets.py`).
    width = {"target_hidden_size": case.config.target_hidden_size} if case.config.own_embeddings else {}
    return {
        "architectures": ["LlamaForCausalLM"],
        **_layer(case),
        "draft_vocab_size": case.config.draft_vocab_size,
        **width,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling,
        **_dtype(case),
    }


def _sglang(case: Case) -> Fields:
    """Ids as outputs of layers, beginning with 1, which old and new versions and all of its targets read alike."""
    eagle: Fields = {"use_aux_hidden_state": not case.config.reads_last_hidden_state}
    if case.boundaries is not None:
        eagle["eagle_aux_hidden_state_layer_ids"] = [boundary - 1 for boundary in case.boundaries]
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        **_layer(case),
        "draft_vocab_size": case.config.draft_vocab_size,
        **_width(case),
        **_flags(case),
        "eagle_config": eagle,
        **_rope(case),
        **_dtype(case),
    }


def _vllm(case: Case) -> Fields:
    """Ids as boundaries, at the top level, where vLLM looks first; it counts them by a field of its own."""
    reads: Fields = {"num_aux_hidden_states": case.config.num_target_boundaries}
    if case.boundaries is not None:
        reads["eagle_aux_hidden_state_layer_ids"] = case.boundaries
    if case.config.reads_last_hidden_state:
        reads = {"eagle_config": {"use_aux_hidden_state": False}}
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        **_layer(case),
        "draft_vocab_size": case.config.draft_vocab_size,
        **_width(case),
        **_flags(case),
        **reads,
        **_window(case),
        **_rope(case),
        **_dtype(case),
    }


def _speculators(case: Case) -> Fields:
    assert case.target is not None
    layer = {**_layer(case), **_rope(case), **_window(case)}
    if case.config.qk_norm:
        layer["model_type"] = "qwen3"
    if case.config.num_target_boundaries != 3:
        layer["num_aux_hidden_states"] = case.config.num_target_boundaries  # vLLM does not count the ids itself
    method = {
        "proposal_type": "greedy",
        "speculative_tokens": case.tree_depth or CHAIN,
        "accept_tolerance": 0.0,
        "verifier_accept_k": 1,
    }
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [method],
            "verifier": {"name_or_path": case.target.name, "architectures": list(case.target.architectures)},
        },
        "transformer_layer_config": layer,
        "draft_vocab_size": case.config.draft_vocab_size,
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": case.boundaries,
        **_flags(case),
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        **_dtype(case),
    }


# ---------------------------------------------------------------------------------------------- the table

_MIDLAYER = ((r"^layers\.0\.", "midlayer."),)

EAGLE3_LAYOUTS = (
    ExportLayout(
        "eagle",
        _eagle,
        # Every version of the program reads this file, and takes it where both are there; only later ones look for
        # safetensors if it is missing.
        weights=WEIGHTS_NAME,
        serve=(
            'EaModel.from_pretrained(use_eagle3=True, base_model_path="{target}", ea_model_path="{folder}", '
            "total_token={tokens}, depth={steps_less_one}, top_k={top_k})"
        ),
        rename=_MIDLAYER,
        edits=(_without_idle_maps,),
    ),
    ExportLayout(
        "sglang",
        _sglang,
        weights=SAFE_WEIGHTS_NAME,
        serve=(
            "python -m sglang.launch_server --model-path {target} --speculative-algorithm EAGLE3 "
            "--speculative-draft-model-path {folder} --speculative-num-steps {steps} "
            "--speculative-eagle-topk {top_k} --speculative-num-draft-tokens {tokens}"
        ),
        # Versions before 2026 know the layer by this name only, and pass over any other.
        rename=_MIDLAYER,
        edits=(_without_idle_maps, _without_targets_embeddings),
    ),
    ExportLayout(
        "vllm",
        _vllm,
        weights=SAFE_WEIGHTS_NAME,
        serve=(
            "vllm serve {target} --speculative-config "
            """'{{"method": "eagle3", "model": "{folder}", "num_speculative_tokens": {chain}}}'"""
        ),
        edits=(_without_idle_maps, _with_output_bias),
    ),
    ExportLayout(
        "speculators",
        _speculators,
        weights=SAFE_WEIGHTS_NAME,
        serve="vllm serve {folder}",
        edits=(_without_idle_maps, _with_output_bias, _with_targets_embeddings),
        needs_target=True,
    ),
)

# By the `model_type` of a head's config: heads of another kind have layouts, and a check, of their own.
LAYOUTS_OF: dict[str, tuple[ExportLayout, ...]] = {"eagle3": EAGLE3_LAYOUTS}


def layout_named(name: str, model_type: str) -> ExportLayout:
    """The layout that heads of a kind are exported to under this name.

    Raises:
        ValueError: if there is none.
    """
    layouts = LAYOUTS_OF.get(model_type, ())
    found = next((layout for layout in layouts if layout.name == name), None)
    if found is None:
        known = ", ".join(repr(layout.name) for layout in layouts) or "none"
        raise ValueError(
            f"A head of the kind {model_type!r} cannot be exported to the layout {name!r}; its layouts are: {known}."
        )
    return found
