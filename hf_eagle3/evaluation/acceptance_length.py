"""The acceptance length of a head on given prompts, measured by the decoder itself and not timed.

What a trainer asks now and then: it must leave random state, modes and gradients as it found them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .timing import Settings


@dataclass(frozen=True)
class AcceptanceFigures:
    """What decoding some prompts came to.

    Args:
        lengths: of each verification the tokens it gave, bonus included, answer after answer.
        tokens: the new tokens of all answers.
    """

    lengths: list[int] = field(default_factory=list)
    tokens: int = 0

    @property
    def rounds(self) -> int:
        """Verifications: target forwards over a draft tree."""
        return len(self.lengths)

    @property
    def acceptance_length(self) -> float:
        """Tokens per verification, bonus included (the papers' tau); 1.0 when nothing was verified."""
        return sum(self.lengths) / len(self.lengths) if self.lengths else 1.0


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
    tokens = 0
    with _undisturbed(model, head):
        for inputs in prompts:
            torch.manual_seed(settings.seed)
            out = model.generate(**inputs, **settings.keywords(), **settings.tree, assistant_model=head)
            lengths += out.acceptance_lengths[0]
            tokens += out.sequences.shape[1] - inputs["input_ids"].shape[1]
    return AcceptanceFigures(lengths, tokens)


@contextmanager
def _undisturbed(*models: Any) -> Iterator[None]:
    """Evaluation mode, no gradients, and a random state that is put back afterwards, on the models' devices too."""
    devices = {model.device.index or 0 for model in models if model.device.type == "cuda"}
    modes = [(module, module.training) for model in models for module in model.modules()]
    with torch.random.fork_rng(devices=sorted(devices)), torch.no_grad():
        for model in models:
            model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
