"""Acceptance by position, from counts made by hand; and the parts of the time, which make up the whole."""

from __future__ import annotations

import pytest
import torch
from helpers.agreement import learn_text
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForCausalLM

from hf_eagle3.evaluation.acceptance_length import acceptance_on
from hf_eagle3.evaluation.positions import acceptance_rates
from hf_eagle3.evaluation.shares import measure_shares
from hf_eagle3.evaluation.timing import Settings


def test_rates_of_known_counts() -> None:
    """Accepted 2, 0, 3, 1 of three levels, and a last round that only shows what it emitted."""
    rates = acceptance_rates([[3, 1, 4, 2, 3]], depth=3, max_new_tokens=100)
    # Level 0: 2, 3, 1 and the last accepted, 0 not; level 1: 2, 3 and the last accepted, 1 not; level 2: 3, not 2.
    assert rates == pytest.approx([4 / 5, 3 / 4, 1 / 2])


def test_a_full_tree_says_nothing_of_the_next_level() -> None:
    assert acceptance_rates([[3, 3, 1, 1]], depth=2, max_new_tokens=100) == pytest.approx([2 / 3, 1.0])


def test_rounds_near_the_limit_are_asked_for_what_they_could_emit() -> None:
    """Seven tokens: after 1 + 3 there is room for two drafts and a bonus, after 6 for none."""
    assert acceptance_rates([[3, 2, 1]], depth=4, max_new_tokens=7) == pytest.approx([1.0, 0.5, 0.0])
    assert acceptance_rates([[3, 2, 1]], depth=4, max_new_tokens=100) == pytest.approx([1.0, 0.5, 0.0])
    assert acceptance_rates([[4, 1]], depth=4, max_new_tokens=5) == pytest.approx([1.0, 1.0, 1.0])


def test_no_round_no_rate() -> None:
    assert acceptance_rates([[], []], depth=3, max_new_tokens=10) == []


@given(st.lists(st.lists(st.integers(1, 6), max_size=8), max_size=5))
def test_rates_are_shares(answers: list[list[int]]) -> None:
    rates = acceptance_rates(answers, depth=5, max_new_tokens=1000)
    assert all(0 <= rate <= 1 for rate in rates)
    assert len(rates) <= 5


def test_shares_make_up_the_whole(pair_folders) -> None:
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    head = AutoModel.from_pretrained(pair_folders.head).eval()
    prompts = [{"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}]
    shares = measure_shares(target, head, prompts, Settings(max_new_tokens=12))
    parts = (shares.target, shares.draft, shares.rest)
    assert sum(parts) == pytest.approx(1)
    assert all(0 < part < 1 for part in parts)
    assert not target._forward_hooks
    assert not head._forward_hooks
    with pytest.raises(ValueError, match="no prompt"):
        measure_shares(target, head, [], Settings())


def test_acceptance_on_is_what_generate_says_and_disturbs_nothing() -> None:
    target = tiny_target()
    head, ids = oracle(target), prompt(6)
    learn_text(target, head, {"max_new_tokens": 24}, input_ids=ids)
    target.train()
    state = torch.get_rng_state()
    figures = acceptance_on(target, head, [{"input_ids": ids}] * 2, Settings(max_new_tokens=24))
    assert torch.equal(torch.get_rng_state(), state)
    assert target.training
    target.eval()
    out = target.generate(
        ids, assistant_model=head, max_new_tokens=24, do_sample=False, return_dict_in_generate=True
    )
    assert figures.lengths == out.acceptance_lengths[0] * 2
    assert figures.acceptance_length == sum(figures.lengths) / figures.rounds > 1.5
    assert figures.tokens == 48
    assert acceptance_on(target, head, []).acceptance_length == 1.0
