"""A fresh head's layer reads the target's states as the target's last layer does, however that is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    PreTrainedConfig,
    Qwen3Config,
)

from hf_eagle3.data.features import Example
from hf_eagle3.training.initialisation import feature_scale, fresh_head

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
# By family, the last layer's norms before attention and before the feed-forward network; None where there is none.
NORMS = {
    LlamaConfig: ("input_layernorm", "post_attention_layernorm"),
    Qwen3Config: ("input_layernorm", "post_attention_layernorm"),
    Gemma3TextConfig: ("input_layernorm", "pre_feedforward_layernorm"),
    Olmo2Config: (None, None),
}


def target_of(config: PreTrainedConfig) -> Any:
    """A random target whose norms multiply by something else in every dimension."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.3, 1.7)
    return model


@pytest.mark.parametrize("kind", NORMS)
@torch.no_grad()
def test_its_projections_read_what_the_targets_last_layer_reads(kind: type[PreTrainedConfig]) -> None:
    target = target_of(kind(**SIZES))
    vocabulary = torch.arange(0, 40)
    head = fresh_head(target, vocabulary, target.lm_head.weight[:40], seed=3)
    theirs, ours = target.get_decoder().layers[-1], head.layers[0]
    states = torch.randn(5, 32)
    states /= states.square().mean(-1, keepdim=True).sqrt()  # what the head's own norms, with gains of 1, make of them
    before, after = (getattr(theirs, name) if name else torch.nn.Identity() for name in NORMS[kind])
    for name in ("q_proj", "k_proj", "v_proj"):
        mine = getattr(ours.self_attn, name).weight[:, 32:]
        wanted = getattr(theirs.self_attn, name)(before(states))
        torch.testing.assert_close(states @ mine.T, wanted, atol=1e-4, rtol=1e-4)
    for name in ("gate_proj", "up_proj"):
        wanted = getattr(theirs.mlp, name)(after(states))
        torch.testing.assert_close(getattr(ours.mlp, name)(states), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight)
    torch.testing.assert_close(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight)
    torch.testing.assert_close(head.lm_head.weight, target.lm_head.weight[:40])
    for norm in (ours.input_layernorm, ours.hidden_norm, ours.post_attention_layernorm):
        assert torch.equal(norm.weight, torch.ones(32))


@torch.no_grad()
def test_several_layers_take_the_targets_last_ones_in_their_order() -> None:
    target = target_of(LlamaConfig(**SIZES))
    head = fresh_head(
        target, torch.arange(40), target.lm_head.weight[:40], num_hidden_layers=2, intermediate_size=64, qk_norm=True
    )
    for theirs, ours in zip(target.get_decoder().layers[-2:], head.layers, strict=True):
        torch.testing.assert_close(ours.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight)
        torch.testing.assert_close(ours.mlp.down_proj.weight[:, :48], theirs.mlp.down_proj.weight)
        gain = theirs.post_attention_layernorm.weight
        torch.testing.assert_close(ours.mlp.up_proj.weight[:48], theirs.mlp.up_proj.weight * gain)
        gain = theirs.input_layernorm.weight
        torch.testing.assert_close(ours.self_attn.v_proj.weight[:, -32:], theirs.self_attn.v_proj.weight * gain)
    assert head.layers[0].self_attn.v_proj.weight.shape[1] == 64
    assert head.layers[1].self_attn.v_proj.weight.shape[1] == 32
    assert bool(head.layers[1].mlp.up_proj.weight[48:].abs().sum() > 0)


def test_a_head_may_be_deeper_than_its_target() -> None:
    target = target_of(LlamaConfig(**SIZES))
    head = fresh_head(target, torch.arange(40), target.lm_head.weight[:40], num_hidden_layers=10)
    theirs = target.get_decoder().layers
    for number, ours in enumerate(head.layers):
        same = number >= 2 and torch.equal(ours.self_attn.o_proj.weight, theirs[number - 2].self_attn.o_proj.weight)
        assert same == (number >= 2)


def test_the_fused_feature_begins_as_the_deepest_boundary() -> None:
    target = target_of(LlamaConfig(**SIZES))
    head = fresh_head(target, torch.arange(40), target.lm_head.weight[:40], boundaries=[2, 4, 7])
    features = torch.randn(1, 5, 96)
    assert torch.equal(head.fuse(features), features[..., 64:])
    other = fresh_head(target, torch.arange(40), target.lm_head.weight[:40], hidden_size=24)
    assert other.fuse(features).shape == (1, 5, 24)
    assert bool(other.fc.weight.abs().min() > 0)


def test_a_layer_of_other_parts_leaves_the_head_random_but_whole() -> None:
    """GPT-NeoX keeps queries, keys and values in one matrix: nothing fits."""
    sizes = {name: SIZES[name] for name in SIZES if name not in ("num_key_value_heads", "head_dim")}
    target = target_of(GPTNeoXConfig(**sizes))
    one, same, other = (
        fresh_head(target, torch.arange(40), target.get_output_embeddings().weight[:40], seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one.layers[0].mlp.gate_proj.weight, same.layers[0].mlp.gate_proj.weight)
    assert not torch.equal(one.layers[0].mlp.gate_proj.weight, other.layers[0].mlp.gate_proj.weight)
    assert all(bool(parameter.abs().sum() > 0) for parameter in one.parameters())


def test_the_scale_brings_features_to_the_level_of_the_deepest_boundary() -> None:
    """Two boundaries of three dimensions; what is no answer, such as a first token's giant state, does not count."""
    sizes = torch.tensor([1.0, 64.0, 0.25, 4.0, 2.0, 8.0])
    torch.manual_seed(1)
    features = torch.randn(4000, 6) * sizes
    features[0] = 1e6
    answers = torch.ones(4000, dtype=torch.bool)
    answers[0] = False
    empty = torch.zeros(4000, dtype=torch.long)
    example = Example(empty, answers, features, torch.zeros(4000, 3), empty)
    scale = feature_scale([example], 2)
    assert scale.tolist() == [4.0, 4 / 64, 16.0, 1.0, 2.0, 0.5]
