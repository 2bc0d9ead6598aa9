"""What a head cannot do yet is said in one clear sentence, before anything is generated."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers.agreement import compare
from helpers.oracle import OracleConfig, OracleHead, oracle
from helpers.targets import prompt, tiny_target
from transformers import T5Config, T5ForConditionalGeneration
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, QuantizedLayer, StaticCache

NEW = {"max_new_tokens": 8}


def refusal(target, head, *, says: str, **call: Any) -> str:
    """The one sentence of a refusal; the call must not have written anything."""
    call = {"input_ids": prompt(), **NEW, **call}
    with pytest.raises(ValueError, match=says) as error:
        target.generate(**call, assistant_model=head)
    words = str(error.value)
    assert "\n" not in words
    assert words.endswith(".")
    assert not re.search(r"[.!?] [A-Z]", words), f"one sentence, not several: {words}"
    return words


# ---------------------------------------------------------------------- ways of generating


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_beams": 3, "do_sample": True}])
def test_beams(target, head, options: dict[str, Any]) -> None:
    assert "num_beams" in refusal(target, head, says="beam", **options)


def test_beams_of_the_models_generation_config() -> None:
    target = tiny_target()
    target.generation_config.num_beams = 4
    refusal(target, oracle(target), says="beam")


def test_batches(target, head) -> None:
    refusal(target, head, says="batch of 2", input_ids=prompt().repeat(2, 1))


def test_several_answers_to_one_prompt(target, head) -> None:
    """Plain `generate` makes a batch of them."""
    call = {"input_ids": prompt(), **NEW, "num_return_sequences": 3, "do_sample": True}
    with pytest.raises(ValueError, match=r"num_return_sequences|batch of 3"):
        target.generate(**call, assistant_model=head)


def test_without_a_cache(target, head) -> None:
    refusal(target, head, says="use_cache", use_cache=False)


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_outputs_of_every_layer(target, head, name: str) -> None:
    refusal(target, head, says=name, return_dict_in_generate=True, **{name: True})


def test_encoder_decoder() -> None:
    config = T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    target = T5ForConditionalGeneration(config).eval()
    head = OracleHead(OracleConfig(vocab_size=96, target_hidden_size=32))
    refusal(target, head, says="encoder-decoder")


# ---------------------------------------------------------------------- caches


class RoundedLayer(QuantizedLayer):
    """A quantised layer that needs no package."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return tensor.half()

    def _dequantize(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float()


@pytest.mark.parametrize("kind", ["static", "quantised", "offloaded", "unknown layer"])
def test_caches_of_the_user(target, head, kind: str) -> None:
    class OwnLayer(DynamicLayer):
        pass

    caches: dict[str, Any] = {
        "static": lambda: StaticCache(config=target.config, max_cache_len=64),
        "quantised": lambda: Cache(layers=[RoundedLayer() for _ in range(7)]),
        "offloaded": lambda: DynamicCache(config=target.config, offloading=True),
        "unknown layer": lambda: Cache(layers=[OwnLayer() for _ in range(7)]),
    }
    assert "DynamicCache" in refusal(target, head, says="cache", past_key_values=caches[kind]())


@pytest.mark.parametrize("name", ["static", "offloaded_static", "sliding_window", "offloaded"])
def test_cache_implementations(target, head, name: str) -> None:
    assert "DynamicCache" in refusal(target, head, says="cache", cache_implementation=name)


def test_quantised_cache_implementation(target, head) -> None:
    """Also where the package that quantises is not installed: nobody should install it only to be refused then."""
    refusal(target, head, says="cache", cache_implementation="quantized")


# ---------------------------------------------------------------------- attention


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_attention_that_cannot_hold_a_tree(name: str) -> None:
    target = tiny_target()
    target.config._attn_implementation = name
    words = refusal(target, oracle(target), says=name)
    assert "sdpa" in words
    assert "eager" in words


def test_attention_changed_after_the_first_meeting() -> None:
    target = tiny_target()
    head = oracle(target)
    target.generate(prompt(), **NEW, assistant_model=head)
    target.config._attn_implementation = "flex_attention"
    refusal(target, head, says="flex_attention")


def test_within_and_beyond_a_sliding_window() -> None:
    """Context and tree within the window are fine; what does not fit is refused, by the sizes that are at odds."""
    target = tiny_target("mistral", sliding_window=48)
    head = oracle(target)
    head.learn(target.generate(prompt(), max_new_tokens=24))
    out = target.generate(prompt(), max_new_tokens=24, assistant_model=head, return_dict_in_generate=True)
    assert out.sequences.tolist() == target.generate(prompt(), max_new_tokens=24).tolist()
    assert max(out.acceptance_lengths[0]) > 1
    assert "48" in refusal(target, head, says="sliding window", max_new_tokens=60)
    assert "48" in refusal(target, head, says="sliding window", input_ids=prompt(50))


@pytest.mark.parametrize("corruption", [0.0, 0.2])
def test_to_the_last_position_of_a_sliding_window(corruption: float) -> None:
    """In one call, and in a chat that gets there."""
    target = tiny_target("mistral", sliding_window=48)
    head = oracle(target, corruption=corruption)
    compare(target, head, {"max_length": 48}, input_ids=prompt())
    first = compare(target, head, {"max_new_tokens": 20}, input_ids=prompt()).drafted
    ids = torch.cat((first.sequences, prompt(6, seed=2)), dim=1)
    plain = target.generate(ids, max_length=48)
    head.learn(target.generate(ids, max_new_tokens=40))
    out = target.generate(ids, max_length=48, past_key_values=first.past_key_values, assistant_model=head)
    assert out.tolist() == plain.tolist()
    refusal(target, head, says="48", input_ids=prompt(), max_new_tokens=40)


def test_beyond_a_sliding_window_when_only_new_tokens_are_given() -> None:
    """The cache counts, too: 28 positions are in it, of which the new call's ids say nothing."""
    target = tiny_target("mistral", sliding_window=48)
    first = target.generate(prompt(), max_new_tokens=20, return_dict_in_generate=True)
    ids = torch.cat((first.sequences[:, -1:], prompt(6, seed=2)), dim=1)
    call = {"attention_mask": torch.ones(1, 28 + 7, dtype=torch.long), "max_new_tokens": 20}
    refusal(target, oracle(target), says="48", input_ids=ids, past_key_values=first.past_key_values, **call)


def test_beyond_a_sliding_window_from_embeddings() -> None:
    """A prompt of embeddings counts, though it has no ids."""
    target = tiny_target("mistral", sliding_window=48)
    embeds = target.get_input_embeddings()(prompt(40)).detach()
    refusal(target, oracle(target), says="48", input_ids=None, inputs_embeds=embeds, max_new_tokens=20)


def test_a_target_with_both_kinds_of_layers_within_the_window() -> None:
    """Every other layer sliding, as in Gemma: masks come as one tensor for both."""
    kinds = ["sliding_attention", "full_attention"] * 3 + ["full_attention"]
    target = tiny_target("qwen3", sliding_window=64, use_sliding_window=True, layer_types=kinds)
    head = oracle(target)
    head.learn(target.generate(prompt(), max_new_tokens=30))
    out = target.generate(prompt(), max_new_tokens=30, assistant_model=head, return_dict_in_generate=True)
    assert out.sequences.tolist() == target.generate(prompt(), max_new_tokens=30).tolist()
    assert max(out.acceptance_lengths[0]) > 1


# ---------------------------------------------------------------------- a head that does not belong


@pytest.mark.parametrize(("field", "says"), [("vocab_size", "96"), ("target_hidden_size", "32")])
def test_sizes_that_differ(target, field: str, says: str) -> None:
    head = OracleHead(OracleConfig(**{"vocab_size": 96, "target_hidden_size": 32, field: 40}))
    assert "40" in refusal(target, head, says=says)


@pytest.mark.parametrize("knobs", [{"num_assistant_tokens": 0}, {"tree_depth": -1}, {"tree_top_k": 2.5}])
def test_knobs_that_make_no_tree(target, head, knobs: dict[str, Any]) -> None:
    refusal(target, head, says=next(iter(knobs)), **knobs)


def test_a_refusal_leaves_no_trace(target, head) -> None:
    """After all these the same pair generates as if nothing had been."""
    with pytest.raises(ValueError, match="beam"):
        target.generate(prompt(), num_beams=2, assistant_model=head)
    head.learn(target.generate(prompt(), max_new_tokens=20))
    cache = DynamicCache(config=target.config)
    out = target.generate(prompt(), max_new_tokens=12, past_key_values=cache, assistant_model=head)
    assert out.tolist() == target.generate(prompt(), max_new_tokens=12).tolist()


def test_a_refused_cache_is_left_as_it_was(target, head) -> None:
    cache = StaticCache(config=target.config, max_cache_len=64)
    with pytest.raises(ValueError, match="cache"):
        target.generate(prompt(), **NEW, past_key_values=cache, assistant_model=head)
    assert int(cache.get_seq_length()) == 0
