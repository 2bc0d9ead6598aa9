"""Where a head starts: fresh, from what the target already knows, or warm, from a head that somebody trained.

The decoder layers of a fresh head take the target's last ones, in their order (the first of them in its hidden half
only; the embedding half is small noise), with their norm gains folded into the projections and norms of 1; the output
rows are the target's; the fusion layer passes on the deepest boundary, which is what those layers are used to reading.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration_eagle3 import LAST_HIDDEN_STATE, Eagle3Config
from ..data.features import Example
from ..modeling_eagle3 import Eagle3DraftModel


def fresh_head(
    target: PreTrainedModel,
    vocabulary: torch.Tensor,
    output_rows: torch.Tensor,
    seed: int = 0,
    boundaries: list[int] | None = None,
    **fields: Any,
) -> Eagle3DraftModel:
    """A float32 head for `target`.

    Args:
        vocabulary: ascending target ids, int64 `[draft_vocab]`: the draft vocabulary.
        output_rows: the target's output matrix at them, `[draft_vocab, hidden]`.
        boundaries: what the head reads; the official default if not given, and with `[LAST_HIDDEN_STATE]` that state
            as it is. Where such a head feeds back its normed states (`norm_output`), its last norm is the target's:
            what it reads, feeds back and makes logits of is then one and the same space, as in EAGLE-1.
        fields: of [`Eagle3Config`], where the head is to differ from one layer of the target's geometry.
    """
    if boundaries == [LAST_HIDDEN_STATE]:
        fields["reads_last_hidden_state"] = True
    elif boundaries:
        fields["target_boundaries"] = boundaries
    config = Eagle3Config.from_target(target.config, draft_vocab_size=len(vocabulary), **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Eagle3DraftModel(config).float()
    head.set_draft_vocabulary(vocabulary)
    with torch.no_grad():
        if output_rows.shape == head.lm_head.weight.shape:
            head.lm_head.weight.copy_(output_rows)
        copy_last_layers(head, target)
        pass_on_deepest(head)
        if config.reads_last_hidden_state and config.norm_output:
            head.norm.weight.copy_(_gain(getattr(target.get_decoder(), "norm", None), config.hidden_size))
    return head


def pass_on_deepest(head: Eagle3DraftModel) -> None:
    """Have the fusion layer give the deepest boundary, and nothing of the others until they are learnt. Noise in its
    place took longer to learn from (model_cards/SmolLM2-135M-Instruct-EAGLE3/TRAINING.md). A head of another width
    than its target keeps the noise."""
    if head.fc is not None and head.config.target_hidden_size == head.config.hidden_size:
        head.fc.weight.zero_()
        head.fc.weight[:, -head.config.hidden_size :].fill_diagonal_(1.0)


def copy_last_layers(head: Eagle3DraftModel, target: PreTrainedModel) -> None:
    """Copy what fits of the target's last decoder layers, one for each of the head's; what is built otherwise than in
    Llama is left out, and all of it where the head is of another width."""
    if head.config.hidden_size != head.config.target_hidden_size:
        return
    theirs: Any = getattr(target.get_decoder(), "layers", None)
    sources = [] if theirs is None else list(theirs)[-len(head.layers) :]
    ours = list(head.layers)[len(head.layers) - len(sources) :]  # a head may be deeper than its target
    for source, mine in zip(sources, ours, strict=True):
        _copy_layer(source, mine, head.config.hidden_size)


def _copy_layer(source: Any, ours: Any, width: int) -> None:
    first = getattr(source, "input_layernorm", None)
    # Llama's "post_attention" norm stands before the feed-forward network. Where that has a norm of its own (Gemma),
    # or the layer begins without one (OLMo-2), it works on the attention's output instead.
    second = getattr(source, "pre_feedforward_layernorm", None) or (
        getattr(source, "post_attention_layernorm", None) if first is not None else None
    )
    before, after = _gain(first, width), _gain(second, width)
    for block, name, gain in [
        ("self_attn", "q_proj", before),
        ("self_attn", "k_proj", before),
        ("self_attn", "v_proj", before),
        ("self_attn", "o_proj", None),
        ("mlp", "gate_proj", after),
        ("mlp", "up_proj", after),
        ("mlp", "down_proj", None),
    ]:
        theirs = getattr(getattr(getattr(source, block, None), name, None), "weight", None)
        if theirs is None or not theirs.is_floating_point() or theirs.ndim != 2:
            continue  # a quantised target's layer starts from noise
        weight = theirs.float().cpu() if gain is None else theirs.float().cpu() * gain
        mine = getattr(getattr(ours, block), name).weight
        if block == "mlp":
            place = mine[: weight.shape[0], : weight.shape[1]]  # a wider network keeps its further units as they are
        else:
            place = mine[:, -weight.shape[1] :]  # a first layer's queries, keys and values read [embedding ; hidden]
        if place.shape == weight.shape:
            place.copy_(weight)


def feature_scale(examples: Iterable[Example], boundaries: int) -> torch.Tensor:
    """Factors, float32 `[boundaries * hidden]`, that bring all features to about one level, the deepest boundary's.

    Residual streams have a few dimensions hundreds of times larger than the rest; scaled, one learning rate suits all.
    The level is what the target's last layer, from which a fresh head is made, is used to. Root mean squares are
    taken over the answers: the first token of a text may carry states that dwarf all others. Powers of two, so that
    folding the factors into the fusion layer, and taking them out again, rounds nothing.
    """
    total, count = torch.zeros(()), 0
    for example in examples:
        rows = example.features[example.answers].float().cpu()
        total, count = total + rows.square().sum(0), count + len(rows)
    size = (total / max(count, 1)).clamp(min=1e-12).sqrt()
    return torch.exp2((size[-len(size) // boundaries :].median() / size).log2().round())


def _gain(norm: Any, width: int) -> torch.Tensor:
    """What a norm multiplies by, float32 `[width]`, read off what it does: its weight may be kept as 1 + w."""
    weight = getattr(norm, "weight", None)
    if weight is None or weight.shape != (width,):
        return torch.ones(width)
    ones = torch.ones(width, dtype=weight.dtype, device=weight.device)
    ones[1::2] = -1.0  # of mean 0 and mean square 1: every norm leaves it as it is, but for gain and bias
    gain: torch.Tensor = ((norm(ones) - norm(-ones)) * ones / 2).float().cpu()
    return gain
