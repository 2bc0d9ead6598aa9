"""How often the draft at each position is accepted: the papers' 0-alpha, 1-alpha, ... from counts of accepted tokens.

`n`-alpha is the share of verifications that accept a draft at level `n + 1` among those that accepted one at each of
the `n` levels before. Of a chain (`tree_top_k=1`) these are the papers' figures; of a tree they are those of its
levels, any of whose nodes may be the accepted one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def acceptance_rates(answers: Iterable[Sequence[int]], depth: int, max_new_tokens: int) -> list[float]:
    """The rates of positions `0 .. depth - 1`, as far as any verification tells them.

    Args:
        answers: of each answer the tokens that its verifications gave, in order, bonus included.
        depth: levels of the draft trees; a verification that accepted all of them says nothing of the next.
        max_new_tokens: the length limit. Verifications near it are asked for the levels only that they could still
            emit, and the last one of an answer, which a stop may have cut short, for the levels that it did emit.
    """
    accepted, asked = [0] * depth, [0] * depth
    for lengths in answers:
        emitted = 1  # the prefill's token
        for number, length in enumerate(lengths):
            levels = min(depth, max_new_tokens - emitted - 1)
            taken = length - 1
            last = number == len(lengths) - 1
            for level in range(min(levels, taken if last else taken + 1)):
                asked[level] += 1
                accepted[level] += level < taken
            emitted += length
    known = next((level for level in range(depth) if not asked[level]), depth)
    return [accepted[level] / asked[level] for level in range(known)]
