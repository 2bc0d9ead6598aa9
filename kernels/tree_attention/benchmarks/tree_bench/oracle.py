"""What is right: attention in float64, and how far an output may be from it."""

from __future__ import annotations

import torch

from .inputs import Inputs

# Root mean square of the difference over that of the truth. Rounding the weights to the dtype and summing in float32
# stays well under these; a mask that is wrong anywhere in the tree lands above 0.1.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def attend(inputs: Inputs, cache: int) -> torch.Tensor:
    """float64 `[batch, nodes, q_heads, head_dim]`, one key head at a time so that long contexts fit."""
    keys, values = inputs.caches[cache]
    rows = []
    for row in range(inputs.q.shape[0]):
        heads = []
        for head in range(keys.shape[1]):
            q = inputs.q[row, head * inputs.groups : (head + 1) * inputs.groups].double()
            scores = q @ keys[row, head].double().T * inputs.scale
            scores.masked_fill_(~inputs.visible[row], -torch.inf)
            heads.append(scores.softmax(-1) @ values[row, head].double())
        rows.append(torch.cat(heads).transpose(0, 1))
    return torch.stack(rows)


def relative_error(output: torch.Tensor, truth: torch.Tensor) -> float:
    """Root mean square of the difference over that of the truth; infinite if anything in `output` is not finite."""
    if output.shape != truth.shape:
        raise ValueError(f"An output of shape {tuple(output.shape)} came where {tuple(truth.shape)} is needed.")
    error = float((output.double() - truth).norm() / truth.norm())
    return error if error == error else float("inf")
