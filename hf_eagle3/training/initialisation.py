"""A fresh head that starts from what the target already knows.

The decoder layer takes the target's last layer (the hidden half; the embedding half is small noise), with that layer's
norm gains folded into the projections and norms of 1; the output rows are the target's; the fusion layer is small.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration_eagle3 import Eagle3Config
from ..modeling_eagle3 import Eagle3DraftModel


def fresh_head(
    target: PreTrainedModel, vocabulary: torch.Tensor, seed: int = 0, boundaries: list[int] | None = None
) -> Eagle3DraftModel:
    """A float32 head for `target` with draft vocabulary `vocabulary` (ascending target ids, int64)."""
    overrides = {"target_boundaries": boundaries} if boundaries else {}
    config = Eagle3Config.from_target(target.config, draft_vocab_size=len(vocabulary), **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Eagle3DraftModel(config).float()
    head.set_draft_vocabulary(vocabulary)
    output = target.get_output_embeddings()
    assert output is not None
    with torch.no_grad():
        if output.weight.shape[1] == config.hidden_size:
            head.lm_head.weight.copy_(output.weight[vocabulary])
        copy_last_layer(head, target)
    return head


def copy_last_layer(head: Eagle3DraftModel, target: PreTrainedModel) -> None:
    """Copy what fits of the target's last decoder layer; one that is built otherwise than Llama's is left out."""
    layers: Any = getattr(target.get_decoder(), "layers", None)
    source = layers[-1] if layers is not None else None
    ours: Any = head.layers[0]
    before = _gain(getattr(source, "input_layernorm", None), head.config.hidden_size)
    after = _gain(getattr(source, "post_attention_layernorm", None), head.config.hidden_size)
    for block, name, gain in [
        ("self_attn", "q_proj", before),
        ("self_attn", "k_proj", before),
        ("self_attn", "v_proj", before),
        ("self_attn", "o_proj", None),
        ("mlp", "gate_proj", after),
        ("mlp", "up_proj", after),
        ("mlp", "down_proj", None),
    ]:
        theirs = getattr(getattr(source, block, None), name, None)
        if theirs is None:
            continue
        weight = theirs.weight if gain is None else theirs.weight * gain
        mine = getattr(getattr(ours, block), name).weight
        hidden_half = mine[:, -weight.shape[1] :]  # queries, keys and values read [embedding ; hidden]
        if hidden_half.shape == weight.shape:
            hidden_half.copy_(weight)


def _gain(norm: Any, width: int) -> torch.Tensor:
    weight = getattr(norm, "weight", None)
    return weight.detach().float() if weight is not None and weight.shape == (width,) else torch.ones(width)
