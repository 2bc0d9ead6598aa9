"""The acceptance length of a head on given prompts, measured by the decoder itself and not timed.

What a trainer asks now and then: it must leave random state, modes and gradients as it found them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .positions import Rounds, acceptance_counts, acceptance_rates
from .timing import Settings, seen_forwards, tree_levels


@dataclass(frozen=True)
class AcceptanceFigures:
    """What decoding some prompts came to.

    Args:
        lengths: of each verification the tokens it gave, bonus included, answer after answer.
        tokens: the new tokens of all answers.
        counts: for each position the accepted drafts and the verifications that tell of it, see
            [`positions.acceptance_counts`]; to be added up where several processes share the prompts.
    """

    lengths: list[int] = field(default_factory=list)
    tokens: int = 0
    counts: list[tuple[int, int]] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Verifications: target forwards over a draft tree."""
        return len(self.lengths)

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification, bonus included (the papers' tau); 1.0 when nothing was verified."""
        return sum(self.lengths) / len(self.lengths) if self.lengths else 1.0

    @property
    def acceptance_rates(self) -> list[float]:
        """0-alpha, 1-alpha, ...: the share of drafts accepted at each position."""
        return acceptance_rates(self.counts)


def acceptance_on(
    model: Any, head: Any, prompts: Sequence[Mapping[str, Any]], settings: Settings | None = None
) -> AcceptanceFigures:
    """Decode every prompt with `generate(assistant_model=head)`.

    Args:
        model: the target.
        head: drafts for it.
        prompts: each the inputs of one `generate`, `input_ids` int64 `[1, length]` and what else it takes.
        settings: length, temperature, seed (set before each answer), tree; greedy and 128 tokens if not given.
    """
    settings = settings or Settings()
    lengths: list[int] = []
    answers: list[Rounds] = []
    with _undisturbed(model, head):
        for inputs in prompts:
            torch.manual_seed(settings.seed)
            with seen_forwards(model) as seen:
                out = model.generate(**inputs, **settings.keywords(), **settings.tree, assistant_model=head)
            own = out.acceptance_lengths[0]
            lengths += own
            new = out.sequences.shape[1] - inputs["input_ids"].shape[1]
            answers.append(Rounds(own, tree_levels(seen, len(own)), new))
    return AcceptanceFigures(lengths, sum(answer.tokens for answer in answers), acceptance_counts(answers))


@contextmanager
def _undisturbed(*models: Any) -> Iterator[None]:
    """Evaluation mode, no gradients, and random states that are put back afterwards.

    A seed is set on every GPU at once, so every GPU's state is kept, whichever the models are on.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    modes = [(module, module.training) for model in models for module in model.modules()]
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        for model in models:
            model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
