"""The target's states and its logit rule: what the target itself says, in any company, for every kind of output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from hf_eagle3.data.features import TargetStates, logit_rule, predicting, token_mass

BOUNDARIES = [2, 4, 5]
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 4,
    "initializer_range": 0.3, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SCALED: dict[str, Any] = {
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=8.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, num_key_value_heads=2, logit_scale=0.0625)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=5.0)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}


def made(length: int, seed: int) -> tuple[list[int], list[bool]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 64, (length,), generator=generator).tolist()
    return ids, [j >= 3 for j in range(length)]


@pytest.mark.parametrize("name", SCALED)
def test_the_rule_makes_the_targets_logits(name: str) -> None:
    torch.manual_seed(0)
    model = SCALED[name]().eval()
    rule = logit_rule(model)
    ids = torch.tensor([made(12, 0)[0]])
    with torch.no_grad():
        out = model(ids, output_hidden_states=[8])
        torch.testing.assert_close(rule.logits(out.hidden_states[8]), out.logits, atol=1e-4, rtol=1e-4)
        some = torch.tensor([3, 7, 40])
        torch.testing.assert_close(
            rule.rows(some).logits(out.hidden_states[8]), out.logits[..., some], atol=1e-4, rtol=1e-4
        )


def test_another_kind_of_logits_is_refused(target: Any) -> None:
    real = target.forward

    def squared(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        out.logits = out.logits.square()
        return out

    target.forward = squared
    with pytest.raises(ValueError, match="no teacher can be made"):
        logit_rule(target)


class Quantised(nn.Module):
    """An output layer whose weight is whole numbers, with a scale for each token: no dense matrix to be read."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.scale = dense.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((dense.weight.detach() / self.scale).round().char(), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ (self.weight.float() * self.scale).T


def test_a_quantised_output_layer_gives_its_matrix(target: Any) -> None:
    quantised = Quantised(target.lm_head)
    target.lm_head = quantised
    torch.testing.assert_close(logit_rule(target).weight, quantised.weight.float() * quantised.scale)


def test_states_are_the_targets_whoever_is_beside(target: Any) -> None:
    rows = [made(12, 0), made(5, 1), made(20, 2), made(1, 3)]
    states = TargetStates(target, BOUNDARIES, batch_tokens=40)
    for example, (ids, mask) in zip(states.examples(rows), rows, strict=True):
        with torch.no_grad():
            out = target(torch.tensor([ids]), output_hidden_states=[*BOUNDARIES, 8])
        assert example.ids.tolist() == ids
        assert example.answers.tolist() == mask
        wanted = torch.cat([out.hidden_states[boundary][0] for boundary in BOUNDARIES], -1)
        torch.testing.assert_close(example.features, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(example.last_hidden, out.hidden_states[8][0], atol=1e-4, rtol=1e-4)
        expected = torch.where(predicting(example.answers), out.logits[0].argmax(-1), -1)
        assert torch.equal(example.best, expected)


def test_what_leaves_the_last_layer_is_not_the_last_hidden_state(target: Any) -> None:
    [example] = TargetStates(target, [4, 8]).examples([made(12, 0)])
    normed = target.base_model.norm(example.features[:, 32:])
    torch.testing.assert_close(normed, example.last_hidden, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(example.features[:, 32:], example.last_hidden)


def test_an_adapted_target_is_asked_with_its_adapter(target: Any) -> None:
    plain = TargetStates(target, BOUNDARIES).examples([made(9, 0)])[0]
    adapted = get_peft_model(target, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    changed = TargetStates(adapted, BOUNDARIES).examples([made(9, 0)])[0]
    assert not torch.allclose(plain.last_hidden, changed.last_hidden, atol=1e-3)


def test_mass_is_summed_probability(target: Any) -> None:
    rows = [made(12, 0), made(8, 1)]
    states = TargetStates(target, BOUNDARIES)
    wanted = torch.zeros(64)
    for ids, mask in rows:
        with torch.no_grad():
            probs = target(torch.tensor([ids])).logits[0].softmax(-1)
        wanted += probs[predicting(torch.tensor(mask))].sum(0)
    seen: list[int] = []
    torch.testing.assert_close(token_mass(states, rows, progress=seen.append), wanted, atol=1e-4, rtol=1e-4)
    assert seen == [20]


def test_a_sample_is_enough_for_the_mass(target: Any) -> None:
    """It ends with the group of rows that reaches the limit: here the first, of at least 4 * 5 tokens."""
    rows = [made(12, 0), made(8, 1)]
    states = TargetStates(target, BOUNDARIES, batch_tokens=5)
    seen: list[int] = []
    sample = token_mass(states, rows * 5, limit_tokens=5, progress=seen.append)
    torch.testing.assert_close(sample, token_mass(states, rows), atol=1e-4, rtol=1e-4)
    assert seen == [20]
    assert token_mass(states, rows * 5).sum() > 4 * sample.sum()
