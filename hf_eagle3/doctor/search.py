"""Which reading of a head is the best: each alternative measured on the same passages, the clear winner adopted, and
all the others measured again on top of it, until nothing wins clearly. Two faults at once are found in two rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from ..configuration_eagle3 import Eagle3Config
from ..head_files import Tensors
from .alternatives import Change, Reading, changed
from .chain import ChainScore, acceptance_length, score_chains, worst_fit
from .findings import Trial
from .subject import assemble
from .teacher import Passage

CHAIN_DEPTH = 4
# A reading is clearly better when its fit (`chain.ChainScore`) is, by so many nats for each drafted token and by so
# many of its own standard errors (of the differences, stretch by stretch). Noise alone exceeds three of them once in
# seven hundred comparisons.
SMALLEST_GAIN = 0.005
STANDARD_ERRORS = 3.0
MOST_ROUNDS = 4
# A reading that is clearly worse by so many nats on the first passages is not measured on the others.
HOPELESS = 0.5


@dataclass(frozen=True)
class Measured:
    """What the passages came to under one reading; without scores where it cannot run, and `problem` says why."""

    scores: list[ChainScore] = field(default_factory=list)
    problem: str = ""

    @property
    def positions(self) -> int:
        return sum(len(score.fit) for score in self.scores)

    @property
    def fits(self) -> torch.Tensor:
        """Mean fit of each stretch of the answers, float `[stretches]`."""
        return torch.cat([score.fits for score in self.scores])

    @property
    def acceptance_length(self) -> float:
        """1.0, as if nothing were ever accepted, where the reading cannot run."""
        return acceptance_length(self.scores)

    @property
    def finite(self) -> bool:
        return all(score.finite for score in self.scores)


class Search:
    """
    Measures readings of one head.

    Args:
        config, tensors: of the head as it is; the tensors where and in which dtype it is to run.
        target: gives embeddings where the head has none.
        passages: hold every boundary that an alternative wants.
        choices: the alternatives.
    """

    def __init__(
        self,
        config: Eagle3Config,
        tensors: Tensors,
        target: PreTrainedModel,
        passages: Sequence[Passage],
        choices: Sequence[Change],
    ) -> None:
        self._config = config
        self._tensors = tensors
        self._target = target
        self._passages = passages
        self._choices = choices
        self.rounds: list[list[Trial]] = []

    def run(self) -> tuple[Reading, Measured, Measured]:
        """The best reading (empty: the present one), and what the present one and the best one came to."""
        reading: Reading = {}
        present = best = self.measure(reading)
        for _ in range(MOST_ROUNDS):
            winner = self._round(reading, best)
            if winner is None:
                break
            change, best = winner
            reading = {**reading, change.kind: change}
        return reading, present, best

    def measure(self, reading: Reading, base: Measured | None = None) -> Measured:
        """Score the passages under a reading; the first few of them, where it is hopeless next to `base`."""
        scores: list[ChainScore] = []
        try:
            head = assemble(*changed(reading, self._config, self._tensors))
            for passage in self._passages:
                scores.append(score_chains(head, self._target, passage, CHAIN_DEPTH))
                if base is not None and self._hopeless(scores, base):
                    break
        except (ValueError, RuntimeError, KeyError, IndexError) as error:  # whatever a wrong head's sizes may raise
            return Measured(problem=str(error).strip().splitlines()[0])
        return Measured(scores)

    def _round(self, reading: Reading, base: Measured) -> tuple[Change, Measured] | None:
        """Try every change on top of `reading`, and give the one that wins clearly, if any does."""
        told = "as it is" if not reading else " + ".join(change.told for change in reading.values())
        trials = [Trial("", told, base.acceptance_length, problem=base.problem)]
        best: tuple[Trial, Change, Measured] | None = None
        for change in self._choices:
            if reading.get(change.kind) == change:
                continue
            measured = self.measure({**reading, change.kind: change}, base)
            trial = self._trial(change, measured, base)
            trials.append(trial)
            if trial.clear and (best is None or trial.gain > best[0].gain):
                best = trial, change, measured
        self.rounds.append(trials)
        return None if best is None else best[1:]

    def _trial(self, change: Change, measured: Measured, base: Measured) -> Trial:
        if not measured.scores:
            return Trial(change.kind, change.told, problem=measured.problem)
        gain, error = self._paired_gain(measured, base)
        clear = gain >= SMALLEST_GAIN and gain >= STANDARD_ERRORS * error
        same = Measured(base.scores[: len(measured.scores)]).acceptance_length  # the same prompts, if it was cut short
        length = measured.acceptance_length
        return Trial(change.kind, change.told, length, length - same, gain, error, clear)

    def _hopeless(self, scores: list[ChainScore], base: Measured) -> bool:
        gain, error = self._paired_gain(Measured(scores), base)
        return gain < -HOPELESS and gain < -STANDARD_ERRORS * error

    def _paired_gain(self, measured: Measured, base: Measured) -> tuple[float, float]:
        """Mean over the stretches of the difference in fit, and that mean's standard error."""
        own = measured.fits
        blind = torch.full_like(own, worst_fit(self._config.vocab_size))
        differences = own - (base.fits[: len(own)] if base.scores else blind)
        error = float(differences.std()) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
        return float(differences.mean()), error
