"""What is right: attention in float64, and how far an output may be from it."""

from __future__ import annotations

import torch

from .inputs import Inputs

# For the worst node. transformers' eager attention, which rounds the scores themselves, comes to a half of these, all
# else to a tenth; one key too many or too few in the tree makes 0.1 and more.
TOLERANCE = {torch.bfloat16: 4e-2, torch.float16: 8e-3, torch.float32: 1e-4}


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
    """The norm of the difference over that of the truth, of the worst node; infinite if anything is not finite.

    Raises:
        ValueError: if the shapes differ.
    """
    if output.shape != truth.shape:
        raise ValueError(f"An output of shape {tuple(output.shape)} came where {tuple(truth.shape)} is needed.")
    of_nodes = (output.double() - truth).norm(dim=(2, 3)) / truth.norm(dim=(2, 3))
    return float(of_nodes.nan_to_num(nan=torch.inf).max())
