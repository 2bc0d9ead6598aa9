"""The loss of a rollout: soft cross-entropy against the target's distribution on the draft vocabulary.

A row whose full argmax lies outside the draft vocabulary is dropped: there the head cannot be right, and the
renormalised rest would teach it a token the target does not want.
"""

from __future__ import annotations

from typing import Any

import torch


class SoftCrossEntropy(torch.autograd.Function):
    """Mean over rows of `-sum_D p log softmax(logits)`, keeping only its gradient (in the dtype of `logits`).

    `logits [rows, draft_vocab]` and `probs [rows, draft_vocab]` (summing to 1, no gradient); works `chunk` rows at a
    time so that the float32 intermediates stay in cache.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, probs: torch.Tensor, chunk: int = 64) -> torch.Tensor:
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for start in range(0, len(logits), chunk):
            rows = slice(start, start + chunk)
            scores, wanted = logits[rows].float(), probs[rows].float()
            peak = scores.amax(-1, keepdim=True)
            agreement = (scores * wanted).sum(-1)
            odds = (scores - peak).exp_()
            norm = odds.sum(-1, keepdim=True)
            total += (norm.log() + peak).sum() - agreement.sum()
            gradient[rows] = odds.div_(norm).sub_(wanted)
        ctx.save_for_backward(gradient)
        return total / max(len(logits), 1)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return gradient * (upstream / max(len(gradient), 1)).to(gradient.dtype), None, None


def soft_cross_entropy(logits: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Mean soft cross-entropy of `logits [rows, draft_vocab]` against `probs`; 0 for no rows."""
    loss: torch.Tensor = SoftCrossEntropy.apply(logits, probs)
    return loss


def step_weights(steps: int, decay: float = 0.8) -> list[float]:
    """`decay ** i` for each step, normalised to sum 1 so that the number of steps does not change the learning rate."""
    weights = [decay**step for step in range(steps)]
    return [weight / sum(weights) for weight in weights]
