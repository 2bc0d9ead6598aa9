"""The draft vocabulary: which of the target's tokens a head can propose.

Ranked by the target's summed probability rather than by counts: on small data a count knows a few thousand tokens and
fills the rest at random, while probabilities tell the near misses apart.
"""

from __future__ import annotations

import torch


def choose_vocabulary(mass: torch.Tensor, size: int, always: list[int]) -> torch.Tensor:
    """The `size` target ids of the largest summed probability `mass [vocab]`, ascending int64, `always` among them.

    Raises:
        ValueError: if `size` is not between the number of `always` tokens and the target's vocabulary.
    """
    if not max(1, len(set(always))) <= size <= len(mass):
        raise ValueError(
            f"A draft vocabulary of {size} tokens was asked for: it must hold the {len(set(always))} stop tokens and "
            f"not be larger than the target's {len(mass)}; choose another --draft-vocab-size."
        )
    ranked = mass.clone()
    ranked[always] = float("inf")
    return ranked.topk(size).indices.sort().values


def coverage(mass: torch.Tensor, vocabulary: torch.Tensor) -> float:
    """The share of the probability `mass [vocab]` that falls on `vocabulary`; honest on text it was not chosen by."""
    return float(mass[vocabulary].sum(dtype=torch.float64) / mass.sum(dtype=torch.float64))
