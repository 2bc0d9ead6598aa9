"""A target is tried out when it is first met: refused if it cannot hold a tree, and nothing else is noticed of it."""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any

import pytest
import torch
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target
from transformers import LlamaForCausalLM, MptConfig, MptForCausalLM
from transformers.models.falcon import FalconConfig, FalconForCausalLM

# A config of its own for each test: a target is tried out once for each config, and other tests may have met it.
_sizes = itertools.count(1000)


def unmet(cls: type | None = None, **fields: Any):
    return tiny_target(cls=cls, max_position_embeddings=next(_sizes), **fields)


class DropsTreeMasks(LlamaForCausalLM):
    """Ignores a 4D mask, as some models do, without any error."""

    def forward(self, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = None
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class DropsPositions(LlamaForCausalLM):
    """Counts positions by itself, whatever it is told."""

    def forward(self, *args: Any, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class RefusesTreeMasks(LlamaForCausalLM):
    def forward(self, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            raise RuntimeError("masks of two dimensions only")
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cls", [DropsTreeMasks, DropsPositions, RefusesTreeMasks])
def test_a_target_that_cannot_hold_a_tree(cls: type, attention: str) -> None:
    target = unmet(cls, attention=attention)
    for _ in range(2):  # refused again the second time, without another try
        with pytest.raises(ValueError, match=f"{cls.__name__} cannot verify a draft tree") as error:
            target.generate(prompt(), max_new_tokens=8, assistant_model=oracle(target))
        assert "\n" not in str(error.value)
    assert target.generate(prompt(), max_new_tokens=8).shape == (1, 17), "plain generation is untouched"


def test_mpt_is_refused() -> None:
    """It adds its own causal mask and biases by place in the cache: wrong in silence."""
    torch.manual_seed(0)
    config = MptConfig(d_model=32, n_heads=4, n_layers=7, vocab_size=96, max_seq_len=256)
    target = MptForCausalLM(config).eval()
    with pytest.raises(ValueError, match="MptForCausalLM"):
        target.generate(prompt(), max_new_tokens=8, assistant_model=oracle(target, boundaries=()))


def test_recurrent_target_is_refused() -> None:
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=7, attention_hidden_size=32)
    target = RwkvForCausalLM(config).eval()
    with pytest.raises(ValueError, match=r"[.]$") as error:
        target.generate(prompt(), max_new_tokens=8, assistant_model=oracle(target, boundaries=()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("alibi", [False, True])
def test_falcon_with_and_without_alibi_are_different_targets(alibi: bool) -> None:
    """They share a class, and only one of them can hold a tree: either way the tokens must be right, or refused."""
    config = FalconConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=7,
        num_attention_heads=4,
        alibi=alibi,
        initializer_range=0.6,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    target = FalconForCausalLM(config).eval()
    head = oracle(target, boundaries=())
    plain = target.generate(prompt(), max_new_tokens=24)
    head.learn(target.generate(prompt(), max_new_tokens=36))
    call = {"max_new_tokens": 24, "assistant_model": head, "return_dict_in_generate": True}
    if alibi:
        with pytest.raises(ValueError, match="FalconForCausalLM"):
            target.generate(prompt(), **call)
        return
    out = target.generate(prompt(), **call)
    assert out.sequences.tolist() == plain.tolist()
    assert max(out.acceptance_lengths[0]) > 1


# ---------------------------------------------------------------------- what must not be held against a target


def drafts_well(target) -> None:
    head = oracle(target)
    head.learn(target.generate(prompt(), max_new_tokens=30))
    out = target.generate(prompt(), max_new_tokens=20, assistant_model=head, return_dict_in_generate=True)
    assert out.sequences.tolist() == target.generate(prompt(), max_new_tokens=20).tolist()
    assert max(out.acceptance_lengths[0]) > 1


def test_a_target_met_in_training_mode() -> None:
    """With dropout on no two forwards agree; once it is off the target must be as welcome as any."""
    target = unmet(attention_dropout=0.5).train()
    with contextlib.suppress(ValueError):  # refused or not: it cannot be told while dropout is on
        target.generate(prompt(), max_new_tokens=6, assistant_model=oracle(target))
    drafts_well(target.eval())


def test_memory_that_ran_out_once() -> None:
    """No verdict on the target: the error is the user's to see, and the next call finds things as they should be."""

    class ShortOfMemory(LlamaForCausalLM):
        left = 1

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if self.left:
                self.left -= 1
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(*args, **kwargs)

    target = unmet(ShortOfMemory)
    with pytest.raises(torch.OutOfMemoryError):
        target.generate(prompt(), max_new_tokens=6, assistant_model=oracle(target))
    drafts_well(target)


# ---------------------------------------------------------------------- and nothing else is noticed


def test_the_first_meeting_draws_no_random_number() -> None:
    target = unmet()
    head = oracle(target)
    before, dice = torch.get_rng_state(), random.getstate()
    target.generate(prompt(), max_new_tokens=6, assistant_model=head)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == dice


def test_a_seed_gives_one_text_from_the_first_meeting_on() -> None:
    target = unmet(attention_dropout=0.1)
    texts = []
    for _ in range(2):
        torch.manual_seed(5)
        call = {"max_new_tokens": 12, "do_sample": True, "assistant_model": oracle(target)}
        texts.append(target.generate(prompt(), **call).tolist())
    assert texts[0] == texts[1]


def forwards_while(target, action: Any) -> int:
    seen: list[int] = []
    hook = target.register_forward_pre_hook(lambda *given: seen.append(1))
    action()
    hook.remove()
    return len(seen)


def test_tried_once_for_each_config() -> None:
    target = unmet()
    head = oracle(target, corruption=1.0)
    call = {"max_new_tokens": 6, "assistant_model": head}
    first = forwards_while(target, lambda: target.generate(prompt(), **call))
    second = forwards_while(target, lambda: target.generate(prompt(), **call))
    assert first > second == 6
    twin = tiny_target(max_position_embeddings=target.config.max_position_embeddings)
    assert forwards_while(twin, lambda: twin.generate(prompt(), **call)) == 6, "the same config is not tried again"
    other = tiny_target(max_position_embeddings=target.config.max_position_embeddings, attention="eager")
    assert forwards_while(other, lambda: other.generate(prompt(), **call)) > 6, "another attention is"


def test_only_the_captured_boundaries_are_asked_for() -> None:
    target = unmet()
    asked: list[Any] = []
    target.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs.get("output_hidden_states")), with_kwargs=True
    )
    target.generate(prompt(), max_new_tokens=12, assistant_model=oracle(target, boundaries=(1, 4)))
    assert [1, 4] in asked
    assert True not in asked


def test_the_target_is_never_changed() -> None:
    target = unmet()
    weights = {name: weight.clone() for name, weight in target.state_dict().items()}
    methods = {name: getattr(type(target), name) for name in ("forward", "prepare_inputs_for_generation")}
    config = target.config.to_dict()
    target.generate(prompt(), max_new_tokens=12, assistant_model=oracle(target))
    assert all(torch.equal(weight, weights[name]) for name, weight in target.state_dict().items())
    assert all(getattr(type(target), name) is method for name, method in methods.items())
    assert "forward" not in vars(target)
    assert target.config.to_dict() == config
    assert target.config._attn_implementation == "sdpa"
