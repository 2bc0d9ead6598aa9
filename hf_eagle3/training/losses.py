"""What a row of a rollout costs: sums over rows, so that the caller chooses the divisor.

All compare the draft's logits with the target's distribution over the draft vocabulary. EAGLE-3 trains on the soft
cross-entropy; `lk` is aimed at the acceptance itself (arXiv 2602.23881); regression is EAGLE-1's (arXiv 2401.15077).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LK_SHARPNESS = 3.0  # eta of the LK paper: how fast the acceptance term takes over from the divergence


class SoftCrossEntropy(torch.autograd.Function):
    """Sum over rows of `-sum_D p log softmax(logits)`, in few passes: its memory traffic is what costs on a CPU.

    `logits` and `probs` are `[rows, draft_vocab]`; `probs` sums to 1 and takes no gradient. Only the gradient is kept,
    in the dtype of `softmax` (that of `logits`; float32 under autocast on CUDA).
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        draft = logits.softmax(-1)  # float32 inside, whatever the dtype
        best = logits.argmax(-1, keepdim=True)
        normaliser = logits.gather(1, best).float() - draft.gather(1, best).float().log()
        agreement = torch.bmm(logits[:, None], probs[:, :, None])
        ctx.save_for_backward(draft.sub_(probs))
        return normaliser.sum() - agreement.float().sum()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None


def soft_cross_entropy(logits: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Summed soft cross-entropy of `logits [rows, draft_vocab]` against `probs`; 0, with its graph, for no rows."""
    if logits.dtype == torch.float64:  # the twin of the fast form, and exact: for oracles
        return -(probs * logits.log_softmax(-1)).sum()
    loss: torch.Tensor = SoftCrossEntropy.apply(logits, probs.to(logits.dtype))
    return loss


def kl_divergence(logits: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Summed KL(probs || draft): the soft cross-entropy less the target's entropy, with the very same gradient."""
    return soft_cross_entropy(logits, probs) - torch.special.entr(probs.float()).sum()


def lk_loss(logits: torch.Tensor, probs: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Summed LK-lambda loss: `w KL + (1 - w)(1 - acceptance)` with `w = exp(-3 acceptance)`, row by row.

    Args:
        inside: `[rows]`, the target's probability of the draft vocabulary as a whole. The acceptance `sum min(p, q)`
            is taken with `p = probs * inside`: renormalised, it would promise tokens that the head cannot propose.
    """
    log_draft = logits.float().log_softmax(-1)
    probs = probs.float()
    divergence = -(probs * log_draft).sum(-1) - torch.special.entr(probs).sum(-1)
    acceptance = torch.minimum(probs * inside[:, None].float(), log_draft.exp()).sum(-1)
    weight = torch.exp(-LK_SHARPNESS * acceptance.detach())
    return (weight * divergence + (1 - weight) * (1 - acceptance)).sum()


def regression(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Summed smooth L1 distance of `states [rows, hidden]` to `wanted`, each row's the mean over its hidden units."""
    each = nn.functional.smooth_l1_loss(states.float(), wanted.float(), reduction="none")
    return each.mean(-1).sum()


def step_weights(steps: int, decay: float = 0.8) -> list[float]:
    """`decay ** i` for each step, normalised to sum 1: the number of steps must not change the learning rate."""
    weights = [decay**step for step in range(steps)]
    return [weight / sum(weights) for weight in weights]
