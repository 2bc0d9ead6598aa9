"""Every way to give a prompt that plain `generate` takes at batch 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.agreement import compare, mean_acceptance
from helpers.oracle import oracle
from helpers.targets import FAMILIES, prompt, tiny_target


def padded(ids: torch.Tensor, padding: int) -> dict[str, torch.Tensor]:
    """`ids` with `padding` masked tokens on their left."""
    left = torch.zeros(1, padding, dtype=torch.long)
    return {
        "input_ids": torch.cat((left, ids), dim=1),
        "attention_mask": torch.cat((left, torch.ones_like(ids)), dim=1),
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding(family: str, attention: str) -> None:
    target = tiny_target(family, attention=attention)
    inputs = padded(prompt(), 5)
    pair = compare(target, oracle(target), {"max_new_tokens": 24}, **inputs)
    bare = target.generate(prompt(), max_new_tokens=24)
    assert pair.drafted.sequences[0, 14:].tolist() == bare[0, 9:].tolist(), "padding changes nothing in plain text"
    assert pair.drafted.past_key_values.get_seq_length() == 14 + 23


def test_a_trained_head_does_not_see_the_padding(golden_target, golden_head) -> None:
    ids = prompt(12, vocabulary=500)
    options = {"max_new_tokens": 24, "eos_token_id": None}
    bare = compare(golden_target, golden_head, options, input_ids=ids)
    pair = compare(golden_target, golden_head, options, **padded(ids, 6))
    assert pair.drafted.sequences[0, 18:].tolist() == bare.drafted.sequences[0, 12:].tolist()
    assert pair.drafted.acceptance_lengths == bare.drafted.acceptance_lengths


def test_padded_chat_goes_on(golden_target, golden_head) -> None:
    inputs = padded(prompt(12, vocabulary=500), 6)
    outs: list[Any] = []
    for more in ({}, {"assistant_model": golden_head}):
        call = {"max_new_tokens": 16, "eos_token_id": None, "return_dict_in_generate": True, **more}
        first = golden_target.generate(**inputs, **call)
        ids = torch.cat((first.sequences, prompt(5, seed=4, vocabulary=500)), dim=1)
        mask = torch.cat((inputs["attention_mask"], inputs["attention_mask"].new_ones(1, 16 + 5)), dim=1)
        outs.append(golden_target.generate(ids, attention_mask=mask, past_key_values=first.past_key_values, **call))
    assert outs[1].sequences.tolist() == outs[0].sequences.tolist()
    assert mean_acceptance(outs[1]) > 1.0


def test_masked_tokens_in_the_middle(target, head) -> None:
    mask = torch.ones(1, 9, dtype=torch.long)
    mask[:, 3:5] = 0
    compare(target, head, {"max_new_tokens": 24}, input_ids=prompt(), attention_mask=mask)


def test_own_position_ids(target, head) -> None:
    positions = torch.arange(9)[None] + 40
    compare(target, head, {"max_new_tokens": 24}, input_ids=prompt(), position_ids=positions)


@pytest.mark.parametrize("name", ["inputs", "position", "inputs_embeds and input_ids"])
def test_other_names_for_the_prompt(target, head, name: str) -> None:
    head.learn(target.generate(prompt(), max_new_tokens=36))
    plain = target.generate(prompt(), max_new_tokens=24)
    call: dict[str, Any] = {"max_new_tokens": 24, "assistant_model": head, "return_dict_in_generate": True}
    if name == "inputs":
        out = target.generate(inputs=prompt(), **call)
    elif name == "position":
        out = target.generate(prompt(), **call)
    else:
        embeds = target.get_input_embeddings()(prompt()).detach()
        out = target.generate(prompt(), inputs_embeds=embeds, **call)
    assert out.sequences.tolist() == plain.tolist()
    assert mean_acceptance(out) > 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_as_prompt(family: str) -> None:
    """Plain `generate` then returns the new tokens alone."""
    target = tiny_target(family)
    embeds = target.get_input_embeddings()(prompt()).detach() * 1.1
    pair = compare(target, oracle(target), {"max_new_tokens": 24}, inputs_embeds=embeds)
    assert pair.drafted.sequences.shape == (1, 24)
    assert pair.drafted.past_key_values.get_seq_length() == 9 + 23


def test_embeddings_with_a_trained_head(golden_target, golden_head) -> None:
    """Their tokens are not known, so the head drafts from the new tokens on."""
    embeds = golden_target.get_input_embeddings()(prompt(12, vocabulary=500)).detach()
    for options in ({}, {"repetition_penalty": 1.2}, {"max_length": 24}):
        given = {"max_new_tokens": 24, "eos_token_id": None} | options
        if "max_length" in options:
            del given["max_new_tokens"]
        compare(golden_target, golden_head, given, inputs_embeds=embeds)


@pytest.mark.parametrize("bos", [7, None])
def test_no_prompt_at_all(bos: int | None) -> None:
    """Plain `generate` starts from the bos token, and says so if there is none."""
    target = tiny_target()
    head = oracle(target)
    target.generation_config.bos_token_id = bos
    if bos is not None:
        pair = compare(target, head, {"max_new_tokens": 20})
        assert pair.drafted.sequences[0, 0] == 7
        return
    with pytest.raises(ValueError) as plain:  # noqa: PT011 - compared below
        target.generate(max_new_tokens=5)
    with pytest.raises(ValueError) as drafted:  # noqa: PT011
        target.generate(max_new_tokens=5, assistant_model=head)
    assert str(drafted.value) == str(plain.value)


def test_empty_prompt(target, head) -> None:
    """No tokens at all: whatever plain `generate` says to that."""
    nothing = torch.zeros(1, 0, dtype=torch.long)
    with pytest.raises(Exception) as plain:  # noqa: PT011 - compared below
        target.generate(nothing, max_new_tokens=5)
    with pytest.raises(type(plain.value)) as drafted:
        target.generate(nothing, max_new_tokens=5, assistant_model=head)
    assert str(drafted.value) == str(plain.value)


def test_prompt_that_starts_with_the_padding_token(target, head) -> None:
    """Token 0 is the padding token; within a prompt plain `generate` masks it by itself."""
    ids = torch.cat((torch.zeros(1, 3, dtype=torch.long), prompt()), dim=1)
    compare(target, head, {"max_new_tokens": 20}, input_ids=ids)


def test_chunked_prefill(golden_target, golden_head) -> None:
    """`prefill_chunk_size` splits the forward over the prompt; the text stays the same."""
    ids = prompt(23, vocabulary=500)
    options = {"max_new_tokens": 24, "eos_token_id": None}
    whole = compare(golden_target, golden_head, options, input_ids=ids)
    chunked = compare(golden_target, golden_head, options | {"prefill_chunk_size": 8}, input_ids=ids)
    assert chunked.drafted.sequences.tolist() == whole.drafted.sequences.tolist()


def test_a_prompt_on_an_odd_dtype(target, head) -> None:
    compare(target, head, {"max_new_tokens": 12}, input_ids=prompt().to(torch.int32))
