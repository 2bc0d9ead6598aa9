"""Rehearsed acceptance lengths are those of decoding."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from hf_eagle3.evaluation.rehearsal import Round, accepted_drafts, kept_nodes, mean_length, rehearse, together
from hf_eagle3.evaluation.timing import WHOLE_DISTRIBUTION, Settings, run_drafted, run_plain
from hf_eagle3.tree import DraftTree, TreeShape

SHAPES = [
    TreeShape(1, 1, 1), TreeShape(3, 3, 1), TreeShape(4, 1, 16), TreeShape(16, 2, 16), TreeShape(40, 3, 16),
    TreeShape(12, 4, 8), TreeShape(30, 2, 8), TreeShape(600, 3, 16),
    TreeShape(20, 4, 16, 0.25), TreeShape(20, 4, 8, 0.12),
]  # fmt: skip


@pytest.fixture(scope="module")
def pair(pair_folders) -> tuple[Any, Any]:
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    target.generation_config.eos_token_id = None
    return target, AutoModel.from_pretrained(pair_folders.head).eval()


@pytest.mark.parametrize("seed", [2, 4])  # answers on which these random weights accept two drafts now and then
def test_every_shape_accepts_what_it_accepts_when_decoding(pair, seed: int) -> None:
    ids = torch.randint(4, 64, (1, 6), generator=torch.Generator().manual_seed(seed))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    answer = run_plain(pair[0], inputs, Settings(max_new_tokens=40)).tokens
    rehearsed = rehearse(*pair, ids, answer, SHAPES)
    assert set(rehearsed) == set(SHAPES)
    longest = 0
    for shape in SHAPES:
        run = run_drafted(*pair, inputs, Settings(max_new_tokens=40, tree=vars(shape)))
        assert run.tokens == answer
        lengths = [one.length for one in rehearsed[shape]]
        assert lengths[:-1] == run.acceptance_lengths[:-1]  # the end may cut the last one
        assert len(rehearsed[shape]) == len(run.acceptance_lengths)
        longest = max(longest, *run.acceptance_lengths)
    assert longest > 2


def test_sampled_answers_take_as_many_rounds_rehearsed_as_decoded(pair) -> None:
    """In distribution: other draws decide, so the means over many seeds are compared, four standard errors apart."""
    ids = torch.tensor([[4, 9, 17, 30, 5, 12]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    shape, number, length = TreeShape(40, 3, 16), 100, 16

    def asked(seed: int) -> Settings:
        return Settings(length, 1.0, seed, vars(shape), WHOLE_DISTRIBUTION)

    decoded = [len(run_drafted(*pair, inputs, asked(seed)).acceptance_lengths) for seed in range(number)]
    answers = [run_plain(pair[0], inputs, asked(seed)).tokens for seed in range(number, 2 * number)]
    rehearsed = [len(rehearse(*pair, ids, answer, [shape])[shape]) for answer in answers]
    error = math.sqrt((statistics.variance(decoded) + statistics.variance(rehearsed)) / number)
    assert abs(statistics.mean(decoded) - statistics.mean(rehearsed)) < 4 * error
    assert statistics.mean(rehearsed) + 4 * error < length - 1, "hardly a draft was taken, which tells nothing"


def test_the_best_nodes_of_a_tree_are_the_smaller_tree() -> None:
    #       root 0 -> 1 (5), 2 (6); 1 -> 3 (7), 4 (8); 3 -> 5 (9); 2 -> 6 (7)
    tree = DraftTree(
        torch.tensor([[4, 5, 6, 7, 8, 9, 7]]),
        torch.tensor([[-1, 0, 0, 1, 1, 3, 2]]),
        torch.tensor([[0.0, -1.0, -2.0, -1.5, -2.5, -2.0, -4.0]]),
    )

    def accepted(following: list[int], *sizes: int) -> int:
        return accepted_drafts(tree, kept_nodes(tree, TreeShape(*sizes))[0], following)

    assert accepted([5, 7, 9, 1], 9, 9, 2) == 3
    assert accepted([5, 7, 9, 1], 9, 2, 2) == 2
    assert accepted([5, 7, 9], 3, 9, 2) == 2  # of the two at -2.0 the older node is kept
    assert accepted([5, 7, 9], 4, 9, 2) == 3
    assert accepted([6, 7], 3, 9, 2) == 1
    assert accepted([6, 7], 9, 9, 2) == 2
    assert accepted([1], 9, 9, 2) == accepted([], 9, 9, 2) == 0


def test_levels_end_where_little_probability_is_left() -> None:
    #       root 0 -> 1 (.6), 2 (.3); 1 -> 3 (.5), 4 (.1); 3 -> 5 (.4); of level 2 the two nodes hold .6, of level 1 .9
    tree = DraftTree(
        torch.tensor([[4, 5, 6, 7, 8, 9]]),
        torch.tensor([[-1, 0, 0, 1, 1, 3]]),
        torch.tensor([[1.0, 0.6, 0.3, 0.5, 0.1, 0.4]]).log(),
    )
    for threshold, levels, kept in [(0.0, 3, 5), (0.59, 3, 5), (0.61, 2, 4), (0.89, 2, 4), (0.91, 1, 2), (1.0, 1, 2)]:
        nodes, drafted = kept_nodes(tree, TreeShape(9, 3, 2, threshold))
        assert (drafted, len(nodes)) == (levels, kept)


def test_a_shape_that_is_given_twice_counts_once(pair) -> None:
    ids, answer = torch.tensor([[1, 7]]), [9, 5, 8, 4]
    assert rehearse(*pair, ids, answer, [*SHAPES[:2], SHAPES[0]]) == rehearse(*pair, ids, answer, SHAPES[:2])


def test_an_answer_of_one_token_takes_no_round(pair) -> None:
    rehearsed = rehearse(*pair, torch.tensor([[1, 7]]), [9], SHAPES[:2])
    assert rehearsed == {SHAPES[0]: [], SHAPES[1]: []}
    assert mean_length(together([rehearsed])[SHAPES[0]]) == 1.0


def test_the_mean_is_over_all_rounds() -> None:
    one, two = SHAPES[:2]
    first = {one: [Round(1, 5, 2), Round(3, 5, 2)], two: [Round(1, 9, 3)]}
    second = {one: [Round(2, 5, 2)], two: [Round(4, 9, 3), Round(4, 9, 3)]}
    assert {shape: mean_length(rounds) for shape, rounds in together([first, second]).items()} == {one: 2.0, two: 3.0}
