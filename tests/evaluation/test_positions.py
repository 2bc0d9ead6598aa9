"""Acceptance by position: from counts made by hand, from all the ways an answer can go, and from real trees."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.agreement import learn_text
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target
from hypothesis import given
from hypothesis import strategies as st

from hf_eagle3.evaluation.positions import Rounds, acceptance_counts, acceptance_rates
from hf_eagle3.evaluation.timing import Settings, run_drafted
from hf_eagle3.generation import drafting_with


def whole(lengths: list[int], levels: list[int]) -> Rounds:
    """An answer that ends with its last verification's bonus token."""
    return Rounds(lengths, levels, 1 + sum(lengths))


def test_counts_of_known_rounds() -> None:
    """Accepted 2, 0, 3, 1 of three levels."""
    counts = acceptance_counts([whole([3, 1, 4, 2], [3] * 4)])
    assert counts == [(3, 4), (2, 3), (1, 2)]
    assert acceptance_rates(counts) == pytest.approx([3 / 4, 2 / 3, 1 / 2])


def test_a_tree_tells_of_no_level_that_it_does_not_have() -> None:
    assert acceptance_counts([whole([3, 3, 1], [2, 4, 1])]) == [(2, 3), (2, 2), (0, 1)]
    assert acceptance_counts([whole([1], [0])]) == []  # no room for any draft


def test_a_verification_that_was_cut_tells_of_what_was_emitted() -> None:
    """Three drafts accepted and a bonus, of which one, two or three tokens belong to the answer."""
    for emitted in (1, 2, 3):
        rounds = Rounds([2, 4], [5, 5], 1 + 2 + emitted)
        assert rounds.cut == 4 - emitted
        assert acceptance_counts([rounds]) == [(2, 2), (emitted > 1, 1 + (emitted > 1)), (1, 1)][: max(2, emitted)]


def test_no_round_no_rate() -> None:
    assert acceptance_counts([Rounds([], [], 1)]) == []


LEVELS = 3
SHARES = (0.5, 0.25, 0.75)  # what the target accepts of each level, had it the chance


@pytest.mark.parametrize("room", range(2, 8))
def test_the_length_limit_favours_no_outcome(room: int) -> None:
    """Over all the ways that answers of `room` tokens can go, weighed by their probability, the rates are exact."""
    accepted, asked = [0.0] * LEVELS, [0.0] * LEVELS

    def go_on(lengths: list[int], weight: float) -> None:
        if 1 + sum(lengths) >= room:
            for position, (hits, told) in enumerate(
                acceptance_counts([Rounds(lengths, [LEVELS] * len(lengths), room)])
            ):
                accepted[position] += weight * hits
                asked[position] += weight * told
            return
        for taken in range(LEVELS + 1):
            refused = 1 - SHARES[taken] if taken < LEVELS else 1.0
            go_on([*lengths, taken + 1], weight * math.prod(SHARES[:taken]) * refused)

    go_on([], 1.0)
    for position in range(LEVELS):
        assert asked[position] == 0 or accepted[position] / asked[position] == pytest.approx(SHARES[position])
    assert asked[0] > 0


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=8), min_size=1, max_size=5))
def test_rates_multiply_up_to_the_acceptance_length(answers: list[list[int]]) -> None:
    """Of uncut answers with trees of equal depth: tau = 1 + 0a + 0a 1a + 0a 1a 2a + ..."""
    rates = acceptance_rates(acceptance_counts([whole(lengths, [4] * len(lengths)) for lengths in answers]))
    lengths = [length for answer in answers for length in answer]
    expected = 1 + sum(math.prod(rates[: n + 1]) for n in range(len(rates)))
    assert sum(lengths) / len(lengths) == pytest.approx(expected)


@pytest.mark.parametrize("length", [20, 23])
def test_levels_are_those_of_the_trees_that_were_verified(length: int) -> None:
    """What the hook on the target saw is what the drafter drew, also where few nodes make trees of unequal depth."""
    target = tiny_target(max_position_embeddings=6 + length + 2)  # no room for whole trees at the end
    head, ids = oracle(target), prompt(6)
    learn_text(target, head, {"max_new_tokens": length - 12}, input_ids=ids)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    run = run_drafted(target, head, inputs, Settings(length, tree={"num_assistant_tokens": 6, "tree_depth": 4}))
    trees = []
    target.generate(
        ids, max_new_tokens=length, do_sample=False,
        custom_generate=drafting_with(
            head, num_assistant_tokens=6, tree_depth=4, on_round=lambda tree, path: trees.append((tree, path))
        ),
    )  # fmt: skip
    assert run.tree_levels == [int(tree.depths.max()) for tree, _ in trees]
    assert run.acceptance_lengths == [len(path) for _, path in trees]
    assert len(set(run.tree_levels)) > 1
    counts = acceptance_counts([run.rounds])
    assert counts[0][1] == sum(levels > 0 for levels in run.tree_levels[:-1]) + (run.tree_levels[-1] > 0)
