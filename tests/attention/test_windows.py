"""With `eagle3_tree` trees slide with a target's windows: plain `generate`'s tokens, far beyond every window."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.agreement import compare, learn_text, mean_acceptance
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target
from helpers.trees import left_padded
from transformers import MistralForCausalLM
from transformers.cache_utils import DynamicCache

from hf_eagle3.attention import EAGLE3_TREE
from hf_eagle3.probe import follows_windows

NEW = 48
FAMILIES = ("mistral", "gemma3", "gemma2", "gpt_oss")


def windowed(family: str, window: int = 12, attention: str = EAGLE3_TREE, **fields: Any):
    return tiny_target(family, attention=attention, sliding_window=window, **fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_fit_for_a_comparison(family: str) -> None:
    """Varied, without near ties, and others than without the window: a forgotten window would be seen."""
    out = windowed(family).generate(prompt(), max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True)
    logits = torch.cat(out.logits)
    best, second = logits.topk(2, dim=-1).values.unbind(-1)
    assert len(set(out.sequences[0, 9:].tolist())) >= 12
    assert float(((best - second) / logits.abs().amax(-1)).min()) > 1e-4
    assert out.sequences.tolist() != windowed(family, 400).generate(prompt(), max_new_tokens=NEW).tolist()


@pytest.mark.parametrize(
    ("family", "window", "length"),
    [*((family, 12, length) for family in FAMILIES for length in (9, 40)), ("mistral", 8, 1), ("gpt_oss", 2, 5)],
)
def test_far_beyond_the_window(family: str, window: int, length: int) -> None:
    """From within it, and from a prompt that is longer than it; trees of 14 nodes, deeper than the smallest window."""
    target = windowed(family, window)
    pair = compare(target, oracle(target), {"max_new_tokens": NEW}, least=1.5, input_ids=prompt(length))
    ours, plain = pair.drafted.past_key_values.layers, pair.plain.past_key_values.layers
    for layer, other in zip(ours, plain, strict=True):
        assert layer.get_seq_length() == other.get_seq_length() == length + NEW - 1
        assert layer.keys.shape == other.keys.shape
        torch.testing.assert_close(layer.keys, other.keys, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "padding"), [("mistral", 3), ("gemma3", 3), ("gemma2", 30), ("gpt_oss", 3), ("mistral", 30)]
)
def test_left_padding(family: str, padding: int) -> None:
    """Padding that slides out of the window as the text goes on, and padding that was never in it."""
    target = windowed(family)
    ids, mask = left_padded(prompt(), padding)
    inputs = {"input_ids": ids, "attention_mask": mask}
    compare(target, oracle(target), {"max_new_tokens": NEW}, least=1.5, **inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_goes_on(family: str) -> None:
    """Turn by turn on one cache, of which the layers with a window hold its last rows only; then without a head."""
    target = windowed(family)
    head = oracle(target)
    call: dict[str, Any] = {"max_new_tokens": 20, "return_dict_in_generate": True}
    ids, ours, theirs = prompt(), None, None
    for turn in range(2):
        call["attention_mask"] = torch.ones_like(ids)  # token 0, which a text may hold, is the pad token too
        learn_text(target, head, {"max_new_tokens": 20}, input_ids=ids, attention_mask=call["attention_mask"])
        plain = target.generate(ids, **call, past_key_values=theirs)
        drafted = target.generate(ids, **call, past_key_values=ours, assistant_model=head)
        assert drafted.sequences.tolist() == plain.sequences.tolist()
        assert mean_acceptance(drafted) > 1.2
        ours, theirs = drafted.past_key_values, plain.past_key_values
        ids = torch.cat((drafted.sequences, prompt(5, seed=turn)), dim=1)
    call["attention_mask"] = torch.ones_like(ids)
    branch = copy.deepcopy(ours)
    assert target.generate(ids, **call, past_key_values=branch).sequences.tolist() == (
        target.generate(ids, **call, past_key_values=theirs).sequences.tolist()
    )


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_cache_that_keeps_every_row(family: str) -> None:
    """A user's `DynamicCache()` knows of no windows; the layers' own then count."""
    target = windowed(family)
    head = oracle(target)
    learn_text(target, head, {"max_new_tokens": NEW}, input_ids=prompt())
    call: dict[str, Any] = {"max_new_tokens": NEW, "past_key_values": DynamicCache(), "return_dict_in_generate": True}
    out = target.generate(prompt(), assistant_model=head, **call)
    assert out.sequences.tolist() == target.generate(prompt(), max_new_tokens=NEW).tolist()
    assert mean_acceptance(out) > 1.5
    assert out.past_key_values.layers[0].keys.shape[2] == 9 + NEW - 1


def test_sampling_at_one_token_and_stops_beyond_the_window() -> None:
    target = windowed("gemma3")
    words = target.generate(prompt(), max_new_tokens=NEW)[0, 9:].tolist()
    compare(target, oracle(target), {"max_new_tokens": NEW, "eos_token_id": words[40]}, input_ids=prompt())
    compare(target, oracle(target), {"max_new_tokens": NEW, "do_sample": True, "top_k": 1}, input_ids=prompt())


def test_an_error_in_the_midst_leaves_the_committed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's cache after a forward that broke off: goes on as if that forward had never been."""
    target = windowed("gemma3")
    head = oracle(target)
    learn_text(target, head, {"max_new_tokens": NEW}, input_ids=prompt())
    cache = DynamicCache(config=target.config)
    layer, calls = target.model.layers[4].mlp, []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    hook = layer.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        target.generate(prompt(), max_new_tokens=NEW, past_key_values=cache, assistant_model=head)
    hook.remove()
    length = cache.get_seq_length()
    assert length > 12
    text = target.generate(prompt(), max_new_tokens=NEW)
    assert {one.get_seq_length() for one in cache.layers} == {length}
    said = target.generate(text[:, : length + 1], max_new_tokens=10, past_key_values=cache)
    assert said.tolist() == text[:, : length + 11].tolist()


# ---------------------------------------------------------------------- where windows still end a text


@pytest.mark.parametrize(("family", "attention"), [("mistral", "sdpa"), ("mistral", "eager"), ("gpt_oss", "eager")])
def test_other_implementations_say_which_one_slides(family: str, attention: str) -> None:
    target = windowed(family, attention=attention)
    with pytest.raises(ValueError, match=r'sliding window of 12.*attn_implementation="eagle3_tree"') as error:
        target.generate(prompt(), max_new_tokens=NEW, assistant_model=oracle(target))
    assert "\n" not in str(error.value)


def test_holes_beyond_a_window() -> None:
    """A dense mask says them, and a dense mask knows one window for all layers: none."""
    target = windowed("gemma3", 24)
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1, 1]])
    compare(target, oracle(target), {"max_new_tokens": 14}, input_ids=prompt(), attention_mask=mask)
    with pytest.raises(ValueError, match=r"sliding window of 24.*put the padding of the prompt on its left") as error:
        target.generate(prompt(), attention_mask=mask, max_new_tokens=NEW, assistant_model=oracle(target))
    assert "\n" not in str(error.value)


class KeepsItsWindow(MistralForCausalLM):
    """Its layers mask a window as ever, but do not tell it to their attention function, as in some models."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.config = copy.copy(config)
            layer.self_attn.config.sliding_window = None


def test_a_window_that_layers_do_not_tell() -> None:
    """Trees cannot follow it: drafted within the window, refused beyond it."""
    target = windowed("mistral", 30, cls=KeepsItsWindow)
    compare(target, oracle(target), {"max_new_tokens": 20}, input_ids=prompt())
    assert not follows_windows(target)
    with pytest.raises(ValueError, match=r"sliding window of 30, beyond which .* without a head") as error:
        target.generate(prompt(), max_new_tokens=NEW, assistant_model=oracle(target))
    assert "\n" not in str(error.value)


class TellsAWindow(MistralForCausalLM):
    """Its layers tell a window of 6 that neither its masks nor its cache know."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.config = copy.copy(config)
            layer.self_attn.config.sliding_window = 6


def test_a_window_that_is_none() -> None:
    """On the probe's eight tokens it makes no difference; it is found by asking."""
    target = tiny_target("mistral", attention=EAGLE3_TREE, cls=TellsAWindow, sliding_window=None)
    with pytest.raises(ValueError, match="a layer asks for a window of 6") as error:
        target.generate(prompt(), max_new_tokens=NEW, assistant_model=oracle(target))
    assert "\n" not in str(error.value)
