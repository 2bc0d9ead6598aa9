"""The layouts that heads are exported to: how each writes the config and names and chooses the tensors.

The inverse of `hf_eagle3.layouts`; what a layout cannot say was refused before (`export_check`). Here are those of
heads of EAGLE-3, and the list of all. Knows nothing of files.
"""

from __future__ import annotations

from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from ..configuration_eagle import EagleConfig
from ..configuration_eagle3 import Eagle3Config
from ..head_files import Tensors
from .conventions import Case
from .export_layouts_eagle1 import EAGLE1_LAYOUTS
from .export_parts import (
    CHAIN,
    ExportLayout,
    Fields,
    dtype_fields,
    layer_fields,
    rope_fields,
    with_output_bias,
    with_targets_embeddings,
)

# ---------------------------------------------------------------------------------------------- tensors


def _without_idle_maps(case: Case, tensors: Tensors) -> Tensors:
    """Where both vocabularies are one, readers take no map, or stumble over one (vLLM)."""
    idle = ("d2t", "t2d") if case.config.draft_vocab_size == case.config.vocab_size else ()
    return {name: tensor for name, tensor in tensors.items() if name not in idle}


def _without_targets_embeddings(case: Case, tensors: Tensors) -> Tensors:
    """SGLang puts the target's in their place wherever the widths are the same."""
    same = case.config.target_hidden_size == case.config.hidden_size
    return {name: tensor for name, tensor in tensors.items() if not (same and name == "embed_tokens.weight")}


# ---------------------------------------------------------------------------------------------- configs


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


def _flags(case: Case) -> Fields:
    """Said even where they are false: what their absence means differs from reader to reader (trap 8)."""
    names = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
    return {name: getattr(case.config, name) for name in names}


def _eagle(case: Case) -> Fields:
    """As the first released heads: the program reads `rope_theta` and `rope_scaling`, and boundaries are its own."""
    rope = rope_fields(case)
    scaling = rope["rope_scaling"] and {"type": rope["rope_scaling"]["rope_type"], **rope["rope_scaling"]}
    # It keeps a head's own embeddings only if this is set, whatever the width (official `cnets.py`).
    width = {"target_hidden_size": case.config.target_hidden_size} if case.config.own_embeddings else {}
    return {
        "architectures": ["LlamaForCausalLM"],
        **layer_fields(case),
        "draft_vocab_size": case.config.draft_vocab_size,
        **width,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling,
        **dtype_fields(case),
    }


def _sglang(case: Case) -> Fields:
    """Ids as outputs of layers, beginning with 1, which old and new versions and all of its targets read alike."""
    eagle: Fields = {"use_aux_hidden_state": not case.config.reads_last_hidden_state}
    if case.boundaries is not None:
        eagle["eagle_aux_hidden_state_layer_ids"] = [boundary - 1 for boundary in case.boundaries]
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        **layer_fields(case),
        "draft_vocab_size": case.config.draft_vocab_size,
        **_width(case),
        **_flags(case),
        "eagle_config": eagle,
        **rope_fields(case),
        **dtype_fields(case),
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
        **layer_fields(case),
        "draft_vocab_size": case.config.draft_vocab_size,
        **_width(case),
        **_flags(case),
        **reads,
        **_window(case),
        **rope_fields(case),
        **dtype_fields(case),
    }


def _speculators(case: Case) -> Fields:
    assert case.target is not None
    layer = {**layer_fields(case), **rope_fields(case), **_window(case)}
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
        **dtype_fields(case),
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
        edits=(_without_idle_maps, with_output_bias),
    ),
    ExportLayout(
        "speculators",
        _speculators,
        weights=SAFE_WEIGHTS_NAME,
        serve="vllm serve {folder}",
        edits=(_without_idle_maps, with_output_bias, with_targets_embeddings),
        needs_target=True,
    ),
)

# By the `model_type` of a head's config.
LAYOUTS_OF: dict[str, tuple[ExportLayout, ...]] = {
    Eagle3Config.model_type: EAGLE3_LAYOUTS,
    EagleConfig.model_type: EAGLE1_LAYOUTS,
}
# Why a layout that others have is none of theirs.
_NONE = {
    (EagleConfig.model_type, "speculators"): "the speculators library gave up heads of EAGLE-1 before its 0.9.0, and ",
}


def layout_named(name: str, model_type: str) -> ExportLayout:
    """The layout that heads of a kind are exported to under this name.

    Raises:
        ValueError: if there is none.
    """
    layouts = LAYOUTS_OF.get(model_type, ())
    found = next((layout for layout in layouts if layout.name == name), None)
    if found is None:
        why, known = _NONE.get((model_type, name), ""), ", ".join(repr(layout.name) for layout in layouts) or "none"
        raise ValueError(
            f"A head of the kind {model_type!r} cannot be exported to the layout {name!r}; {why}its layouts are: "
            f"{known}."
        )
    return found
