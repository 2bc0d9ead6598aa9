"""A chat that goes on from a cache: ours, a foreign one, a copied one, one that others have written into meanwhile."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers.agreement import mean_acceptance
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target
from transformers.cache_utils import DynamicCache
from transformers.generation.streamers import BaseStreamer

NEW = 20
FIRST, TURN = prompt(12, seed=1, vocabulary=500), prompt(6, seed=2, vocabulary=500)
CALL = {"max_new_tokens": NEW, "eos_token_id": None, "return_dict_in_generate": True}


def say(target, ids: torch.Tensor, head: Any = None, cache: Any = None, **options: Any) -> Any:
    """One turn, with a head or without."""
    more = {"assistant_model": head} if head is not None else {}
    return target.generate(ids, **(CALL | options), past_key_values=cache, **more)


def then(out: Any, turn: torch.Tensor = TURN) -> torch.Tensor:
    """The whole text, and the user's next words."""
    return torch.cat((out.sequences, turn), dim=1)


@pytest.fixture(scope="module")
def plain(golden_target) -> Any:
    """Two turns of plain `generate`, the second one from the first one's cache."""
    first = say(golden_target, FIRST)
    return first, say(golden_target, then(first), cache=copy.deepcopy(first.past_key_values))


def test_our_cache_goes_on_where_it_was(golden_target, golden_head, plain) -> None:
    """It carries the draft's state: the second turn accepts exactly what it would in a call over the whole text."""
    first = say(golden_target, FIRST, golden_head)
    second = say(golden_target, then(first), golden_head, first.past_key_values)
    whole = say(golden_target, then(first), golden_head)
    assert second.sequences.tolist() == whole.sequences.tolist() == plain[1].sequences.tolist()
    assert second.acceptance_lengths == whole.acceptance_lengths
    assert mean_acceptance(second) > 1.2
    assert second.past_key_values is first.past_key_values
    assert second.past_key_values.get_seq_length() == second.sequences.shape[1] - 1


def test_six_turns(golden_target, golden_head) -> None:
    ids, ours, theirs = FIRST, None, None
    for number in range(6):
        drafted = say(golden_target, ids, golden_head, ours)
        plain = say(golden_target, ids, cache=theirs)
        assert drafted.sequences.tolist() == plain.sequences.tolist()
        assert mean_acceptance(drafted) > 1.0
        ours, theirs = drafted.past_key_values, plain.past_key_values
        ids = then(drafted, prompt(4, seed=10 + number, vocabulary=500))


def test_foreign_cache(golden_target, golden_head, plain) -> None:
    """A cache made by plain `generate`: drafted from its new positions on."""
    first = say(golden_target, FIRST)
    second = say(golden_target, then(first), golden_head, first.past_key_values)
    assert second.sequences.tolist() == plain[1].sequences.tolist()
    assert mean_acceptance(second) > 1.0


def test_cache_that_the_user_made(golden_target, golden_head) -> None:
    for cache in (DynamicCache(config=golden_target.config), DynamicCache()):
        out = say(golden_target, FIRST, golden_head, cache)
        assert out.sequences.tolist() == say(golden_target, FIRST).sequences.tolist()
        assert out.past_key_values is cache
        assert mean_acceptance(out) > 1.2


def test_prompt_cache_filled_by_a_forward(golden_target, golden_head) -> None:
    """The recipe of the documentation: a shared prefix run once, copied for each question."""
    prefix = DynamicCache(config=golden_target.config)
    with torch.no_grad():
        golden_target(FIRST, past_key_values=prefix, use_cache=True)
    for seed in range(2):
        ids = torch.cat((FIRST, prompt(5, seed=seed, vocabulary=500)), dim=1)
        out = say(golden_target, ids, golden_head, copy.deepcopy(prefix))
        assert out.sequences.tolist() == say(golden_target, ids).sequences.tolist()
        assert mean_acceptance(out) > 1.0
    assert prefix.get_seq_length() == 12


def test_only_the_new_tokens_given(golden_target, golden_head) -> None:
    """With a mask over the whole text, plain `generate` takes the new tokens alone."""
    first = say(golden_target, FIRST, golden_head)
    mask = torch.ones(1, first.sequences.shape[1] + TURN.shape[1], dtype=torch.long)
    new = torch.cat((first.sequences[:, -1:], TURN), dim=1)  # the last token is not in the cache yet
    theirs = copy.deepcopy(first.past_key_values)
    drafted = say(golden_target, new, golden_head, first.past_key_values, attention_mask=mask)
    plain = say(golden_target, new, cache=theirs, attention_mask=mask)
    assert drafted.sequences.tolist() == plain.sequences.tolist()
    assert drafted.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
    assert mean_acceptance(drafted) > 1.0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_copied_cache_branches_the_chat(golden_target, golden_head, plain, copied) -> None:
    """Two ways on from one cache: neither disturbs the other, and both keep the draft's state."""
    first = say(golden_target, FIRST, golden_head)
    branch = copied(first.past_key_values)
    other = prompt(7, seed=5, vocabulary=500)
    for cache, turn in ((first.past_key_values, TURN), (branch, other)):
        out = say(golden_target, then(first, turn), golden_head, cache)
        whole = say(golden_target, then(first, turn), golden_head)
        assert out.sequences.tolist() == whole.sequences.tolist()
        assert out.acceptance_lengths == whole.acceptance_lengths
        assert mean_acceptance(out) > 1.0


def test_plain_generate_goes_on_from_our_cache(golden_target, golden_head, plain) -> None:
    first = say(golden_target, FIRST, golden_head)
    second = say(golden_target, then(first), cache=first.past_key_values)
    assert second.sequences.tolist() == plain[1].sequences.tolist()
    third = say(golden_target, then(second), golden_head, second.past_key_values)
    assert third.sequences.tolist() == say(golden_target, then(second)).sequences.tolist()
    assert mean_acceptance(third) > 1.0


def test_turns_in_and_out_of_inference_mode(golden_target, golden_head, plain) -> None:
    with torch.inference_mode():
        first = say(golden_target, FIRST, golden_head)
    second = say(golden_target, then(first), golden_head, first.past_key_values)
    assert second.sequences.tolist() == plain[1].sequences.tolist()
    assert mean_acceptance(second) > 1.2


class Impatient(BaseStreamer):
    """Breaks the generation off after a number of tokens, as a server does whose user has left."""

    def __init__(self, patience: int) -> None:
        self.tokens: list[int] = []
        self.patience = patience

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()
        if len(self.tokens) > self.patience:
            raise KeyboardInterrupt

    def end(self) -> None:
        raise AssertionError("never gets there")


@pytest.mark.parametrize("patience", [13, 15, 16, 17, 18])
def test_a_turn_that_was_broken_off(golden_target, golden_head, patience: int) -> None:
    """The user's cache then holds no more than plain `generate`'s would, and not one rejected node."""
    caches = [DynamicCache(config=golden_target.config) for _ in range(2)]
    for cache, head in zip(caches, (None, golden_head), strict=True):
        streamer = Impatient(patience)
        with pytest.raises(KeyboardInterrupt):
            say(golden_target, FIRST, head, cache, streamer=streamer)
    plain, ours = caches
    assert ours.get_seq_length() <= plain.get_seq_length()
    ids = torch.cat((torch.tensor([streamer.tokens]), TURN), dim=1)
    out = say(golden_target, ids, golden_head, ours)
    assert out.sequences.tolist() == say(golden_target, ids).sequences.tolist()
    assert mean_acceptance(out) > 1.0


def test_cropped_cache(golden_target, golden_head) -> None:
    """The user takes part of the answer back: what the head remembers of it must go too."""
    first = say(golden_target, FIRST, golden_head)
    first.past_key_values.crop(20 - first.past_key_values.get_seq_length())
    assert first.past_key_values.get_seq_length() == 20
    ids = torch.cat((first.sequences[:, :20], TURN), dim=1)
    out = say(golden_target, ids, golden_head, first.past_key_values)
    assert out.sequences.tolist() == say(golden_target, ids).sequences.tolist()
    assert mean_acceptance(out) > 1.0


def test_cropped_and_written_over(golden_target, golden_head) -> None:
    """Cropped, then carried on by plain `generate` past the point that the head remembers."""
    first = say(golden_target, FIRST, golden_head)
    cache = first.past_key_values
    cache.crop(20 - cache.get_seq_length())
    second = say(golden_target, torch.cat((first.sequences[:, :20], TURN), dim=1), cache=cache)
    ids = then(second, prompt(5, seed=9, vocabulary=500))
    out = say(golden_target, ids, golden_head, cache)
    assert out.sequences.tolist() == say(golden_target, ids).sequences.tolist()
    assert mean_acceptance(out) > 1.0


def test_a_cache_that_another_head_has_used(golden_target, golden_head) -> None:
    first = say(golden_target, FIRST, golden_head)
    another = copy.deepcopy(golden_head)
    with torch.no_grad():
        another.fc.weight.mul_(1.1)
    out = say(golden_target, then(first), another, first.past_key_values)
    assert out.sequences.tolist() == say(golden_target, then(first)).sequences.tolist()
    assert mean_acceptance(out) > 1.0


def test_oracle_continues_on_every_kind_of_layer() -> None:
    """Mistral's sliding layers, within their window: they must have kept all that the next turn needs."""
    target = tiny_target("mistral")
    head = oracle(target)
    ids, ours, theirs = prompt(), None, None
    for number in range(3):
        plain = say(target, ids, cache=theirs)
        head.learn(plain.sequences)
        drafted = say(target, ids, head, ours)
        assert drafted.sequences.tolist() == plain.sequences.tolist()
        assert mean_acceptance(drafted) > 1.0
        ours, theirs = drafted.past_key_values, plain.past_key_values
        assert ours.get_seq_length() == theirs.get_seq_length()
        ids = then(drafted, prompt(4, seed=10 + number))
