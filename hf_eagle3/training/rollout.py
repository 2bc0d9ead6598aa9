"""Training-time test: the head's own drafting steps, unrolled over every supervised position at once.

Row `t` of step `i` is what inference meets when a chain that starts after position `t` reaches its level `i`: the
fused feature `f_t` at step 0 and the row's own previous output later, the embedding of data token `x_{t+1+i}`, RoPE
position `t + i`, the keys of step-0 rows `0..t` and the row's own keys of steps `1..i`. Its target is the target
model's distribution at position `t + 1 + i`. Gradients flow through everything (EAGLE-3, arXiv 2503.01840, section
3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..modeling_eagle3 import Eagle3DraftModel


def supervision(answers: torch.Tensor, steps: int) -> torch.Tensor:
    """V(t, i): bool `[steps, batch, tokens]` from the bool answer mask `[batch, tokens]`.

    Row `t` is supervised at step `i` when tokens `t+1 .. t+2+i` all are answer tokens of one turn: then the chain
    could have started there, and the token it predicts exists.
    """
    tokens = answers.shape[1]
    position = torch.arange(tokens, device=answers.device).expand_as(answers)
    # The next token from each position on that is no answer token, the end of the data at the latest.
    stop = position.masked_fill(answers, tokens).flip(-1).cummin(-1).values.flip(-1)
    run = (stop - position)[:, 1:]  # run[t]: consecutive answer tokens from t + 1 on
    run = torch.nn.functional.pad(run, (0, 1))
    wanted = torch.arange(2, 2 + steps, device=answers.device)
    return run[None] >= wanted[:, None, None]


def pack_rows(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the set entries of a bool `[batch, tokens]`, int64 `[batch, most]`, and which are no padding."""
    counts = mask.sum(-1)
    order = mask.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, : max(int(counts.max()), 1)]
    valid = torch.arange(order.shape[1], device=mask.device)[None] < counts[:, None]
    return order.masked_fill(~valid, 0), valid


def take(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`states [batch, tokens, width]` at `rows [batch, n]`, clipped to the last token."""
    index = rows.clamp(max=states.shape[1] - 1)[..., None].expand(-1, -1, states.shape[-1])
    return states.gather(1, index)


def rollout(
    head: Eagle3DraftModel,
    fused: torch.Tensor,
    embeddings: torch.Tensor,
    rows: torch.Tensor,
    steps: int,
    anchors: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the pre-norm states of steps `0 .. steps-1`, `[batch, rows, hidden]` each.

    Args:
        fused: `[batch, tokens, hidden]`, the fused features `f_t`.
        embeddings: `[batch, tokens, hidden]`, of the data tokens `x_t` themselves (the shift is made here).
        rows: int64 `[batch, n]`, the positions `t` to unroll; only step-0 keys are computed elsewhere.
        anchors: int64 `[batch, m]`, which of the `n` rows go on after step 0; all of them if not given.

    Scores are the causal step-0 product plus one diagonal for each later step: no `steps x tokens` mask is ever built.
    Raises `ValueError` for a head of several layers.
    """
    if len(head.layers) != 1:
        raise ValueError(f"The head has {len(head.layers)} layers; this rollout unrolls heads of one layer only.")
    layer: Any = head.layers[0]
    attention = layer.self_attn
    every = torch.arange(fused.shape[1], device=fused.device).expand(fused.shape[:2])
    wide = torch.cat((layer.input_layernorm(take(embeddings, every + 1)), layer.hidden_norm(fused)), dim=-1)
    keys = _rotate(head, _heads(attention.k_proj(wide), attention.head_dim), every)
    values = _heads(attention.v_proj(wide), attention.head_dim)
    wide, hidden = take(wide, rows), take(fused, rows)
    own_keys: list[torch.Tensor] = []
    own_values: list[torch.Tensor] = []
    for step in range(steps):
        if step == 1 and anchors is not None:
            rows, hidden = rows.gather(1, anchors), take(hidden, anchors)
        if step > 0:
            embedded = layer.input_layernorm(take(embeddings, rows + 1 + step))
            wide = torch.cat((embedded, layer.hidden_norm(hidden)), dim=-1)
            own_keys.append(_rotate(head, _heads(attention.k_proj(wide), attention.head_dim), rows + step))
            own_values.append(_heads(attention.v_proj(wide), attention.head_dim))
        queries = _rotate(head, _heads(attention.q_proj(wide), attention.head_dim), rows + step)
        mixed = attend(queries, keys, values, rows, own_keys, own_values, attention.scaling)
        hidden = hidden + attention.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        yield hidden


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: torch.Tensor,
    own_keys: list[torch.Tensor],
    own_values: list[torch.Tensor],
    scaling: float,
) -> torch.Tensor:
    """Attention of `queries [batch, heads, n, dim]` over step-0 keys `[batch, kv_heads, tokens, dim]` up to each row,
    and over each row's own later keys (`[batch, kv_heads, n, dim]` a step). Returns `[batch, n, heads * dim]`."""
    batch, heads, count, dim = queries.shape
    kv_heads, tokens = keys.shape[1:3]
    grouped = (queries * scaling).reshape(batch, kv_heads, -1, count, dim)
    folded = grouped.reshape(batch, kv_heads, -1, dim)  # query groups side by side: no key is repeated
    scores = (folded @ keys.transpose(-1, -2)).view(batch, kv_heads, -1, count, tokens).float()
    hidden_keys = torch.arange(tokens, device=rows.device) > rows[:, None, None, :, None]
    scores = scores.masked_fill(hidden_keys, float("-inf"))
    diagonals = [(grouped * key[:, :, None]).sum(-1, keepdim=True).float() for key in own_keys]
    weights = torch.cat([scores, *diagonals], dim=-1).softmax(-1).to(values.dtype)
    mixed = (weights[..., :tokens].reshape(batch, kv_heads, -1, tokens) @ values).view_as(grouped)
    for step, value in enumerate(own_values):
        mixed = mixed + weights[..., tokens + step, None] * value[:, :, None]
    return mixed.reshape(batch, heads, count, dim).transpose(1, 2).reshape(batch, count, heads * dim)


def _heads(projected: torch.Tensor, head_dim: int) -> torch.Tensor:
    return projected.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def _rotate(head: Eagle3DraftModel, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    cos, sin = head.rotary_emb(states, positions)
    rotated: torch.Tensor = apply_rotary_pos_emb(states, states, cos, sin)[0]
    return rotated
