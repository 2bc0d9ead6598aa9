"""A fresh head that starts from what the target already knows.

The decoder layer takes the target's last layer (the hidden half; the embedding half is small noise), with that layer's
norm gains folded into the projections and norms of 1; the output rows are the target's; the fusion layer is small.
"""

from __future__ import annotations

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
    """Copy what fits of the target's last decoder layer; a target built otherwise than Llama leaves the head random."""
    layers = getattr(target.get_decoder(), "layers", None)
    source = layers[-1] if layers is not None else None
    attention, mlp = getattr(source, "self_attn", None), getattr(source, "mlp", None)
    if source is None or attention is None or mlp is None:
        return
    ours, width = head.layers[0], head.config.hidden_size
    before = _gain(getattr(source, "input_layernorm", None), width)
    after = _gain(getattr(source, "post_attention_layernorm", None), width)
    for name in ("q_proj", "k_proj", "v_proj"):
        theirs, mine = getattr(attention, name, None), getattr(ours.self_attn, name).weight
        if theirs is not None and theirs.weight.shape == (mine.shape[0], width):
            mine[:, width:] = theirs.weight * before
    pairs = [(ours.self_attn.o_proj, getattr(attention, "o_proj", None), None)]
    pairs += [(getattr(ours.mlp, name), getattr(mlp, name, None), after) for name in ("gate_proj", "up_proj")]
    pairs += [(ours.mlp.down_proj, getattr(mlp, "down_proj", None), None)]
    for mine, theirs, gain in pairs:
        if theirs is not None and theirs.weight.shape == mine.weight.shape:
            mine.weight.copy_(theirs.weight if gain is None else theirs.weight * gain)


def _gain(norm: torch.nn.Module | None, width: int) -> torch.Tensor:
    weight = getattr(norm, "weight", None)
    return weight.detach().float() if weight is not None and weight.shape == (width,) else torch.ones(width)
