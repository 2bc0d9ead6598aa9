"""Each loss against its formula in float64, with its gradient; and the weights of the steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from hf_eagle3.training import losses

ROWS, VOCABULARY = 7, 19


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draft logits, a distribution over the draft vocabulary, and the share of the target's probability it has."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(ROWS, VOCABULARY, generator=generator)
    probs = (2 * torch.randn(ROWS, VOCABULARY, generator=generator)).softmax(-1)
    return logits, probs, torch.rand(ROWS, generator=generator)


def plain_soft_ce(logits: torch.Tensor, probs: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return -(probs * logits.log_softmax(-1)).sum()


def plain_kl(logits: torch.Tensor, probs: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return (probs * (probs.log() - logits.log_softmax(-1))).sum()


def plain_lk(logits: torch.Tensor, probs: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    total = logits.new_zeros(())
    for row in range(len(logits)):
        q = logits[row].softmax(-1)
        acceptance = torch.minimum(probs[row] * inside[row], q).sum()
        weight = torch.exp(-3.0 * acceptance).detach()
        total = total + weight * (probs[row] * (probs[row] / q).log()).sum() + (1 - weight) * (1 - acceptance)
    return total


FORMS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "soft_ce": (lambda logits, probs, inside: losses.soft_cross_entropy(logits, probs), plain_soft_ce),
    "kl": (lambda logits, probs, inside: losses.kl_divergence(logits, probs), plain_kl),
    "lk": (losses.lk_loss, plain_lk),
}


@pytest.mark.parametrize("name", FORMS)
def test_loss_and_gradient_are_the_formula(name: str, case: tuple[torch.Tensor, ...]) -> None:
    fast, plain = FORMS[name]
    logits, probs, inside = case
    one = logits.clone().requires_grad_()
    other = logits.double().requires_grad_()
    found, expected = fast(one, probs, inside), plain(other, probs.double(), inside.double())
    (2 * found).backward()
    (2 * expected).backward()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_no_rows_cost_nothing_and_keep_the_graph(name: str) -> None:
    """A batch without a supervised row must still give every parameter a gradient, or DDP waits for ever."""
    fast, _ = FORMS[name]
    weight = torch.ones(4, VOCABULARY, requires_grad=True)
    loss = fast(torch.zeros(0, 4) @ weight, torch.zeros(0, VOCABULARY), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_bfloat16_is_close_to_float32(case: tuple[torch.Tensor, ...]) -> None:
    logits, probs, _ = case
    half = logits.bfloat16().requires_grad_()
    loss = losses.soft_cross_entropy(half, probs)
    loss.backward()
    whole = half.detach().float().requires_grad_()
    expected = losses.soft_cross_entropy(whole, probs)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=0.05, rtol=1e-2)
    torch.testing.assert_close(half.grad.float(), whole.grad, atol=2e-2, rtol=2e-2)


def test_a_perfect_draft_has_no_divergence(case: tuple[torch.Tensor, ...]) -> None:
    _, probs, _ = case
    assert losses.kl_divergence(probs.log(), probs).abs() < 1e-4
    assert losses.lk_loss(probs.log(), probs, torch.ones(ROWS)).abs() < 1e-4


def test_regression_is_smooth_l1_summed_over_rows() -> None:
    states, wanted = torch.tensor([[0.0, 3.0], [1.0, 1.0]]), torch.tensor([[0.5, 0.0], [1.0, 1.0]])
    assert losses.regression(states, wanted).item() == pytest.approx((0.125 + 2.5) / 2)


@pytest.mark.parametrize(("steps", "decay"), [(1, 0.8), (4, 0.8), (7, 1.0)])
def test_step_weights(steps: int, decay: float) -> None:
    weights = losses.step_weights(steps, decay)
    assert sum(weights) == pytest.approx(1)
    for one, following in itertools.pairwise(weights):
        assert following == pytest.approx(decay * one)
