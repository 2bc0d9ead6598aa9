"""What config fields and tensors of released heads mean to us, whatever their family.

Structure is read from the tensors first and the config second, because released configs are often wrong about it
(`num_hidden_layers: 40` for a one-layer head, ties that do not hold). Knows nothing of layouts, files or modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .configuration_eagle3 import Eagle3Config, check_rope
from .head_files import Tensors

Fields = Mapping[str, Any]  # of a config.json
Flag = tuple[str, Callable[[Any], bool]]  # a field, and which of its values change a forward

# Fields of a Llama-like config that mean the same in a head's.
SHARED_FIELDS = (
    "vocab_size",
    "draft_vocab_size",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "num_attention_heads",
)
_LAYER = re.compile(r"layers\.(\d+)\.")


def geometry(tensors: Tensors, heads: int, source: str) -> dict[str, Any]:
    """What the tensors tell of the layers.

    Raises:
        ValueError: if there are none to tell it.
    """
    need(["layers.0.mlp.gate_proj.weight"], tensors, source)
    return _attention(tensors, heads, source) | {
        "intermediate_size": tensors["layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": 1 + max((int(m[1]) for m in map(_LAYER.match, tensors) if m), default=0),
        "mlp_bias": "layers.0.mlp.gate_proj.bias" in tensors,
    }


def _attention(tensors: Tensors, heads: int, source: str) -> dict[str, Any]:
    """What the first layer's projections tell of its attention."""
    layer = "layers.0.self_attn."
    found = {"attention_bias": f"{layer}o_proj.bias" in tensors}
    if any(name.startswith(f"{layer}kv_") for name in tensors):
        names = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
        need([f"{layer}{name}.weight" for name in names], tensors, source)
        down, norm, up, out = (tensors[f"{layer}{name}.weight"].shape for name in names)
        queries = tensors.get(f"{layer}q_a_proj.weight")
        return found | {
            "q_lora_rank": None if queries is None else queries.shape[0],
            "kv_lora_rank": norm[0],
            "qk_rope_head_dim": down[0] - norm[0],
            "qk_nope_head_dim": up[0] // heads - out[1] // heads,
            "v_head_dim": out[1] // heads,
        }
    need([f"{layer}q_proj.weight"], tensors, source)
    head_dim = tensors[f"{layer}q_proj.weight"].shape[0] // heads
    keys = tensors.get(f"{layer}k_proj.weight")
    return found | {
        "head_dim": head_dim,
        "num_key_value_heads": None if keys is None else keys.shape[0] // head_dim,
        "qkv_bias": f"{layer}q_proj.bias" in tensors,
    }


def rope_of(fields: Fields, source: str) -> dict[str, Any]:
    """RoPE in transformers' words. On text all three position ids of mrope are equal, which makes it plain RoPE."""
    given = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise TypeError(f"its rotary embeddings are {given!r}, and no object of parameters")
    rope = dict(given)
    nested = [part for part in rope.values() if isinstance(part, dict)]
    if nested:
        kinds = fields.get("layer_types") or ["full_attention"]
        rope = dict(rope.get(kinds[0]) or nested[0])
    kind = rope.pop("type", None) or rope.get("rope_type") or "default"
    rope["rope_type"] = "default" if kind == "mrope" or "mrope_section" in rope else rope.get("rope_type", kind)
    for name in ("mrope_section", "mrope_interleaved"):
        rope.pop(name, None)
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(
            f"{source} sets partial_rotary_factor={rope['partial_rotary_factor']}, which changes how a head computes "
            "and is not supported; use a head without it."
        )
    check_rope(rope, source)
    theta = rope.get("rope_theta") or fields.get("rope_theta") or Eagle3Config.default_theta
    if not isinstance(theta, (int, float)):
        raise TypeError(f"`rope_theta` is {theta!r}, and no number")
    return {"rope_parameters": {**rope, "rope_theta": float(theta)}}


def refuse_other_forwards(fields: Fields, flags: Iterable[Flag], source: str) -> None:
    given = [f"{name}={fields[name]}" for name, changes in flags if name in fields and changes(fields[name])]
    if given:
        raise ValueError(
            f"{source} sets {', '.join(given)}, which changes how a head computes and is not supported; use a head "
            "without it."
        )


def target_vocabulary(fields: Mapping[str, Any], tensors: Tensors) -> int | None:
    """Rows of `t2d` or of the embeddings where they exist: a config's padded size can differ (trap 29)."""
    for name in ("embed_tokens.weight", "t2d"):
        if name in tensors and tensors[name].numel() > 0:
            return tensors[name].shape[0]
    return fields.get("vocab_size")


def need(names: Iterable[str], tensors: Tensors, source: str) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise lacks(missing, source)


def lacks(names: list[str], source: str) -> ValueError:
    return ValueError(f"{source} lacks the tensors {', '.join(names)}, which every head of its layout needs.")
