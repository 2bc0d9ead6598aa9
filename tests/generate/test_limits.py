"""How long a text gets: the token limits, the end-of-text tokens and the target's context, as in plain `generate`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers.agreement import compare, learn_text, mean_acceptance
from helpers.oracle import oracle
from helpers.targets import gpt2_target, prompt, tiny_target
from transformers import GenerationConfig


def text_after(target, ids: torch.Tensor, length: int) -> list[int]:
    return target.generate(ids, max_new_tokens=length)[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def words(target) -> list[int]:
    return text_after(target, prompt(), 40)


# ---------------------------------------------------------------------- token limits


@pytest.mark.parametrize("limit", [2, 3, 4, 5, 6, 7, 8, 13])
def test_max_new_tokens(target, head, limit: int) -> None:
    pair = compare(target, head, {"max_new_tokens": limit}, input_ids=prompt())
    assert pair.drafted.sequences.shape[1] == 9 + limit


def test_one_new_token_needs_no_verification(target, head) -> None:
    out = target.generate(prompt(), max_new_tokens=1, assistant_model=head, return_dict_in_generate=True)
    assert out.sequences.tolist() == target.generate(prompt(), max_new_tokens=1).tolist()
    assert out.acceptance_lengths == [[]]


@pytest.mark.parametrize("length", [12, 15, 20])
def test_max_length(target, head, length: int) -> None:
    pair = compare(target, head, {"max_length": length}, input_ids=prompt())
    assert pair.drafted.sequences.shape[1] == length


def test_default_length(target, head) -> None:
    """Plain `generate` writes 20 tokens where nobody says how many."""
    learn_text(target, head, {"max_new_tokens": 20}, input_ids=prompt())
    out = target.generate(prompt(), assistant_model=head, return_dict_in_generate=True)
    assert out.sequences.tolist() == target.generate(prompt()).tolist()
    assert mean_acceptance(out) > 1.0


def test_limit_from_a_generation_config(target, head) -> None:
    config = GenerationConfig(max_new_tokens=17, pad_token_id=0)
    learn_text(target, head, {"max_new_tokens": 17}, input_ids=prompt())
    plain = target.generate(prompt(), generation_config=config)
    out = target.generate(prompt(), generation_config=config, assistant_model=head)
    assert out.tolist() == plain.tolist()
    assert config.max_new_tokens == 17
    shape = head.records[-1].shape
    assert (shape.num_assistant_tokens, shape.tree_depth, shape.tree_top_k) == (14, 5, 4), "the head's own tree"


def test_max_time_stops_soon(target, head) -> None:
    out = target.generate(prompt(), max_new_tokens=400, max_time=0.0, assistant_model=head)
    assert out.tolist() == target.generate(prompt(), max_new_tokens=400, max_time=0.0).tolist()


# ---------------------------------------------------------------------- end-of-text tokens


@pytest.mark.parametrize("place", range(1, 12))
def test_eos_at_any_place_of_an_accepted_run(target, head, words, place: int) -> None:
    pair = compare(target, head, {"max_new_tokens": 30, "eos_token_id": words[place]}, input_ids=prompt())
    new = pair.drafted.sequences[0, 9:].tolist()
    assert new == words[: words.index(words[place]) + 1]


def test_several_eos(target, head, words) -> None:
    late, early = words[25], words[11]
    pair = compare(target, head, {"max_new_tokens": 30, "eos_token_id": [late, early]}, input_ids=prompt())
    assert pair.drafted.sequences[0, -1] == early


def test_eos_of_the_models_own_generation_config(head) -> None:
    target = tiny_target()
    words = text_after(target, prompt(), 20)
    learn_text(target, head, {"max_new_tokens": 30}, input_ids=prompt())
    target.generation_config.eos_token_id = [words[9]]
    plain = target.generate(prompt(), max_new_tokens=30)
    out = target.generate(prompt(), max_new_tokens=30, assistant_model=head)
    assert out.tolist() == plain.tolist()
    assert plain[0, -1] == words[9]


@pytest.mark.parametrize("least", [1, 8, 14])
def test_min_new_tokens_holds_eos_back(target, head, words, least: int) -> None:
    """The processor makes another text, which the oracle learns from plain `generate` itself."""
    options = {"max_new_tokens": 24, "eos_token_id": [words[3], words[10]], "min_new_tokens": least}
    head.learn(target.generate(prompt(), **options))
    pair = compare(target, head, options, learn=False, input_ids=prompt())
    assert pair.drafted.sequences.shape[1] - 9 >= least


def test_min_length_holds_eos_back(target, head, words) -> None:
    options = {"max_new_tokens": 24, "eos_token_id": words[3], "min_length": 16}
    head.learn(target.generate(prompt(), **options))
    compare(target, head, options, learn=False, input_ids=prompt())


def test_forced_eos(target, head) -> None:
    options = {"max_length": 20, "eos_token_id": 95, "forced_eos_token_id": 95}
    pair = compare(target, head, options, input_ids=prompt())
    assert pair.drafted.sequences[0, -1] == 95


# ---------------------------------------------------------------------- the target's context


@pytest.mark.parametrize("length", [12, 30, 31])
def test_learned_positions_to_the_very_last(length: int) -> None:
    """A GPT-2 with 40 positions writes up to its limit: no node of a tree may ask for a position that is not there."""
    target = gpt2_target(40)
    head = oracle(target, seed=length)
    ids = prompt(9)
    pair = compare_within(target, head, length, ids)
    assert pair.shape[1] == 9 + length


def compare_within(target, head, length: int, ids: torch.Tensor) -> torch.Tensor:
    """As `compare`, with an oracle that can learn no further than the context goes."""
    plain = target.generate(ids, max_new_tokens=length)
    head.learn(plain)
    out = target.generate(ids, max_new_tokens=length, assistant_model=head, return_dict_in_generate=True)
    assert out.sequences.tolist() == plain.tolist()
    assert mean_acceptance(out) > 1.0
    return out.sequences


def test_only_the_first_token_has_room() -> None:
    target = gpt2_target(40)
    ids = prompt(39)
    for new in (1, 2):
        out = target.generate(ids, max_new_tokens=new, assistant_model=oracle(target))
        assert out.tolist() == target.generate(ids, max_new_tokens=new).tolist()


def test_own_positions_to_the_very_last() -> None:
    """Positions given by the user, which end at the limit though the text is short."""
    target = gpt2_target(40)
    head = oracle(target)
    options = {"max_new_tokens": 12, "position_ids": torch.arange(9)[None] + 20}
    head.learn(target.generate(prompt(), **options))
    compare(target, head, options, learn=False, input_ids=prompt())


def test_rotary_context_does_not_end_a_text() -> None:
    """Plain `generate` runs past a RoPE target's `max_position_embeddings`; so does it with a head."""
    target = tiny_target(max_position_embeddings=24)
    compare(target, oracle(target), {"max_new_tokens": 30}, input_ids=prompt())


@pytest.mark.parametrize(("family", "kind"), [("llama", "dynamic"), ("llama", "longrope"), ("phi3", "longrope")])
def test_rotary_frequencies_that_change_with_the_length(family: str, kind: str) -> None:
    """Some targets turn other frequencies on when a text outgrows 24 tokens (Phi-3 even computes its cache anew), and
    a tree may stand on both sides of that point: plain `generate`'s tokens, or a refusal in one sentence."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 24}
    fields: dict[str, Any] = {"max_position_embeddings": 24 if kind == "dynamic" else 96, "rope_parameters": rope}
    if family == "phi3":
        fields["original_max_position_embeddings"] = 24
    target = tiny_target(family, **fields)
    head = oracle(target)
    compare(target, head, {"max_new_tokens": 14}, input_ids=prompt())  # within the short range
    plain = target.generate(prompt(), max_new_tokens=40)
    head.learn(target.generate(prompt(), max_new_tokens=50))
    try:
        said = target.generate(prompt(), max_new_tokens=40, assistant_model=head).tolist()
    except ValueError as refusal:
        said = str(refusal)
    assert said == plain.tolist() or re.fullmatch(r"[^\n]*\b24\b[^\n]*", said)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_prompt_beyond_the_switch_of_long_rope(family: str) -> None:
    """Every forward is past the point where frequencies change: nothing straddles it, and a head drafts as ever."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 24}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    fields = {"original_max_position_embeddings": 24} if family == "phi3" else {}
    target = tiny_target(family, max_position_embeddings=96, rope_parameters=rope, **fields)
    compare(target, oracle(target), {"max_new_tokens": 30}, input_ids=prompt(30))


# ---------------------------------------------------------------------- where plain `generate` refuses


def both_fail(target, head, inputs: dict[str, Any], options: dict[str, Any]) -> Exception:
    """Both ways raise the same kind of exception with the same words."""
    with pytest.raises(Exception) as plain:  # noqa: PT011 - its type and its words are compared below
        target.generate(**inputs, **options)
    with pytest.raises(type(plain.value)) as drafted:
        target.generate(**inputs, **options, assistant_model=head)
    assert str(drafted.value) == str(plain.value)
    return plain.value


def test_no_new_tokens_asked(target, head) -> None:
    both_fail(target, head, {"input_ids": prompt()}, {"max_new_tokens": 0})


def test_prompt_longer_than_max_length(target, head) -> None:
    both_fail(target, head, {"input_ids": prompt(30)}, {"max_length": 20})


def test_prompt_longer_than_learned_positions() -> None:
    target = gpt2_target(20)
    both_fail(target, oracle(target), {"input_ids": prompt(25)}, {"max_new_tokens": 4})


def test_text_longer_than_learned_positions() -> None:
    target = gpt2_target(20)
    error = both_fail(target, oracle(target), {"input_ids": prompt(9)}, {"max_new_tokens": 14})
    assert isinstance(error, IndexError)


@pytest.mark.parametrize("options", [{"temperature": 0.0, "do_sample": True}, {"max_new_token": 5}, {"top_k": -1}])
def test_options_that_plain_generate_refuses(target, head, options: dict[str, Any]) -> None:
    both_fail(target, head, {"input_ids": prompt()}, {"do_sample": True, "max_new_tokens": 3} | options)
