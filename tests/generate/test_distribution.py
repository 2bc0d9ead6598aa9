"""Sampling: the first three tokens are distributed as plain `generate` distributes them, by a chi-square test against
the exact joint distribution. Seeds are fixed: a correct program passes always, but for one chance in 1e4 taken once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.joint import WORDS, check_joint, small_target
from helpers.oracle import oracle
from helpers.targets import prompt
from transformers import LogitsProcessor, PreTrainedModel

from hf_eagle3 import EagleConfig, EagleDraftModel

STATIC = {"draft_tree": "mc_sim_7b_63"}


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    return small_target()


class FavourChange(LogitsProcessor):
    """A user's processor whose effect depends on the last two tokens."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, (input_ids[0, -1] + input_ids[0, -2]) % WORDS] += 1.5
        return scores


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8},
        {"temperature": 1.3, "top_k": 4, "top_p": 0.85},
        {"repetition_penalty": 2.5, "temperature": 1.5},
        {"logits_processor": [FavourChange()], "min_p": 0.05},
    ],
    ids=["temperature", "top_k and top_p", "repetition_penalty", "own processor"],
)
def test_joint_distribution(small, options: dict[str, Any]) -> None:
    check_joint(small, oracle(small, boundaries=()), options)


def test_joint_distribution_when_the_draft_is_the_likeliest_text(small) -> None:
    """Drafts of the greedy text, among others: likely tokens are proposed more often, and taken no more often."""
    head = oracle(small, boundaries=())
    for first in range(WORDS):
        text = torch.cat((prompt(4, vocabulary=WORDS), torch.tensor([[first]])), dim=1)
        head.learn(small.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=8))
    check_joint(small, head, {"temperature": 1.0})


DYNAMIC = {"num_assistant_tokens": 9, "tree_depth": 3, "tree_top_k": 3}
ENDING_EARLY = {**DYNAMIC, "assistant_confidence_threshold": 0.8}


@pytest.mark.parametrize("knobs", [DYNAMIC, ENDING_EARLY, STATIC], ids=str)
def test_joint_distribution_with_a_head_of_eagle1(small, knobs: dict[str, Any]) -> None:
    """Its drafts are settled by the text alone in all of its trees, so the same rule keeps the distribution."""
    torch.manual_seed(5)
    head = EagleDraftModel(EagleConfig.from_target(small.config, initializer_range=0.5)).eval()
    head.generation_config.update(**knobs)
    check_joint(small, head, {"temperature": 1.1, "top_p": 0.95}, samples=400)


# ---------------------------------------------------------------------- seeds


def drawn(target, head, seed: int, **options: Any) -> list[int]:
    torch.manual_seed(seed)
    return target.generate(
        prompt(), max_new_tokens=20, do_sample=True, temperature=3.0, assistant_model=head, **options
    )[0].tolist()


def test_a_seed_gives_one_text(target, head) -> None:
    first = drawn(target, head, 1)
    assert drawn(target, head, 1) == first
    assert drawn(target, head, 2) != first


def test_greedy_draws_nothing(target, head) -> None:
    before = torch.get_rng_state()
    target.generate(prompt(), max_new_tokens=10, assistant_model=head)
    assert torch.equal(torch.get_rng_state(), before)


def test_sampling_with_all_mass_on_one_token_is_greedy(target, head) -> None:
    head.learn(target.generate(prompt(), max_new_tokens=40))
    torch.manual_seed(0)
    out = target.generate(
        prompt(),
        max_new_tokens=24,
        do_sample=True,
        top_k=1,
        assistant_model=head,
        return_dict_in_generate=True,
    )
    assert out.sequences.tolist() == target.generate(prompt(), max_new_tokens=24).tolist()
    assert sum(out.acceptance_lengths[0]) / len(out.acceptance_lengths[0]) > 1.5
