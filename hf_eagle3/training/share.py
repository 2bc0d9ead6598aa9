"""A share of the training conversations: what a head learns from a part of the data is measured on.

Knows nothing of files or heads.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate


def nested_share(answer_tokens: Sequence[int], share: float, seed: int) -> list[int]:
    """The conversations of a part of the data, ascending.

    All shares of one seed are beginnings of one order that is drawn by it: so a smaller one lies within every larger
    one. Each ends where its answer tokens come nearest to `share` of all, and has one conversation at least.

    Args:
        answer_tokens: of each conversation.
        share: above 0 and up to 1.
    """
    if share >= 1 or not answer_tokens:
        return list(range(len(answer_tokens)))
    order = random.Random(f"{seed}/train share").sample(range(len(answer_tokens)), len(answer_tokens))
    sums = list(accumulate(answer_tokens[index] for index in order))
    wanted = share * sums[-1]
    kept = min(range(len(sums)), key=lambda last: abs(sums[last] - wanted)) + 1
    return sorted(order[:kept])
