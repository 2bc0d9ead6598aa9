"""What config fields and tensors of EAGLE-3 heads, P-EAGLE's among them, mean to us; their rows are in the table of
`layouts.py`.

Knows nothing of files or modules.
"""

from __future__ import annotations

from typing import Any

from .configuration_eagle3 import Eagle3Config
from .head_files import Tensors
from .layout_fields import (
    SHARED_FIELDS,
    Fields,
    Flag,
    geometry,
    need,
    refuse_other_forwards,
    rope_of,
    target_vocabulary,
)
from .layouts import NATIVE, Layout

# Flags of a released config that our head has too, under the same name.
KNOWN_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# Flags that change a forward and leave no tensor behind: to load such a head without them would be silently wrong.
CHANGES_THE_FORWARD: tuple[Flag, ...] = (
    *((name, bool) for name in ("use_mtp_layernorm", "eh_proj_before_attn", "reuse_target_lm_head")),
    *((name, lambda value: value is False) for name in ("use_last_layernorm", "next_layer_regular")),
    ("use_input_layernorm_in_first_layer", lambda value: value is False),
    ("parallel_draft_step", lambda value: (value or 1) > 1),
    ("partial_rotary_factor", lambda value: value not in (None, 1.0)),
)
# What a token not drafted yet is called: by speculators, and by heads made for vLLM (arXiv:2602.01469's authors).
MASK_TOKEN_FIELDS = ("mask_token_id", "pard_token", "ptd_token_id")


def config_from(fields: Fields, tensors: Tensors, layout: Layout, source: str) -> Eagle3Config:
    if layout.name == NATIVE:
        return Eagle3Config.from_dict(dict(fields))
    fields = layout.flatten(fields)
    for name in ("vocab_size", "num_attention_heads"):
        if fields.get(name) is None and not (name == "vocab_size" and target_vocabulary(fields, tensors)):
            raise ValueError(f"{source} has no `{name}` in its config, which its tensors do not tell; add it.")
    last_state = fields.get("use_aux_hidden_state") is False
    if last_state:
        tensors.pop("fc.weight", None)  # some exports keep one that nothing uses
    fused = () if last_state else ("fc.weight",)
    need((*fused, "lm_head.weight"), tensors, source)
    refuse_other_forwards(fields, CHANGES_THE_FORWARD, source)
    shared = {name: fields[name] for name in SHARED_FIELDS if fields.get(name) is not None}
    shared |= {name: fields[name] for name in KNOWN_FLAGS if fields.get(name) is not None}
    shared |= rope_of(fields, source) | _boundaries(fields, tensors, layout, source) | _masked_slots(fields, tensors)
    shared |= geometry(tensors, shared["num_attention_heads"], source)
    draft_vocabulary, hidden = tensors["lm_head.weight"].shape
    return Eagle3Config(
        **{
            **shared,
            "vocab_size": target_vocabulary(fields, tensors),
            "draft_vocab_size": draft_vocabulary,
            "hidden_size": hidden,
            "qk_norm": "layers.0.self_attn.q_norm.weight" in tensors,
            "reads_last_hidden_state": last_state,
            "norm_before_fc": bool(fields.get("norm_before_fc")) or "input_norm.weight" in tensors,
            "fc_norm": bool(fields.get("fc_norm")) or "fc_norm.0.weight" in tensors,
            "sliding_window": _window(fields, source),
            "own_embeddings": "embed_tokens.weight" in tensors,
        }
    )


def _masked_slots(fields: Fields, tensors: Tensors) -> dict[str, Any]:
    """Whether the head drafts in parallel, and which token stands for one not drafted yet."""
    if "mask_hidden" not in tensors:
        return {}
    tensors["mask_hidden"] = tensors["mask_hidden"].reshape(1, 1, -1)  # NeMo writes two dimensions, others three
    named = [fields[name] for name in MASK_TOKEN_FIELDS if fields.get(name) is not None]
    return {"parallel_drafting": True, "mask_token_id": next(iter(named), None)}


def _boundaries(fields: Fields, tensors: Tensors, layout: Layout, source: str) -> dict[str, Any]:
    """Which states of the target the head reads, and how wide they are; ids are sorted first (trap 3)."""
    if "fc.weight" not in tensors:
        return {}
    hidden, fused = tensors["fc.weight"].shape
    width = fields.get("target_hidden_size") or hidden
    if fused % width:
        raise ValueError(
            f"{source}: `fc.weight` is [{hidden}, {fused}], which is no whole number of target states of width "
            f"{width}; set `target_hidden_size` in its config."
        )
    ids = sorted(fields.get("eagle_aux_hidden_state_layer_ids") or [])
    outputs = bool(ids) and ids[0] == 1 and not layout.ids_are_boundaries
    return {
        "boundaries_from_outputs": outputs,
        "target_hidden_size": width,
        "target_boundaries": [layer + outputs for layer in ids] or None,
        "num_target_boundaries": fused // width,
    }


def _window(fields: Fields, source: str) -> int | None:
    """How far back the head sees, where its config says that it does not see everything."""
    kinds = set(fields.get("layer_types") or ["sliding_attention" if fields.get("use_sliding_window") else ""])
    if "sliding_attention" not in kinds:
        return None
    if len(kinds) > 1 or not fields.get("sliding_window"):
        raise ValueError(
            f"{source} has layers of the types {', '.join(sorted(kinds))} and sliding_window "
            f"{fields.get('sliding_window')}: a head has one window, for all of its layers."
        )
    return int(fields["sliding_window"])
