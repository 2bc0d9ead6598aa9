"""Where each token of an answer came from, worked out from the rounds that made it.

Knows trees and token ids; nothing of models, text or pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_eagle3.evaluation.positions import Rounds
from hf_eagle3.tree import DraftTree


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Args:
        id: the token.
        round: which round it came from; None for the first, which the forward over the prompt gives.
        depth: of the accepted draft; 0 where the target chose the token itself.
    """

    id: int
    round: int | None
    depth: int


@dataclass(frozen=True)
class Round:
    """One verification, of a tree with one row.

    Args:
        tree: what was drafted.
        path: the nodes that the target accepted, root first.
        tokens: what the round added to the answer; fewer than `path` has nodes where a stop or the limit cut it.
    """

    tree: DraftTree
    path: list[int]
    tokens: list[int]

    @property
    def bonus(self) -> int | None:
        """The token that the target chose after the path; None where the round was cut before it."""
        return self.tokens[len(self.path) - 1] if len(self.tokens) == len(self.path) else None

    @property
    def rejected(self) -> list[int]:
        """The tokens that had been drafted for the place of the bonus, likeliest first."""
        if self.bonus is None:
            return []
        scores, ids = self.tree.log_probs[0].tolist(), self.tree.tokens[0].tolist()
        nodes = sorted(self.tree.children(0)[self.path[-1]], key=lambda node: -scores[node])
        return [ids[node] for node in nodes]

    @property
    def levels(self) -> int:
        """Drafted levels of the tree."""
        return int(self.tree.depths.max())

    def origins(self, number: int) -> list[Token]:
        """Its tokens, if it is the round of this number: accepted drafts by depth, then the bonus."""
        drafts = len(self.path) - 1
        return [Token(id, number, place if place <= drafts else 0) for place, id in enumerate(self.tokens, start=1)]


@dataclass
class Trace:
    """A drafted answer as it grows: the decoder emits the tokens of a round one by one, then shows its tree."""

    first: int | None = None
    rounds: list[Round] = field(default_factory=list)
    _emitted: list[int] = field(default_factory=list)

    def emit(self, token: int) -> None:
        """One more token of the answer."""
        if self.first is None:
            self.first = token
        else:
            self._emitted.append(token)

    def close_round(self, tree: DraftTree, path: list[int]) -> None:
        """The round is over: what was emitted since the last one is its."""
        tree = DraftTree(tree.tokens.cpu(), tree.parents.cpu(), tree.log_probs.cpu())
        self.rounds.append(Round(tree, list(path), self._emitted))
        self._emitted = []

    @property
    def tokens(self) -> list[Token]:
        """Every token of the closed rounds, with where it came from."""
        first = [] if self.first is None else [Token(self.first, None, 0)]
        return first + [token for number, round in enumerate(self.rounds) for token in round.origins(number)]

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verification, bonus included, counted before a cut; None before the first."""
        return sum(len(round.path) for round in self.rounds) / len(self.rounds) if self.rounds else None

    @property
    def counted(self) -> Rounds:
        """The rounds as the count of acceptance by position wants them."""
        lengths = [len(round.path) for round in self.rounds]
        return Rounds(lengths, [round.levels for round in self.rounds], len(self.tokens))

    @property
    def longest(self) -> int | None:
        """The round that accepted most, the first of several."""
        numbers = range(len(self.rounds))
        return max(numbers, key=lambda number: len(self.rounds[number].tokens)) if self.rounds else None
