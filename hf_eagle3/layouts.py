"""The layouts in which heads are released: a table of families, and what their config fields and tensors mean to us.

Structure is read from the tensors first and the config second, because released configs are often wrong about it
(`num_hidden_layers: 40` for a one-layer head, ties that do not hold). Knows nothing of files or modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .configuration_eagle3 import Eagle3Config
from .head_files import Tensors

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

# Flags of a released config that our head has too, under the same name.
KNOWN_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
# Flags that change a forward and leave no tensor behind: to load such a head without them would be silently wrong.
CHANGES_THE_FORWARD: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    *((name, bool) for name in ("use_mtp_layernorm", "eh_proj_before_attn", "reuse_target_lm_head")),
    *((name, lambda value: value is False) for name in ("use_last_layernorm", "next_layer_regular")),
    ("use_input_layernorm_in_first_layer", lambda value: value is False),
    ("parallel_draft_step", lambda value: (value or 1) > 1),
    ("partial_rotary_factor", lambda value: value not in (None, 1.0)),
)
# What a token not drafted yet is called: by speculators, and by heads made for vLLM (arXiv:2602.01469's authors).
MASK_TOKEN_FIELDS = ("mask_token_id", "pard_token", "ptd_token_id")
KNOWN_ROPE = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")

Fields = Mapping[str, Any]  # of a config.json


@dataclass(frozen=True)
class Layout:
    """One family of checkpoints: how its config is told from others, what its words mean, how tensors are renamed.

    Args:
        recognise: whether a config.json is of this family.
        flatten: its config as one level of Llama's fields and our flags.
        rename: patterns of tensor names, and what to put in their place; applied in order.
        ids_are_boundaries: whether layer ids name what enters a layer. If not, a first id of 1 says that they name
            layers' outputs, as the trainers that write such files do by default (trap 1).
        refused: why heads of this family cannot be loaded; nothing else of it is looked at then.
    """

    name: str
    recognise: Callable[[Fields], bool]
    flatten: Callable[[Fields], Fields] = dict
    rename: tuple[tuple[str, str], ...] = ()
    ids_are_boundaries: bool = False
    refused: str = ""


def _named(*names: str) -> Callable[[Fields], bool]:
    """Configs whose first architecture is one of `names`."""
    return lambda fields: (fields.get("architectures") or [""])[0] in names


def _speculators(*kinds: str) -> Callable[[Fields], bool]:
    """Configs of the speculators library, whose architecture has the name of our own class."""
    return lambda fields: fields.get("speculators_model_type") in kinds


def _is_native(fields: Fields) -> bool:
    return fields.get("model_type") == Eagle3Config.model_type and "speculators_model_type" not in fields


def _is_released_eagle3(fields: Fields) -> bool:
    """yuhuili's heads call themselves Llama; a draft vocabulary tells them from EAGLE-1's (trap 30)."""
    reduced = fields.get("draft_vocab_size") or fields.get("truncated_vocab_size")
    return _named("LlamaForCausalLM")(fields) and reduced is not None


def _with_eagle_config(fields: Fields) -> Fields:
    """What ModelOpt and SpecForge keep in `eagle_config` beside Llama's fields (trap 9)."""
    return {
        **fields,
        **{name: value for name, value in (fields.get("eagle_config") or {}).items() if value is not None},
    }


def _with_layer_config(fields: Fields) -> Fields:
    """speculators nests the layer's fields; its own are beside them."""
    return {**fields.get("transformer_layer_config", {}), **fields}


_MIDLAYER = ((r"^midlayer\.(?=\d)", "layers."), (r"^midlayer\.", "layers.0."))
# Megatron's deep heads call the norm before attention `hidden_norm` in every layer (trap 24).
_DEEP_NORM = ((r"^layers\.([1-9]\d*)\.hidden_norm\.", r"layers.\1.input_layernorm."),)

LAYOUTS = (
    Layout("hf-eagle3", _is_native),
    Layout(
        "dflash",
        lambda fields: _named("DFlashDraftModel")(fields) or _speculators("dflash")(fields),
        refused="is a DFlash drafter, which writes whole blocks at once from keys and values of the target",
    ),
    Layout(
        "mtp",
        lambda fields: _named("MTPDraftModel")(fields) or _speculators("mtp")(fields),
        refused="is a multi-token-prediction layer, which transformers runs by itself (`use_mtp=True`)",
    ),
    Layout(
        "medusa",
        lambda fields: _named("MedusaModel")(fields) or fields.get("model_type") == "medusa",
        refused="holds Medusa heads, which guess without reading the tokens in between",
    ),
    Layout(
        "speculators",
        _speculators("eagle3", "peagle"),
        flatten=_with_layer_config,
        ids_are_boundaries=True,
    ),
    Layout("p-eagle", _named("PEagleDraftModel", "PeagleLlamaForCausalLM"), flatten=_with_eagle_config),
    Layout(
        "eagle3-latent",
        _named(
            "Eagle3DeepseekV2ForCausalLM",
            "Eagle3DeepseekV3ForCausalLM",
            "Eagle3DeepSeekV3ForCausalLM",
            "DeepseekV3ForCausalLMEagle3",
        ),
        flatten=_with_eagle_config,
        rename=_MIDLAYER,
    ),
    Layout(
        "speculators-eagle1",
        _speculators("eagle"),
        refused="is an EAGLE-1 head in the layout of speculators, which is not supported yet",
    ),
    Layout("nemo", _named("LlamaEagle3DraftModel"), flatten=_with_eagle_config, rename=((r"^model\.", ""),)),
    Layout(
        "eagle3",
        lambda fields: (
            _is_released_eagle3(fields)
            or _named("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "LlamaForCausalLMEagle3Deep")(fields)
        ),
        flatten=_with_eagle_config,
        rename=_MIDLAYER + _DEEP_NORM,
    ),
)


def recognise(config: Mapping[str, Any]) -> Layout | None:
    """The layout that a config.json announces, or `None` if it is no draft head that we know."""
    return next((layout for layout in LAYOUTS if layout.recognise(config)), None)


def config_from(fields: Fields, tensors: Tensors, layout: Layout, source: str) -> Eagle3Config:
    if layout.name == "hf-eagle3":
        return Eagle3Config.from_dict(dict(fields))
    fields = layout.flatten(fields)
    for name in ("vocab_size", "num_attention_heads"):
        if fields.get(name) is None and not (name == "vocab_size" and _target_vocabulary(fields, tensors)):
            raise ValueError(f"{source} has no `{name}` in its config, which its tensors do not tell; add it.")
    last_state = fields.get("use_aux_hidden_state") is False
    if last_state:
        tensors.pop("fc.weight", None)  # some exports keep one that nothing uses
    fused = () if last_state else ("fc.weight",)
    _need((*fused, "lm_head.weight", "layers.0.mlp.gate_proj.weight"), tensors, source)
    _refuse_other_forwards(fields, source)
    shared = {name: fields[name] for name in SHARED_FIELDS if fields.get(name) is not None}
    shared |= {name: fields[name] for name in KNOWN_FLAGS if fields.get(name) is not None}
    shared |= _rope(fields, source) | _boundaries(fields, tensors, layout, source) | _masked_slots(fields, tensors)
    shared |= _attention(tensors, shared["num_attention_heads"], source)
    draft_vocabulary, hidden = tensors["lm_head.weight"].shape
    return Eagle3Config(
        **{
            **shared,
            "vocab_size": _target_vocabulary(fields, tensors),
            "draft_vocab_size": draft_vocabulary,
            "hidden_size": hidden,
            "intermediate_size": tensors["layers.0.mlp.gate_proj.weight"].shape[0],
            "num_hidden_layers": 1 + max((int(m[1]) for m in map(_LAYER.match, tensors) if m), default=0),
            "mlp_bias": "layers.0.mlp.gate_proj.bias" in tensors,
            "reads_last_hidden_state": last_state,
            "norm_before_fc": bool(fields.get("norm_before_fc")) or "input_norm.weight" in tensors,
            "fc_norm": bool(fields.get("fc_norm")) or "fc_norm.0.weight" in tensors,
            "sliding_window": _window(fields, source),
            "own_embeddings": "embed_tokens.weight" in tensors,
        }
    )


def _refuse_other_forwards(fields: Fields, source: str) -> None:
    given = [(name, fields[name]) for name, changes in CHANGES_THE_FORWARD if name in fields and changes(fields[name])]
    flags = [f"{name}={value}" for name, value in given]
    if flags:
        raise ValueError(
            f"{source} sets {', '.join(flags)}, which changes how a head computes and is not supported; use a head "
            "without it."
        )


def _attention(tensors: Tensors, heads: int, source: str) -> dict[str, Any]:
    """What the first layer's projections tell of its attention."""
    layer = "layers.0.self_attn."
    found = {"attention_bias": f"{layer}o_proj.bias" in tensors}
    if any(name.startswith(f"{layer}kv_") for name in tensors):
        names = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
        _need([f"{layer}{name}.weight" for name in names], tensors, source)
        down, norm, up, out = (tensors[f"{layer}{name}.weight"].shape for name in names)
        queries = tensors.get(f"{layer}q_a_proj.weight")
        return found | {
            "q_lora_rank": None if queries is None else queries.shape[0],
            "kv_lora_rank": norm[0],
            "qk_rope_head_dim": down[0] - norm[0],
            "qk_nope_head_dim": up[0] // heads - out[1] // heads,
            "v_head_dim": out[1] // heads,
        }
    _need([f"{layer}q_proj.weight"], tensors, source)
    head_dim = tensors[f"{layer}q_proj.weight"].shape[0] // heads
    keys = tensors.get(f"{layer}k_proj.weight")
    return found | {
        "head_dim": head_dim,
        "num_key_value_heads": None if keys is None else keys.shape[0] // head_dim,
        "qkv_bias": f"{layer}q_proj.bias" in tensors,
        "qk_norm": f"{layer}q_norm.weight" in tensors,
    }


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


def _rope(fields: Fields, source: str) -> dict[str, Any]:
    """RoPE in transformers' words. On text all three position ids of mrope are equal, which makes it plain RoPE."""
    rope = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    nested = [part for part in rope.values() if isinstance(part, dict)]
    if nested:
        kinds = fields.get("layer_types") or ["full_attention"]
        rope = dict(rope.get(kinds[0]) or nested[0])
    kind = rope.pop("type", None) or "default"
    rope.setdefault("rope_type", "default" if kind == "mrope" or "mrope_section" in rope else kind)
    for name in ("mrope_section", "mrope_interleaved"):
        rope.pop(name, None)
    if rope["rope_type"] not in KNOWN_ROPE:
        raise ValueError(
            f"{source} asks for rotary embeddings of type {rope['rope_type']!r}; known are {', '.join(KNOWN_ROPE)}."
        )
    theta = rope.get("rope_theta") or fields.get("rope_theta") or Eagle3Config.default_theta
    return {"rope_parameters": {**rope, "rope_theta": float(theta)}}


_LAYER = re.compile(r"layers\.(\d+)\.")


def _target_vocabulary(fields: Mapping[str, Any], tensors: Tensors) -> int | None:
    """Rows of `t2d` or of the embeddings where they exist: a config's padded size can differ (trap 29)."""
    for name in ("embed_tokens.weight", "t2d"):
        if name in tensors and tensors[name].numel() > 0:
            return tensors[name].shape[0]
    return fields.get("vocab_size")


def _need(names: Iterable[str], tensors: Tensors, source: str) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise lacks(missing, source)


def lacks(names: list[str], source: str) -> ValueError:
    return ValueError(f"{source} lacks the tensors {', '.join(names)}, which every head of its layout needs.")
