"""What config fields and tensors of EAGLE-1, EAGLE-2 and HASS heads mean to us; their rows are in the table of
`layouts.py`.

Knows nothing of files or modules.
"""

from __future__ import annotations

from typing import Any

import torch

from .configuration_eagle import EagleConfig
from .head_files import Tensors
from .layout_fields import (
    SHARED_FIELDS,
    Fields,
    Flag,
    geometry,
    lacks,
    need,
    refuse_other_forwards,
    rope_of,
    target_vocabulary,
)
from .layouts import NATIVE, Layout

# Of vLLM's wrapper, which knows norms that the official heads have none of.
CHANGES_THE_FORWARD: tuple[Flag, ...] = (
    ("add_para_norm", bool),
    ("skip_prenorm", lambda value: value is False),
    ("skip_output_norm", lambda value: value is False),
    ("logit_scale", lambda value: value not in (None, 1.0)),
    ("partial_rotary_factor", lambda value: value not in (None, 1.0)),
)
# Words for the bias of the joining layer. In official configs a missing one means True, so tensors are what counts.
FC_BIAS = ("bias", "eagle_fc_bias", "fusion_bias")


def config_from(fields: Fields, tensors: Tensors, layout: Layout, source: str) -> EagleConfig:
    if layout.name == NATIVE:
        return EagleConfig.from_dict(dict(fields))
    fields = layout.flatten(fields)
    vocabulary, heads = target_vocabulary(fields, tensors), fields.get("num_attention_heads")
    if vocabulary is None or heads is None:
        name = "num_attention_heads" if heads is None else "vocab_size"
        raise ValueError(f"{source} has no `{name}` in its config, which its tensors do not tell; add it.")
    need(["fc.weight"], tensors, source)
    refuse_other_forwards(fields, CHANGES_THE_FORWARD, source)
    _map_reduced_vocabulary(fields, tensors, vocabulary, source)
    shared = {name: fields[name] for name in SHARED_FIELDS if fields.get(name) is not None}
    if "max_sequence_length" in fields:  # Vicuna-33B's word
        shared.setdefault("max_position_embeddings", fields["max_sequence_length"])
    rows = tensors["lm_head.weight"].shape[0] if "lm_head.weight" in tensors else vocabulary
    own: dict[str, Any] = {
        "vocab_size": vocabulary,
        "draft_vocab_size": rows,
        "hidden_size": tensors["fc.weight"].shape[0],
        "fc_bias": "fc.bias" in tensors or any(fields.get(name) is True for name in FC_BIAS),
        "layernorms": bool(fields.get("layernorms")),
        "own_embeddings": "embed_tokens.weight" in tensors,
        "own_lm_head": "lm_head.weight" in tensors,
    }
    return EagleConfig(**{**shared, **rope_of(fields, source), **geometry(tensors, heads, source), **own})


def _map_reduced_vocabulary(fields: Fields, tensors: Tensors, vocabulary: int, source: str) -> None:
    """vLLM's `token_map`, the target ids of the draft vocabulary, as our ascending offsets `d2t`; the rows of the
    output embeddings go along with them."""
    ids, size = tensors.pop("token_map", None), fields.get("truncated_vocab_size")
    if size is None or size >= vocabulary:
        return  # as vLLM has it: the map counts only where the config says so
    weight = tensors.get("lm_head.weight")
    if ids is None or weight is None:
        absent = [name for name, found in (("token_map", ids), ("lm_head.weight", weight)) if found is None]
        raise lacks(absent, source)
    if ids.shape != (size,) or len(weight) not in (size, vocabulary) or int(ids.min()) < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"{source}: `token_map` is {list(ids.shape)} with ids up to {int(ids.max())} and `lm_head.weight` has "
            f"{len(weight)} rows, but the config keeps {size} of {vocabulary} tokens; they do not belong together."
        )
    ascending, order = ids.long().sort()
    tensors["lm_head.weight"] = weight[order if len(weight) == size else ascending]
    tensors["d2t"] = ascending - torch.arange(size)
