"""The loss of a rollout: soft cross-entropy against the target's distribution on the draft vocabulary.

A row whose full argmax lies outside the draft vocabulary is dropped: there the head cannot be right, and the
renormalised rest would teach it a token the target does not want.
"""

from __future__ import annotations

from typing import Any

import torch


class SoftCrossEntropy(torch.autograd.Function):
    """Mean over rows of `-sum_D p log softmax(logits)`, in few passes: its memory traffic is what costs on a CPU.

    `logits` and `probs` are `[rows, draft_vocab]`; `probs` sums to 1 and takes no gradient. Only the gradient is kept,
    in the dtype of `logits`.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        draft = logits.softmax(-1)  # float32 inside, whatever the dtype
        best = logits.argmax(-1, keepdim=True)
        normaliser = logits.gather(1, best).float() - draft.gather(1, best).float().log()
        agreement = torch.bmm(logits[:, None], probs[:, :, None])
        total = normaliser.sum() - agreement.float().sum()
        ctx.save_for_backward(draft.sub_(probs))
        return total / max(len(logits), 1)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (upstream / max(len(gradient), 1)).to(gradient.dtype), None


def soft_cross_entropy(logits: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Mean soft cross-entropy of `logits [rows, draft_vocab]` against `probs`; 0 for no rows."""
    loss: torch.Tensor = SoftCrossEntropy.apply(logits, probs.to(logits.dtype))
    return loss


def step_weights(steps: int, decay: float = 0.8) -> list[float]:
    """`decay ** i` for each step, normalised to sum 1: the number of steps must not change the learning rate."""
    weights = [decay**step for step in range(steps)]
    return [weight / sum(weights) for weight in weights]
