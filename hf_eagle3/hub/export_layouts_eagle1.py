"""The layouts that heads of EAGLE-1, EAGLE-2 and HASS are exported to.

All have the names of tensors of the official program, which are ours. Knows nothing of files.
"""

from __future__ import annotations

import torch
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from ..head_files import Tensors
from .conventions import Case
from .export_parts import (
    ExportLayout,
    Fields,
    dtype_fields,
    layer_fields,
    rope_fields,
    with_output_bias,
    with_targets_embeddings,
)

# ---------------------------------------------------------------------------------------------- tensors


def _without_output_embeddings(case: Case, tensors: Tensors) -> Tensors:
    """All readers predict with the target's, which a head that brings some was checked to hold."""
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def _without_embeddings(case: Case, tensors: Tensors) -> Tensors:
    """Engines draft with the target's. vLLM's loader passes over those in a file, and may yet count on them."""
    return {name: tensor for name, tensor in tensors.items() if name != "embed_tokens.weight"}


def _with_bias(case: Case, tensors: Tensors) -> Tensors:
    """SGLang's joining layer always has a bias, which stays random unless it is in the file (trap 10)."""
    return {"fc.bias": torch.zeros(case.config.hidden_size, dtype=case.dtype), **tensors}


def _without_bias(case: Case, tensors: Tensors) -> Tensors:
    """vLLM's has none, and one that is in the file was checked to be zeros."""
    return {name: tensor for name, tensor in tensors.items() if name != "fc.bias"}


# ---------------------------------------------------------------------------------------------- configs


def _eagle(case: Case) -> Fields:
    """As the released heads. That there is no `bias` means that there is one; said aloud, engines that load such heads
    too would take it for one of attention."""
    rope, config = rope_fields(case), case.config
    scaling = rope["rope_scaling"] and {"type": rope["rope_scaling"]["rope_type"], **rope["rope_scaling"]}
    return {
        "architectures": ["LlamaForCausalLM"],
        **layer_fields(case),
        "attention_bias": False,
        **({} if config.fc_bias else {"bias": False}),
        **({"qkv_bias": True} if config.qkv_bias else {}),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling,
        **dtype_fields(case),
    }


def _sglang(case: Case) -> Fields:
    return {"architectures": ["LlamaForCausalLMEagle"], **_engine(case)}


def _vllm(case: Case) -> Fields:
    """It puts "Eagle" before the architecture itself."""
    return {"architectures": ["LlamaForCausalLM"], **_engine(case)}


def _engine(case: Case) -> Fields:
    return {**layer_fields(case), **rope_fields(case), **dtype_fields(case)}


# ---------------------------------------------------------------------------------------------- the table

EAGLE1_LAYOUTS = (
    ExportLayout(
        "eagle",
        _eagle,
        weights=WEIGHTS_NAME,  # the only file that its first versions look for
        serve=(
            'EaModel.from_pretrained(use_eagle3=False, base_model_path="{target}", ea_model_path="{folder}", '
            "total_token={tokens}, depth={steps_less_one}, top_k={top_k})"
        ),
        edits=(_without_output_embeddings, with_targets_embeddings),
    ),
    ExportLayout(
        "sglang",
        _sglang,
        weights=SAFE_WEIGHTS_NAME,
        serve=(
            "python -m sglang.launch_server --model-path {target} --speculative-algorithm EAGLE "
            "--speculative-draft-model-path {folder} --speculative-num-steps {steps} "
            "--speculative-eagle-topk {top_k} --speculative-num-draft-tokens {tokens}"
        ),
        edits=(_without_output_embeddings, _without_embeddings, _with_bias, with_output_bias),
    ),
    ExportLayout(
        "vllm",
        _vllm,
        weights=SAFE_WEIGHTS_NAME,
        serve=(
            "vllm serve {target} --speculative-config "
            """'{{"method": "eagle", "model": "{folder}", "num_speculative_tokens": {chain}}}'"""
        ),
        edits=(_without_output_embeddings, _without_embeddings, _without_bias, with_output_bias),
    ),
)
