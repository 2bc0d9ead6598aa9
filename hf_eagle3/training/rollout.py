"""Training-time test: the head's own drafting steps, unrolled over every supervised position at once.

Row `t` of step `i` is what inference meets when a chain that starts after position `t` reaches its level `i`: the
fused feature `f_t` at step 0 and the row's own previous output later, the embedding of data token `x_{t+1+i}`, RoPE
position `t + i`, the keys of step-0 rows `0..t` and the row's own keys of steps `1..i`. Its target is the target
model's distribution at position `t + 1 + i`. Gradients flow through everything (EAGLE-3, arXiv 2503.01840, section
3.2). Knows nothing of losses, of files or of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..modeling_eagle3 import Eagle3DraftModel

# Queries whose scores are held at once: `[heads, QUERIES, tokens]` float32 is what attention costs in memory.
QUERIES = 512


@dataclass
class Sequences:
    """What a rollout reads: several conversations, one to a padded row of the batch or packed one after another.

    `fused [batch, tokens, hidden]` are the features `f_t`; `embeddings [batch, tokens, hidden]` those of the data
    tokens `x_t` themselves (the shift is made here); `positions` int64 `[batch, tokens]` count within a conversation;
    `documents` int `[batch, tokens]` tell conversations apart, -1 is padding.
    """

    fused: torch.Tensor
    embeddings: torch.Tensor
    positions: torch.Tensor
    documents: torch.Tensor


@dataclass
class _Memory:
    """Keys and values of a layer, `[batch, kv_heads, n, head_dim]`: step 0 of every token, later steps row by row."""

    keys: torch.Tensor
    values: torch.Tensor
    own_keys: list[torch.Tensor] = field(default_factory=list)
    own_values: list[torch.Tensor] = field(default_factory=list)


def supervision(answers: torch.Tensor, documents: torch.Tensor, steps: int) -> torch.Tensor:
    """V(t, i): bool `[steps, batch, tokens]` from the bool answer mask and the documents, both `[batch, tokens]`.

    Row `t` is supervised at step `i` when tokens `t+1 .. t+2+i` all are answer tokens of its own conversation with no
    gap: then a chain could have started there, and the token it predicts exists.
    """
    batch, tokens = answers.shape
    ends = torch.ones(batch, 1, dtype=torch.bool, device=answers.device)
    breaks = torch.cat((~answers[:, 1:] | (documents[:, 1:] != documents[:, :-1]), ends), dim=1)  # before t + 1
    position = torch.arange(tokens, device=answers.device).expand_as(answers)
    stop = position.masked_fill(~breaks, tokens).flip(-1).cummin(-1).values.flip(-1)
    wanted = torch.arange(2, 2 + steps, device=answers.device)
    return (stop - position)[None] >= wanted[:, None, None]


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
    sequences: Sequences,
    rows: torch.Tensor,
    steps: int,
    anchors: torch.Tensor | None = None,
    checkpointing: bool = False,
) -> Iterator[torch.Tensor]:
    """Yield the pre-norm states of steps `0 .. steps-1`, `[batch, rows, hidden]` each.

    Args:
        rows: int64 `[batch, n]`, ascending positions `t` to unroll; of other tokens only step-0 keys are computed
            (in a head of several layers: all of step 0 below the last layer).
        anchors: int64 `[batch, m]`, which of the `n` rows go on after step 0; all of them if not given.
        checkpointing: compute each step again in the backward pass instead of keeping its activations.

    Scores are the causal step-0 product plus one diagonal for each later step: no `tokens x (steps * tokens)` mask or
    score is ever built.
    """
    run: Callable[..., Any] = _checkpointed if checkpointing else _plainly
    hidden, memories = run(_first_step, head, sequences, rows)
    yield hidden
    if anchors is not None:
        rows, hidden = rows.gather(1, anchors), take(hidden, anchors)
    blocks = _blocks(rows)
    for step in range(1, steps):
        hidden = head.fed_back(hidden)
        embedded = take(sequences.embeddings, rows + 1 + step)
        at = sequences.positions.gather(1, rows) + step
        for layer, memory in zip(head.layers, memories, strict=True):
            before = _Memory(memory.keys, memory.values, [*memory.own_keys], [*memory.own_values])
            hidden, key, value = run(_later_step, head, layer, hidden, embedded, at, rows, blocks, sequences, before)
            memory.own_keys.append(key)
            memory.own_values.append(value)
        yield hidden


def _first_step(
    head: Eagle3DraftModel, sequences: Sequences, rows: torch.Tensor
) -> tuple[torch.Tensor, list[_Memory]]:
    """Step 0: keys of every token; states of `rows`, and below the last layer of every token."""
    hidden = sequences.fused
    every = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
    embedded = take(sequences.embeddings, every + 1)
    memories, layers = [], list[Any](head.layers)
    for layer in layers:
        wanted = rows if layer is layers[-1] else every
        attention, (read, residual) = layer.self_attn, layer.inputs(hidden, embedded)
        memory = _Memory(_rotate(head, attention.keys(read), sequences.positions), attention.values(read))
        if wanted is rows:
            read, residual = take(read, rows), take(residual, rows)
        queries = _rotate(head, attention.queries(read), sequences.positions.gather(1, wanted))
        mixed = attend(queries, memory, wanted, sequences.documents, _blocks(wanted), attention.scaling)
        hidden = layer.after_attention(residual, attention.o_proj(mixed))
        memories.append(memory)
    return hidden, memories


def _later_step(
    head: Eagle3DraftModel,
    layer: Any,
    hidden: torch.Tensor,
    embedded: torch.Tensor,
    at: torch.Tensor,
    rows: torch.Tensor,
    blocks: list[tuple[slice, int]],
    sequences: Sequences,
    memory: _Memory,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One layer of a step after the first: the rows' new states, and the key and value they add to `memory`."""
    attention, (read, residual) = layer.self_attn, layer.inputs(hidden, embedded)
    key, value = _rotate(head, attention.keys(read), at), attention.values(read)
    queries = _rotate(head, attention.queries(read), at)
    whole = _Memory(memory.keys, memory.values, [*memory.own_keys, key], [*memory.own_values, value])
    mixed = attend(queries, whole, rows, sequences.documents, blocks, attention.scaling)
    return layer.after_attention(residual, attention.o_proj(mixed)), key, value


def attend(
    queries: torch.Tensor,
    memory: _Memory,
    rows: torch.Tensor,
    documents: torch.Tensor,
    blocks: list[tuple[slice, int]],
    scaling: float,
) -> torch.Tensor:
    """Attention of `queries [batch, heads, n, dim]`, the ones of `rows`, over their conversation's step-0 keys up to
    themselves and over their own later keys. Returns `[batch, n, heads * dim]`.

    Long sequences go block by block, each computed again in the backward pass, so that memory grows with the tokens
    and not with their square.
    """
    run: Callable[..., Any] = _checkpointed if len(blocks) > 1 else _plainly
    parts = []
    for block, last in blocks:
        own_keys = [key[:, :, block] for key in memory.own_keys]
        own_values = [value[:, :, block] for value in memory.own_values]
        part = _Memory(memory.keys[:, :, :last], memory.values[:, :, :last], own_keys, own_values)
        parts.append(run(_attend_block, queries[:, :, block], part, rows[:, block], documents, scaling))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend_block(
    queries: torch.Tensor, memory: _Memory, rows: torch.Tensor, documents: torch.Tensor, scaling: float
) -> torch.Tensor:
    batch, heads, count, dim = queries.shape
    kv_heads, tokens = memory.keys.shape[1:3]
    grouped = (queries * scaling).reshape(batch, kv_heads, -1, count, dim)
    folded = grouped.reshape(batch, kv_heads, -1, dim)  # query groups side by side: no key is repeated
    scores = (folded @ memory.keys.transpose(-1, -2)).view(batch, kv_heads, -1, count, tokens).float()
    later = torch.arange(tokens, device=rows.device) > rows[..., None]
    elsewhere = documents[:, None, :tokens] != documents.gather(1, rows)[..., None]
    scores = scores.masked_fill((later | elsewhere)[:, None, None], float("-inf"))
    diagonals = [(grouped * key[:, :, None]).sum(-1, keepdim=True).float() for key in memory.own_keys]
    weights = torch.cat([scores, *diagonals], dim=-1).softmax(-1).to(memory.values.dtype)
    mixed = (weights[..., :tokens].reshape(batch, kv_heads, -1, tokens) @ memory.values).view_as(grouped)
    for step, value in enumerate(memory.own_values):
        mixed = mixed + weights[..., tokens + step, None] * value[:, :, None]
    return mixed.reshape(batch, heads, count, dim).transpose(1, 2).reshape(batch, count, heads * dim)


def _blocks(rows: torch.Tensor) -> list[tuple[slice, int]]:
    """`rows` in pieces of `QUERIES`, each with the number of step-0 keys that it can see."""
    pieces = [slice(start, start + QUERIES) for start in range(0, rows.shape[1], QUERIES)]
    return [(piece, int(rows[:, piece].max()) + 1) for piece in pieces]


def _plainly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _checkpointed(function: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)


def _rotate(head: Eagle3DraftModel, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    cos, sin = head.rotary_emb(states, positions)
    nothing = states[:, :0]  # the function rotates queries and keys together
    rotated: torch.Tensor = apply_rotary_pos_emb(states, nothing, cos, sin)[0]
    return rotated
