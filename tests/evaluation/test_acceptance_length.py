"""Acceptance on held-out prompts: what `generate` itself says, and nothing disturbed."""

from __future__ import annotations

import pytest
import torch
from helpers.agreement import learn_text
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target

from hf_eagle3.evaluation.acceptance_length import AcceptanceFigures, acceptance_on
from hf_eagle3.evaluation.timing import Settings


@pytest.fixture
def pair():
    target = tiny_target()
    head, ids = oracle(target), prompt(6)
    learn_text(target, head, {"max_new_tokens": 24}, input_ids=ids)
    return target, head, ids


def test_figures_are_what_generate_says(pair) -> None:
    target, head, ids = pair
    figures = acceptance_on(target, head, [{"input_ids": ids}] * 2, Settings(max_new_tokens=24))
    out = target.generate(ids, assistant_model=head, max_new_tokens=24, do_sample=False, return_dict_in_generate=True)
    assert figures.lengths == out.acceptance_lengths[0] * 2
    assert figures.rounds == len(figures.lengths)
    assert figures.acceptance_length == sum(figures.lengths) / figures.rounds > 1.5
    assert figures.tokens == 48
    assert figures.acceptance_rates == [accepted / asked for accepted, asked in figures.counts]
    assert figures.counts[0][1] == figures.rounds
    assert all(0 <= rate <= 1 for rate in figures.acceptance_rates)
    assert figures.acceptance_rates[0] > 0.5


def test_nothing_is_disturbed(pair) -> None:
    target, head, ids = pair
    target.train()
    target.model.layers[2].eval()  # a part may be in another mode than the whole
    modes = [module.training for module in target.modules()]
    state = torch.get_rng_state()
    acceptance_on(target, head, [{"input_ids": ids}], Settings(max_new_tokens=8, temperature=1.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in target.modules()] == modes
    assert torch.is_grad_enabled()
    assert not target._forward_pre_hooks


def test_sampled_figures_repeat(pair) -> None:
    target, head, ids = pair

    def figures(seed: int) -> AcceptanceFigures:
        torch.rand(3)  # whatever the random state is
        settings = Settings(max_new_tokens=24, temperature=1.0, seed=seed)
        return acceptance_on(target, head, [{"input_ids": ids}], settings)

    assert figures(1) == figures(1)


def test_nothing_drafted_is_one_token_a_forward(pair) -> None:
    target, head, _ = pair
    nothing = acceptance_on(target, head, [])
    assert (nothing.acceptance_length, nothing.rounds, nothing.acceptance_rates) == (1.0, 0, [])
