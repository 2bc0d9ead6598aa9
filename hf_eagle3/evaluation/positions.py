"""How often the draft at each position is accepted: the papers' 0-alpha, 1-alpha, ... from counts of accepted tokens.

`n`-alpha is the share of verifications that accept a draft at level `n + 1` of the tree among those that accepted one
at each of the `n` levels before it, and whose tree had that level. Of a chain (`tree_top_k=1`) these are the papers'
figures; of a tree they are those of its levels, any of whose nodes may be the accepted one. A path that ends at a leaf
while other branches go deeper counts as refused there: the tree held no draft that the target would have taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rounds:
    """The verifications of one answer, in order.

    Args:
        lengths: of each the accepted drafts plus the bonus token, as the decoder counts them: to the end of the path,
            also where a stop or the length limit cut the answer before that.
        levels: of each the drafted levels of its tree.
        tokens: how many tokens the answer has, the prefill's one included.
    """

    lengths: Sequence[int]
    levels: Sequence[int]
    tokens: int

    @property
    def cut(self) -> int:
        """Tokens of the last verification that are not part of the answer."""
        return 1 + sum(self.lengths) - self.tokens if self.lengths else 0


def acceptance_counts(answers: Iterable[Rounds]) -> list[tuple[int, int]]:
    """For each position: drafts accepted there, and verifications that tell of it.

    A verification tells of position `n` if its tree has more than `n` levels and the first `n` drafts were accepted.
    One that was cut tells of the positions that are part of the answer, and there every draft was accepted; what the
    target would have said past the end is text that nobody asked for. Whether a position counts is settled before its
    draft is looked at, so that the rule favours neither outcome.
    """
    counts: list[tuple[int, int]] = []
    for answer in answers:
        last = len(answer.lengths) - 1
        for number, (length, levels) in enumerate(zip(answer.lengths, answer.levels, strict=True)):
            accepted = length - 1
            told = length - answer.cut if number == last and answer.cut else length
            for position in range(min(levels, told)):
                if position == len(counts):
                    counts.append((0, 0))
                hits, asked = counts[position]
                counts[position] = hits + (position < accepted), asked + 1
    return counts


def acceptance_rates(counts: Sequence[tuple[int, int]]) -> list[float]:
    """0-alpha, 1-alpha, ... from [`acceptance_counts`]."""
    return [accepted / asked for accepted, asked in counts]
