"""Training-time test in its plain form: the target's softmax over the whole vocabulary, one dense mask, every row.

What a straightforward trainer does, one unpadded conversation at a time: the trainer's speed is measured against it
(benchmarks/training.py). `plain_training` is the oracle; this form must meet it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

Conversation = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def dense_batch_loss(
    head: Any, embeddings: nn.Module, conversations: Sequence[Conversation], steps: int, decay: float = 0.8
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The weighted loss and each step's, over `(ids [T], answers [T], features [T, K*H], target logits [T, V])`.

    Each step's divisor is the number of rows that inference visits; a row whose best token is no draft token counts
    there and costs nothing.
    """
    sums = [head.fc.weight.new_zeros(()) for _ in range(steps)]
    counts = [0] * steps
    for ids, answers, features, logits in conversations:
        states = _states(head, embeddings, ids, features, steps)
        for step, hidden in enumerate(states):
            drafted = head.lm_head(head.norm(hidden)).log_softmax(-1)
            for t in range(len(ids) - 2 - step):
                if not bool(answers[t + 1 : t + 3 + step].all()):
                    continue
                counts[step] += 1
                wanted = logits[t + 1 + step].softmax(-1)
                if head.t2d[wanted.argmax()]:
                    wanted = wanted[head.t2d] / wanted[head.t2d].sum()
                    sums[step] = sums[step] - (wanted * drafted[t]).sum()
    each = [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
    weights = [decay**step for step in range(steps)]
    loss = sum((weight * step for weight, step in zip(weights, each, strict=True)), sums[0] * 0) / sum(weights)
    return loss, each


def _states(
    head: Any, embeddings: nn.Module, ids: torch.Tensor, features: torch.Tensor, steps: int
) -> list[torch.Tensor]:
    """Pre-norm states `[T, hidden]` of each step: every row, one dense `T x (steps * T)` mask, one list of keys."""
    layer, tokens = head.layers[0], len(ids)
    attention = layer.self_attn
    hidden = head.fc(features)
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    visible = [torch.ones(tokens, tokens, dtype=torch.bool).tril()]
    states = []
    for step in range(steps):
        following = embeddings(ids[(torch.arange(tokens) + 1 + step).clamp(max=tokens - 1)])
        read = torch.cat((layer.input_layernorm(following), layer.hidden_norm(hidden)), dim=-1)
        query, key, value = (
            getattr(attention, name)(read).view(tokens, -1, attention.head_dim).transpose(0, 1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        at = torch.arange(tokens) + step
        base = head.config.rope_parameters["rope_theta"]
        query, key = _turned(query, at, base), _turned(key, at, base)
        groups = query.shape[0] // key.shape[0]
        keys.append(key.repeat_interleave(groups, 0))
        values.append(value.repeat_interleave(groups, 0))
        if step > 0:
            visible.append(torch.eye(tokens, dtype=torch.bool))
        scores = (query @ torch.cat(keys, 1).transpose(1, 2) / attention.head_dim**0.5).float()
        weights = scores.masked_fill(~torch.cat(visible, 1), float("-inf")).softmax(-1).to(value.dtype)
        mixed = (weights @ torch.cat(values, 1)).transpose(0, 1).reshape(tokens, -1)
        hidden = hidden + attention.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        states.append(hidden)
    return states


def _turned(states: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary embedding of `[heads, T, dim]`: the two halves of a head turn by position over `base ** (2j / dim)`."""
    half = states.shape[-1] // 2
    speeds = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = (positions[:, None].double() * speeds).to(torch.float32)
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    one, other = states[..., :half], states[..., half:]
    return torch.cat((one * cos - other * sin, other * cos + one * sin), dim=-1)
