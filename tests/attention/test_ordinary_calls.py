"""Without a tree `eagle3_tree` is what the target runs without us, bit by bit: sdpa, or eager where it has no sdpa."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.targets import SPECIAL, prompt, tiny_target
from helpers.trees import left_padded
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache

from hf_eagle3.attention import EAGLE3_TREE, _own_eager, eagle3_tree

WINDOW = 8
PLAIN = {"llama": "sdpa", "qwen3": "sdpa", "mistral": "sdpa", "gemma3": "sdpa", "gemma2": "eager", "gpt_oss": "eager"}


@pytest.fixture(params=PLAIN)
def twins(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A target with `eagle3_tree`, and the same one as it would be without us."""
    family = request.param
    fields: dict[str, Any] = {} if family in ("llama", "qwen3") else {"sliding_window": WINDOW}
    # Attention dropout, which works in training only.
    fields |= {} if family == "llama" else {"attention_dropout": 0.2}
    return tuple(tiny_target(family, attention=name, **fields) for name in (EAGLE3_TREE, PLAIN[family]))


def both(twins: tuple[PreTrainedModel, PreTrainedModel], call: Any) -> None:
    """The same results of a call, to the last bit."""
    ours, plain = (call(target) for target in twins)
    assert torch.equal(ours, plain)


@torch.no_grad()
def test_forwards(twins) -> None:
    ids, mask = left_padded(prompt(13), 4)
    both(twins, lambda target: target(prompt(13)).logits)
    both(twins, lambda target: target(prompt(1)).logits)
    both(twins, lambda target: target(ids, attention_mask=mask).logits)
    both(twins, lambda target: target(torch.cat((ids, ids)), attention_mask=torch.cat((mask, mask))).logits)


@torch.no_grad()
def test_a_prompt_in_pieces_and_steps_after_it(twins) -> None:
    def logits(target: PreTrainedModel) -> torch.Tensor:
        cache = DynamicCache(config=target.config)
        pieces = [prompt(7), prompt(6, seed=1), *prompt(5, seed=2).split(1, dim=1)]
        return torch.cat([target(piece, past_key_values=cache).logits for piece in pieces], dim=1)

    both(twins, logits)


@pytest.mark.parametrize(
    "options", [{}, {"cache_implementation": "static", "disable_compile": True}, {"num_beams": 2}]
)
def test_generate(twins, options: dict[str, Any]) -> None:
    ids, mask = left_padded(prompt(13), 3)
    call = {"attention_mask": mask, "max_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True}

    def logits(target: PreTrainedModel) -> torch.Tensor:
        return torch.stack(target.generate(ids, **call, **options).logits)

    both(twins, logits)


def test_training(twins) -> None:
    """Loss and gradients, with dropout from one seed."""

    def gradient(target: PreTrainedModel) -> torch.Tensor:
        torch.manual_seed(0)
        target.train()
        target(prompt(13), labels=prompt(13)).loss.backward()
        return torch.cat([weight.grad.flatten() for weight in target.parameters() if weight.grad is not None])

    both(twins, gradient)


@torch.no_grad()
def test_static_cache_prefill_of_a_target_without_sdpa() -> None:
    """No mask, and more keys than queries: the mask that sdpa leaves to its causal flag is made for eager."""
    attention = tiny_target("gpt_oss", attention=EAGLE3_TREE).model.layers[0].self_attn
    query, key, value = (torch.randn(1, heads, rows, 8) for heads, rows in ((4, 5), (2, 9), (2, 9)))
    call = {"scaling": 0.3, "s_aux": attention.sinks}
    ours = eagle3_tree(attention, query, key, value, None, **call)[0]
    short = eagle3_tree(attention, query, key[:, :, :5], value[:, :, :5], None, **call)[0]
    torch.testing.assert_close(ours, short)
    last = eagle3_tree(attention, query[:, :, 4:], key[:, :, :5], value[:, :, :5], None, **call)[0]
    torch.testing.assert_close(last, short[:, 4:])
    both_ways = eagle3_tree(attention, query, key, value, None, is_causal=False, **call)[0]
    assert not torch.allclose(both_ways, ours)


@torch.no_grad()
def test_attentions_where_eager_gives_them() -> None:
    target, plain = (tiny_target("gemma2", attention=name) for name in (EAGLE3_TREE, "eager"))
    ours, theirs = (one(prompt(6), output_attentions=True).attentions for one in (target, plain))
    assert len(ours) == 7
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# ---------------------------------------------------------------------- which one it is


def test_a_layer_asks_its_own_file() -> None:
    layers = {name: tiny_target(name, attention="eager").model.layers[0].self_attn for name in ("llama", *SPECIAL)}
    eager = {family: _own_eager(type(layer), more=False) is not None for family, layer in layers.items()}
    assert eager == {"llama": False, "gemma3": False, "gemma2": True, "gpt_oss": True}
    heirs = {family: type("Own", (type(layer),), {"__module__": __name__}) for family, layer in layers.items()}
    assert all(_own_eager(heir, more=False) == _own_eager(type(layers[f]), more=False) for f, heir in heirs.items())


def test_sinks_of_a_layer_that_nobody_knows() -> None:
    states = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match="caps its scores or has sinks") as error:
        eagle3_tree(torch.nn.Module(), states, states, states, None, s_aux=torch.zeros(2))
    assert "\n" not in str(error.value)


def test_a_saved_target_does_not_tell_its_implementation(tmp_path) -> None:
    tiny_target(attention=EAGLE3_TREE).save_pretrained(tmp_path)
    assert EAGLE3_TREE not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    chosen = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=EAGLE3_TREE)
    assert chosen.config._attn_implementation == EAGLE3_TREE
