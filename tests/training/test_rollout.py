"""The training-time test against its definition: the worked table, incremental drafting, and a dense-mask twin."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hf_eagle3.modeling_eagle3 import Eagle3DraftModel
from hf_eagle3.training.rollout import pack_rows, rollout, supervision, take

STEPS = 3


def rollout_reference(
    head: Eagle3DraftModel, fused: torch.Tensor, embeddings: torch.Tensor, steps: int
) -> list[torch.Tensor]:
    """Every row of every step, one dense `tokens x (steps * tokens)` mask, one key list: slow and plain."""
    layer, tokens = head.layers[0], fused.shape[1]
    attention, hidden = layer.self_attn, fused
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    visible = [torch.ones(tokens, tokens, dtype=torch.bool).tril()]
    states = []
    for step in range(steps):
        index = (torch.arange(tokens) + 1 + step).clamp(max=tokens - 1)
        wide = torch.cat((layer.input_layernorm(embeddings[:, index]), layer.hidden_norm(hidden)), dim=-1)
        shape = (*wide.shape[:2], -1, attention.head_dim)
        query, key, value = (
            getattr(attention, name)(wide).view(shape).transpose(1, 2) for name in ("q_proj", "k_proj", "v_proj")
        )
        cos, sin = head.rotary_emb(wide, (torch.arange(tokens) + step)[None])
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        groups = query.shape[1] // key.shape[1]
        keys.append(key.repeat_interleave(groups, 1))
        values.append(value.repeat_interleave(groups, 1))
        if step > 0:
            visible.append(torch.eye(tokens, dtype=torch.bool))
        scores = query @ torch.cat(keys, 2).transpose(-1, -2) * attention.scaling
        weights = scores.masked_fill(~torch.cat(visible, -1), float("-inf")).softmax(-1)
        mixed = (weights @ torch.cat(values, 2)).transpose(1, 2).flatten(2)
        hidden = hidden + attention.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        states.append(hidden)
    return states


def every_row(batch: int, tokens: int) -> torch.Tensor:
    return torch.arange(tokens).expand(batch, tokens)


def test_supervision_is_the_worked_table() -> None:
    """Tokens 0-1 are the prompt, 2-5 the answer, 5 its stop token."""
    answers = torch.tensor([[False, False, True, True, True, True]])
    expected = torch.zeros(STEPS, 1, 6, dtype=torch.bool)
    for step, rows in enumerate([(1, 2, 3), (1, 2), (1,)]):
        expected[step, 0, list(rows)] = True
    assert torch.equal(supervision(answers, STEPS), expected)


def test_supervision_never_crosses_turns() -> None:
    """The product form of V(t, i), position by position, on masks with several answers."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.rand(6, 30, generator=generator) < 0.7
    found = supervision(answers, 4)
    for step in range(4):
        for t in range(30):
            inside = t + 2 + step < 30
            expected = answers[:, t + 1 : t + 3 + step].all(-1) if inside else torch.zeros(6, dtype=torch.bool)
            assert torch.equal(found[step, :, t], expected), (step, t)


def test_pack_rows_round_trip() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]]).bool()
    rows, valid = pack_rows(mask)
    for row in range(3):
        assert rows[row][valid[row]].tolist() == mask[row].nonzero()[:, 0].tolist()


def test_rollout_is_incremental_drafting(head: Eagle3DraftModel, sequence: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A chain drafted after position `t` through the head's own forward and cache, fed the data's tokens."""
    features, embeddings = sequence
    fused = head.fuse(features)
    tokens = fused.shape[1]
    states = list(rollout(head, fused, embeddings, every_row(1, tokens), STEPS))
    for t in range(tokens - STEPS - 1):
        cache = DynamicCache()
        out = head(fused[:, : t + 1], inputs_embeds=embeddings[:, 1 : t + 2], past_key_values=cache, use_cache=True)
        for step in range(STEPS):
            expected = head.lm_head(head.norm(states[step][:, t]))
            torch.testing.assert_close(out.logits[:, -1], expected, atol=1e-4, rtol=1e-4)
            out = head(
                out.last_hidden_state[:, -1:],
                inputs_embeds=embeddings[:, t + 2 + step : t + 3 + step],
                position_ids=torch.tensor([[t + 1 + step]]),
                past_key_values=cache,
                use_cache=True,
            )


def test_fast_rollout_equals_the_dense_one(
    head: Eagle3DraftModel, sequence: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """States of gathered rows and anchors, and the gradients of a loss on them, for two padded sequences."""
    head = head.double()  # in float32 the two orders of summation already differ by some 1e-5 in the gradients
    features, embeddings = (torch.cat((part, part.flip(1)), 0).double() for part in sequence)
    rows = torch.tensor([[2, 3, 5, 8], [1, 4, 6, 7]])
    anchors = torch.tensor([[0, 2, 3], [1, 2, 3]])
    weights = torch.randn(STEPS, 2, 4, head.config.hidden_size, dtype=torch.double)

    def gradients(fast: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        head.zero_grad()
        fused = head.fuse(features)
        if fast:
            states = list(rollout(head, fused, embeddings, rows, STEPS, anchors))
        else:
            chosen = [rows] + [rows.gather(1, anchors)] * (STEPS - 1)
            dense = rollout_reference(head, fused, embeddings, STEPS)
            states = [take(state, at) for state, at in zip(dense, chosen, strict=True)]
        sum((state * weights[i, :, : state.shape[1]]).sum() for i, state in enumerate(states)).backward()
        return states, [parameter.grad for parameter in head.layers.parameters()] + [head.fc.weight.grad]

    for fast, plain in zip(gradients(True), gradients(False), strict=True):
        for one, other in zip(fast, plain, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("step", range(STEPS))
def test_every_step_teaches_the_fusion(
    head: Eagle3DraftModel, sequence: tuple[torch.Tensor, torch.Tensor], step: int
) -> None:
    """Nothing is detached between steps: the loss of the last one alone still reaches fc."""
    features, embeddings = sequence
    states = list(rollout(head, head.fuse(features), embeddings, every_row(1, features.shape[1]), STEPS))
    head.zero_grad()
    head.lm_head(head.norm(states[step])).square().mean().backward()
    assert head.fc.weight.grad is not None
    assert head.fc.weight.grad.abs().max() > 0


def test_two_layers_are_refused(head: Eagle3DraftModel, sequence: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, embeddings = sequence
    fused = head.fuse(features)
    head.layers = nn.ModuleList([head.layers[0], head.layers[0]])
    with pytest.raises(ValueError, match="2 layers"):
        next(rollout(head, fused, embeddings, every_row(1, features.shape[1]), 2))
