"""What `generate` returns with a head: everything that plain `generate` returns, and the acceptance lengths."""

from __future__ import annotations

import pytest
import torch
from helpers.agreement import Pair, compare, fresh, learn_text, mean_acceptance
from helpers.oracle import oracle
from helpers.targets import FAMILIES, prompt, tiny_target
from transformers import GenerationConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput

RECORD = {"output_scores": True, "output_logits": True}


def same_tensors(ours: tuple[torch.Tensor, ...], plain: tuple[torch.Tensor, ...]) -> None:
    assert isinstance(ours, tuple)
    assert len(ours) == len(plain)
    for one, other in zip(ours, plain, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.5},
        {"eos_token_id": "sixth"},
        {"bad_words_ids": [[5], [6]], "no_repeat_ngram_size": 2},
    ],
    ids=["bare", "processor", "stop", "two processors"],
)
def test_scores_and_logits(target, head, options: dict) -> None:
    if options.get("eos_token_id") == "sixth":
        options = {"eos_token_id": int(target.generate(prompt(), max_new_tokens=6)[0, -1])}
    pair = compare(target, head, {"max_new_tokens": 22, **RECORD, **options}, input_ids=prompt())
    assert len(pair.plain.scores) == pair.plain.sequences.shape[1] - 9
    same_tensors(pair.drafted.scores, pair.plain.scores)
    same_tensors(pair.drafted.logits, pair.plain.logits)


def test_only_what_was_asked_for(target, head) -> None:
    learn_text(target, head, {"max_new_tokens": 12}, input_ids=prompt())
    for options in ({}, {"output_scores": True}, {"output_logits": True}):
        call = {"max_new_tokens": 12, "return_dict_in_generate": True, **options}
        plain = target.generate(prompt(), **call)
        drafted = target.generate(prompt(), **call, assistant_model=head)
        for name in ("scores", "logits"):
            assert (getattr(drafted, name) is None) == (getattr(plain, name) is None)


def test_without_a_dict_it_returns_ids(target, head) -> None:
    learn_text(target, head, {"max_new_tokens": 12}, input_ids=prompt())
    out = target.generate(prompt(), max_new_tokens=12, assistant_model=head, **RECORD)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.int64
    assert out.tolist() == target.generate(prompt(), max_new_tokens=12).tolist()


def test_output_is_a_plain_output_and_more(target, head) -> None:
    pair = compare(target, head, {"max_new_tokens": 12}, input_ids=prompt())
    assert isinstance(pair.drafted, GenerateDecoderOnlyOutput)
    assert set(pair.plain.keys()) <= set(pair.drafted.keys())
    assert "acceptance_lengths" in pair.drafted
    assert pair.drafted.sequences.requires_grad is False


def test_transition_scores(target, head) -> None:
    """`compute_transition_scores`, which reads sequences and scores together, agrees."""
    pair = compare(target, head, {"max_new_tokens": 12, **RECORD}, input_ids=prompt())
    ours, plain = (
        target.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        for out in (pair.drafted, pair.plain)
    )
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------- the returned cache


def same_cache(pair: Pair) -> None:
    plain, ours = pair.plain.past_key_values, pair.drafted.past_key_values
    assert ours.get_seq_length() == plain.get_seq_length() == pair.plain.sequences.shape[1] - 1
    assert len(ours.layers) == len(plain.layers)
    for one, other in zip(ours.layers, plain.layers, strict=True):
        assert type(one) is type(other)
        assert one.get_seq_length() == other.get_seq_length()
        assert one.get_mask_sizes(1) == other.get_mask_sizes(1)
        torch.testing.assert_close(one.keys, other.keys, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.values, other.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_returned_cache(family: str) -> None:
    target = tiny_target(family)
    head = oracle(target, corruption=0.0)
    for limit in (2, 5, 12):
        same_cache(compare(target, head, {"max_new_tokens": limit}, input_ids=prompt()))


def test_returned_cache_drops_what_slides_out() -> None:
    """Plain `generate` goes on from it past the window: same text, and no more memory than plain's own cache takes."""
    target = tiny_target("mistral", sliding_window=32)
    pair = compare(target, oracle(target), {"max_new_tokens": 8}, input_ids=prompt())
    ids = torch.cat((pair.plain.sequences, prompt(6, seed=2)), dim=1)
    plain, ours = (
        target.generate(ids, max_new_tokens=40, past_key_values=out.past_key_values, return_dict_in_generate=True)
        for out in (pair.plain, pair.drafted)
    )
    assert ours.sequences.tolist() == plain.sequences.tolist()
    for one, other in zip(ours.past_key_values.layers, plain.past_key_values.layers, strict=True):
        assert one.keys.shape == other.keys.shape


def test_returned_cache_after_a_stop(target, head) -> None:
    new = target.generate(prompt(), max_new_tokens=12)[0, 9:].tolist()
    for place in range(3, 10):
        options = {"max_new_tokens": 30, "eos_token_id": new[place]}
        same_cache(compare(target, head, options, input_ids=prompt()))


def test_returned_cache_of_a_single_token(target, head) -> None:
    call = {"max_new_tokens": 1, "return_dict_in_generate": True}
    plain = target.generate(prompt(), **call)
    same_cache(Pair(plain, target.generate(prompt(), **call, assistant_model=head)))


# ---------------------------------------------------------------------- acceptance lengths


def count_forwards(target, calls: list[int]):
    """A hook that notes how many tokens each target forward took in."""
    return target.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((kwargs.get("input_ids", args[0] if args else None)).shape[1]),
        with_kwargs=True,
    )


def test_one_number_for_each_verification(target, head) -> None:
    options = {"max_new_tokens": 30}
    compare(target, head, options, input_ids=prompt())  # meets the target, so that no probe is counted below
    calls: list[int] = []
    hook = count_forwards(target, calls)
    out = target.generate(prompt(), **fresh(options), assistant_model=head, return_dict_in_generate=True)
    hook.remove()
    (lengths,) = out.acceptance_lengths
    assert all(isinstance(length, int) for length in lengths)
    assert calls[0] == 9
    assert len(calls) == 1 + len(lengths)
    assert calls[1:] == [tree.num_nodes for _, tree in head.records[-1].trees]
    assert 1 + sum(lengths) >= 30, "the prefill gives the first token, verifications the others"
    assert 1 + sum(lengths[:-1]) < 30
    assert all(1 <= length <= 6 for length in lengths)


@pytest.mark.parametrize(("limit", "expected"), [(2, [6]), (7, [6]), (8, [6, 6]), (13, [6, 6]), (14, [6, 6, 6])])
def test_counted_before_the_limit_cuts(target, limit: int, expected: list[int]) -> None:
    """A perfect oracle's five drafts and the bonus, though the text may end after one: trees are not clamped."""
    head = oracle(target, corruption=0.0)
    pair = compare(target, head, {"max_new_tokens": limit}, input_ids=prompt())
    assert pair.drafted.acceptance_lengths == [expected]


def test_counted_before_a_stop_cuts(target) -> None:
    head = oracle(target, corruption=0.0)
    new = target.generate(prompt(), max_new_tokens=12)[0, 9:].tolist()
    pair = compare(target, head, {"max_new_tokens": 30, "eos_token_id": new[2]}, input_ids=prompt())
    assert pair.drafted.acceptance_lengths == [[6]]


def test_only_the_context_clamps_a_tree() -> None:
    """Positions 0 to 23: with 20 tokens in the cache the root takes 20, and three levels fit below it."""
    target = tiny_target(max_position_embeddings=24)
    head = oracle(target, corruption=0.0)
    pair = compare(target, head, {"max_new_tokens": 4}, input_ids=prompt(20))
    assert pair.drafted.acceptance_lengths == [[4]]
    assert mean_acceptance(pair.drafted) == 4.0


@pytest.mark.parametrize("place", ["call", "head", "generation config"])
def test_where_the_knobs_come_from(target, place: str) -> None:
    head = oracle(target)
    knobs = {"num_assistant_tokens": 5, "tree_depth": 2, "tree_top_k": 3, "assistant_confidence_threshold": 0.1}
    call: dict = {}
    if place == "call":
        call = dict(knobs)
    elif place == "head":
        head.generation_config.update(**knobs)
    else:
        call = {"generation_config": GenerationConfig(max_new_tokens=12, pad_token_id=0, **knobs)}
    learn_text(target, head, {"max_new_tokens": 12}, input_ids=prompt())
    if place != "generation config":
        call["max_new_tokens"] = 12
    out = target.generate(prompt(), **call, assistant_model=head, return_dict_in_generate=True)
    assert vars(head.records[-1].shape) == knobs
    assert mean_acceptance(out) > 1.0
    assert max(out.acceptance_lengths[0]) <= 3
    assert out.sequences.tolist() == target.generate(prompt(), max_new_tokens=12).tolist()


def test_the_call_wins_over_the_head(target, head) -> None:
    target.generate(prompt(), max_new_tokens=4, assistant_model=head, tree_depth=3)
    assert vars(head.records[-1].shape) == {
        "num_assistant_tokens": 14, "tree_depth": 3, "tree_top_k": 4, "assistant_confidence_threshold": 0.0,
    }  # fmt: skip
    assert head.generation_config.tree_depth == 5, "a call changes nothing on the head"
    assert not hasattr(target.generation_config, "tree_depth")
