"""Which path of a draft tree the target accepts, as pure functions of scores.

Let p be the target's distribution at a node after the logits processors. The draft's children there are deterministic
given the context: point masses, whose own probability counts as q = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch


class Step(NamedTuple):
    """One token chosen at one node: the node, the token after it, and the child that holds it (`None`: the bonus)."""

    node: int
    token: int
    child: int | None


def walk(children: list[list[int]], tokens: list[int], choose: Callable[[int, list[int]], int]) -> Iterator[Step]:
    """Go down the tree from the root, choosing the target's token at each node, until no child holds it.

    Lazy on purpose: `choose` is called once per visited node, in order, after the caller has seen the tokens before
    it. So logits processors meet exactly the histories that plain `generate` would show them.

    Args:
        children: for each node its children, in the order of the draft's preference.
        tokens: each node's token.
        choose: from a node and the distinct tokens drafted after it, the token that the target takes.

    Yields:
        one [`Step`] per token: every accepted draft, then the bonus token.
    """
    node: int | None = 0
    while node is not None:
        by_token: dict[int, int] = {}
        for child in children[node]:
            by_token.setdefault(tokens[child], child)
        token = choose(node, list(by_token))
        step = Step(node, token, by_token.get(token))
        yield step
        node = step.child


def greedy(scores: torch.Tensor, drafted: list[int]) -> int:
    """The target's argmax, whatever was drafted."""
    return int(scores.argmax(-1))


def sample(
    scores: torch.Tensor, drafted: list[int], uniform: Callable[[], float] = lambda: float(torch.rand(()))
) -> int:
    """A token distributed exactly as `softmax(scores)`, that prefers to be a drafted one.

    The official rule (`evaluate_posterior`): take drafted token x with probability p(x); if it is rejected, set p(x)
    to 0, renormalise, try the next. Summed over the ways to reach a token this is p again, for any distinct tokens.

    Args:
        scores: float32 `[vocab]`, after the logits processors.
        drafted: distinct tokens, in the order of the draft's preference.
        uniform: draws from [0, 1); `torch.rand` by default, which follows the seed.
    """
    p = scores.softmax(-1, dtype=torch.float32)
    left = 1.0  # the mass that the rejections so far have left
    for token, mass in zip(drafted, p[drafted].tolist(), strict=True):
        # Strictly below: with a draw from [0, 1) a token of probability 0 is never taken, one of 1 always.
        if uniform() * left < mass:
            return token
        left -= mass
    p[drafted] = 0
    if not p.any():
        return drafted[-1]  # the drafted tokens held all the mass there is; only rounding kept it below 1
    return int(torch.multinomial(p, 1))  # which renormalises
