"""Pieces of a tiny checkpoint: a config with shrunk sizes, shapes in symbols, and layers the catalogue abbreviates.

Knows no variant; `checkpoint_catalogue.py` puts the pieces together.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from .checkpoint_conventions import MASK_TOKEN, ORIGINAL_POSITIONS, PLACEHOLDER_THETA, WINDOW
from .checkpoint_options import Sizes, Spec

__all__ = ["megatron_layers", "qkv_biases", "rest_of_latent_head", "shape", "speculator_layer", "tiny_config"]

MAX_POSITIONS = 512
UNFIT_FOR_TINY = re.compile(r"<|UNVERIFIED|per BaldEagle")
LLAMA_LAYER = {
    "self_attn.q_proj.weight": "[A*D, H]",
    "self_attn.k_proj.weight": "[K*D, H]",
    "self_attn.v_proj.weight": "[K*D, H]",
    "self_attn.o_proj.weight": "[H, A*D]",
    "mlp.gate_proj.weight": "[I, H]",
    "mlp.up_proj.weight": "[I, H]",
    "mlp.down_proj.weight": "[H, I]",
}
OUTER = {"norm.weight": "[H]", "fc.weight": "[H, 3*Ht]", "lm_head.weight": "[Vd, H]"}


def tiny_config(value: Any, sizes: Sizes, aux_ids: tuple[int, ...] | None, name: str = "") -> Any:
    """`value` of the field `name` with tiny sizes; names, nesting and types stay."""
    if isinstance(value, dict):
        return {key: tiny_config(inner, sizes, aux_ids, key) for key, inner in value.items()}
    if name == "eagle_aux_hidden_state_layer_ids" and value is not None and aux_ids is not None:
        return list(aux_ids)
    if isinstance(value, list):
        return [tiny_config(inner, sizes, aux_ids, name) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    by_name: dict[str, Any] = {
        "hidden_size": sizes.H,
        "target_hidden_size": sizes.Ht,
        "intermediate_size": sizes.I,
        "num_attention_heads": sizes.A,
        "num_key_value_heads": sizes.K,
        "head_dim": sizes.D,
        "vocab_size": sizes.Vt,
        "draft_vocab_size": sizes.Vd,
        "truncated_vocab_size": sizes.Vd,
        "max_position_embeddings": MAX_POSITIONS,
        "max_sequence_length": MAX_POSITIONS,
        "original_max_position_embeddings": ORIGINAL_POSITIONS,
        "sliding_window": WINDOW,
        "q_lora_rank": sizes.q_lora,
        "kv_lora_rank": sizes.kv_lora,
        "qk_nope_head_dim": sizes.nope,
        "qk_rope_head_dim": sizes.rope,
        "v_head_dim": sizes.v,
    }
    if name in by_name:
        return by_name[name]
    if name in ("bos_token_id", "eos_token_id"):
        # Released ids lie outside a vocabulary of 64.
        inside = isinstance(value, int) and value < sizes.Vt
        return value if inside else sizes.Vt - (3 if name == "bos_token_id" else 2)
    return _filled(value, name) if isinstance(value, str) and UNFIT_FOR_TINY.search(value) else value


def _filled(value: str, name: str) -> Any:
    """A value for a `<...>` placeholder or a remark in place of one."""
    placeholders: dict[str, Any] = {
        "<TargetArch>": "LlamaForCausalLM",
        "<target repo>": "example/target",
        "<str>": "4.57.1",
    }
    fields: dict[str, Any] = {
        "rope_theta": PLACEHOLDER_THETA,
        "rope_scaling": None,
        "rms_norm_eps": 1e-05,
        "num_hidden_layers": 40,
        "qkv_bias": True,
        "mask_token_id": MASK_TOKEN,
    }
    if value in placeholders:
        return placeholders[value]
    if name in fields:
        return fields[name]
    raise ValueError(f"No tiny value is known for {name} = {value!r}.")


def speculator_layer(dtype: str, layernorms: bool) -> dict[str, Spec]:
    """`transformer.{self_attn,mlp}.*` written out; the bias is an option."""
    shapes = {"fusion_fc.weight": "[H, 2*H]"}
    shapes |= {f"transformer.{key}": shape for key, shape in LLAMA_LAYER.items()}
    shapes["transformer.post_attention_layernorm.weight"] = "[H]"
    if layernorms:
        names = ("transformer.input_layernorm", "embedding_layernorm", "pre_lm_head_layernorm")
        shapes |= {f"{name}.weight": "[H]" for name in names}
    return {key: Spec(shape, dtype) for key, shape in shapes.items()}


def megatron_layers(dtype: str) -> dict[str, Spec]:
    """`midlayer.{i}.*` written out: the norm before attention is `hidden_norm` in the deeper layer too."""
    shapes: dict[str, str] = {}
    for index in range(2):
        wide = {f"self_attn.{name}_proj.weight": f"[{rows}*D, 2*H]" for name, rows in zip("qkv", "AKK", strict=True)}
        layer = LLAMA_LAYER | (wide if index == 0 else {})
        norms = ("hidden_norm", "post_attention_layernorm") + (("input_layernorm",) if index == 0 else ())
        layer |= {f"{name}.weight": "[H]" for name in norms}
        shapes |= {f"midlayer.{index}.{key}": shape for key, shape in layer.items()}
    specs = {key: Spec(shape, dtype) for key, shape in (shapes | OUTER).items()}
    return specs | {"d2t": Spec("[Vd]", "int64")}


def rest_of_latent_head(dtype: str) -> dict[str, Spec]:
    names = ("input_layernorm", "hidden_norm", "post_attention_layernorm")
    shapes = {f"layers.0.{key}": shape for key, shape in LLAMA_LAYER.items() if key.startswith("mlp")}
    shapes |= {f"layers.0.{name}.weight": "[H]" for name in names}
    specs = {key: Spec(shape, dtype) for key, shape in (shapes | OUTER).items()}
    return specs | {"d2t": Spec("[Vd]", "int64")}


def qkv_biases(layers: int) -> dict[str, Spec]:
    return {
        f"layers.{index}.self_attn.{name}_proj.bias": Spec(f"[{rows}*D]", "bfloat16")
        for index in range(layers)
        for name, rows in zip("qkv", "AKK", strict=True)
    }


def shape(text: str, sizes: Sizes) -> tuple[int, ...]:
    """Value of a shape in symbols, such as "[A*(nope+rope), q_lora]"."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=symbol):
                return int(getattr(sizes, symbol))
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
        raise ValueError(f"The shape {text!r} holds more than sums and products of symbols.")

    parsed = ast.parse(text, mode="eval").body
    if not isinstance(parsed, ast.List):
        raise ValueError(f"The shape {text!r} is not a list.")
    return tuple(value(element) for element in parsed.elts)
