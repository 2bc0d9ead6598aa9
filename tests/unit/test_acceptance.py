"""The acceptance rules: sampling gives the target's distribution exactly, and a walk takes the target's tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_eagle3.acceptance import greedy, sample, walk

ALMOST_ONE = 1 - 2**-24  # the largest number that `torch.rand` can draw in float32


class Residual(Exception):
    """Raised in place of the last draw, with the distribution that would have been drawn from."""

    def __init__(self, p: torch.Tensor) -> None:
        self.p = p.double() / p.double().sum()


def draw_with(scores: torch.Tensor, drafted: list[int], uniforms: list[float]) -> int | torch.Tensor:
    """The token that `sample` takes with these uniforms, or the distribution of its last draw if it gets that far."""
    numbers = iter(uniforms)

    def stop(p: torch.Tensor, *args: object) -> torch.Tensor:
        raise Residual(p)

    with mock.patch("torch.multinomial", stop):
        try:
            return sample(scores.clone(), drafted, lambda: next(numbers))
        except Residual as residual:
            return residual.p


def threshold(accepts: Callable[[float], bool]) -> float:
    """The number in [0, 1] below which a uniform is accepted, to 2**-30."""
    low, high = 0.0, 1.0
    if not accepts(0.0):
        return 0.0
    if accepts(ALMOST_ONE):
        return 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return low


def exact_law(scores: torch.Tensor, drafted: list[int]) -> torch.Tensor:
    """Probability of each token under `sample`, found from outside by searching for the uniforms at which it turns."""
    law, left, rejections = torch.zeros(len(scores), dtype=torch.float64), 1.0, []
    for token in drafted:
        chance = threshold(lambda u, token=token: _took(draw_with(scores, drafted, [*rejections, u, *fillers]), token))
        law[token] += left * chance
        left *= 1 - chance
        if left == 0:
            return law
        rejections.append(ALMOST_ONE)
    return law + left * draw_with(scores, drafted, rejections)


fillers = [ALMOST_ONE] * 8


def _took(result: int | torch.Tensor, token: int) -> bool:
    return isinstance(result, int) and result == token


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, list[int]]:
    """Scores over a few tokens, some impossible, and some of the tokens drafted, impossible ones too."""
    size = draw(st.integers(2, 6))
    values = draw(st.lists(st.sampled_from([-torch.inf, -3.0, -1.0, 0.0, 0.5, 2.0]), min_size=size, max_size=size))
    if all(value == -torch.inf for value in values):
        values[draw(st.integers(0, size - 1))] = 0.0
    drafted = draw(st.permutations(range(size)))[: draw(st.integers(0, size))]
    return torch.tensor(values), list(drafted)


@settings(deadline=None, max_examples=80)
@given(cases())
def test_sampling_is_exact(case: tuple[torch.Tensor, list[int]]) -> None:
    scores, drafted = case
    torch.testing.assert_close(exact_law(scores, drafted), scores.double().softmax(-1), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(cases(), st.randoms(use_true_random=False))
def test_sampling_leaves_the_scores_alone(case: tuple[torch.Tensor, list[int]], dice) -> None:
    scores, drafted = case
    before = scores.clone()
    token = sample(scores, drafted, dice.random)
    assert torch.equal(scores, before)
    assert isinstance(token, int)
    assert scores[token] > -torch.inf


def test_an_impossible_draft_is_never_taken() -> None:
    scores = torch.tensor([-torch.inf, 0.0, 0.0])
    assert draw_with(scores, [0, 1], [0.0, 0.0]) == 1


def test_a_certain_draft_is_always_taken() -> None:
    scores = torch.tensor([-torch.inf, 5.0, -torch.inf])
    assert draw_with(scores, [1], [ALMOST_ONE]) == 1
    assert draw_with(scores, [0, 2, 1], [0.0, 0.0, ALMOST_ONE]) == 1
    assert torch.equal(draw_with(scores, [0, 2], [0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]).double())


def test_nothing_drafted_is_an_ordinary_draw() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(draw_with(scores, [], []), scores.double().softmax(-1), rtol=1e-6, atol=1e-7)


def test_greedy_is_the_argmax_and_the_first_of_equals() -> None:
    assert greedy(torch.tensor([0.0, 3.0, 1.0]), [0]) == 1
    assert greedy(torch.tensor([2.0, 3.0, 3.0]), [2]) == int(torch.tensor([2.0, 3.0, 3.0]).argmax())


# ---------------------------------------------------------------------- walking


@st.composite
def drafted_trees(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Children lists and tokens of a tree; siblings may hold the same token."""
    nodes = draw(st.integers(1, 14))
    children: list[list[int]] = [[] for _ in range(nodes)]
    for node in range(1, nodes):
        children[draw(st.integers(0, node - 1))].append(node)
    return children, [draw(st.integers(0, 3)) for _ in range(nodes)]


@settings(deadline=None, max_examples=100)
@given(drafted_trees(), st.randoms(use_true_random=False))
def test_a_walk_takes_the_targets_tokens(tree: tuple[list[list[int]], list[int]], dice) -> None:
    """Against a target whose choice depends on everything before it."""
    children, tokens = tree
    seed = dice.random()
    history: list[int] = []
    asked: list[int] = []

    def choose(node: int, drafted: list[int]) -> int:
        assert len(drafted) == len(set(drafted))
        assert drafted == list(dict.fromkeys(tokens[child] for child in children[node]))
        asked.append(node)
        return hash((seed, *history)) % 4

    steps = []
    for step in walk(children, tokens, choose):
        assert step.node == asked[-1], "nothing is chosen before the token ahead of it has been given out"
        steps.append(step)
        history.append(step.token)
    assert [step.node for step in steps] == asked
    assert steps[0].node == 0
    for step, after in pairwise(steps):
        assert after.node == step.child
        assert step.child in children[step.node]
        assert tokens[step.child] == step.token
    last = steps[-1]
    assert last.child is None
    assert last.token not in [tokens[child] for child in children[last.node]], "the walk goes as far as it can"


def test_a_walk_can_be_left_early() -> None:
    """A caller that stops asks nothing more of the target."""
    asked: list[int] = []

    def choose(node: int, drafted: list[int]) -> int:
        asked.append(node)
        return drafted[0] if drafted else 9

    steps = walk([[1], [2], []], [5, 6, 7], choose)
    assert next(steps).token == 6
    assert asked == [0]


@pytest.mark.parametrize("order", [[1, 2], [2, 1]])
def test_the_drafts_preference_is_the_childrens_order(order: list[int]) -> None:
    seen: list[list[int]] = []
    steps = list(walk([order, [], []], [0, 11, 22], lambda node, drafted: seen.append(drafted) or 99))
    assert seen == [[11 * node for node in order]]
    assert [(step.node, step.token, step.child) for step in steps] == [(0, 99, None)]
