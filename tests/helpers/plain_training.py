"""The loss of EAGLE-3's training-time test, written out row by row: slow, and meant to be checked by reading.

Tokens `x_0 .. x_(T-1)`; `f_t = fc(features_t)`, or `features_t` in a head that has no `fc` and reads the target's last
hidden state; `P_j` the target's distribution at position `j`, which is about `x_(j+1)`. The state of row `t` at step
`i` is what a draft chain holds that began behind row `t` and has gone on for `i` more tokens, had it drafted the
conversation's own tokens:

- it reads `f_t` at step 0, later the same row's state of the step before, as it was before the final norm (in a head
  with `norm_output`: after it);
- beside the embedding of `x_(t+1+i)`, at RoPE position `t+i`; a key keeps the position it was made at;
- it sees the step-0 keys of rows `0 .. t` (what the target has confirmed) and its own row's keys of steps `1 .. i`
  (what the chain has drafted), never another chain's;
- it is compared with `P_(t+1+i)`, that is with the choice of `x_(t+2+i)`;
- gradients reach every earlier step through states, keys and values.

Drafting begins once an answer's first token is known and ends with the answer's last. So a state is supervised if all
of `x_(t+1) .. x_(t+2+i)`, the tokens its chain has read and the one it predicts, are answer tokens without a gap.

Worked example: a prompt `x_0 x_1`, answered by `x_2 x_3 x_4 x_5`, of which `x_5` ends the answer; three steps. `S1:2`
is the key that row 2 made at step 1. States that would read a token behind the last do not exist and are not listed.

    step  row  reads  RoPE  sees                target     supervised
    0     0    x1     0     S0:0                P1 -> x2   no: x1 is prompt, the answer has not begun
    0     1    x2     1     S0:0-1              P2 -> x3   yes
    0     2    x3     2     S0:0-2              P3 -> x4   yes
    0     3    x4     3     S0:0-3              P4 -> x5   yes
    0     4    x5     4     S0:0-4              P5 -> x6   no: nothing follows the answer's end
    1     0    x2     1     S0:0    S1:0        P2 -> x3   no: the chain began at x1
    1     1    x3     2     S0:0-1  S1:1        P3 -> x4   yes
    1     2    x4     3     S0:0-2  S1:2        P4 -> x5   yes
    1     3    x5     4     S0:0-3  S1:3        P5 -> x6   no: past the end
    2     0    x3     2     S0:0    S1-2:0      P3 -> x4   no: the chain began at x1
    2     1    x4     3     S0:0-1  S1-2:1      P4 -> x5   yes
    2     2    x5     4     S0:0-2  S1-2:2      P5 -> x6   no: past the end

EAGLE-1's other loss, a regression, compares the state after the final norm with the target's last hidden state at the
position that the state's distribution is compared with, `t+1+i`.

Knows nothing of batches, padding, packing, masks or kernels, and reads of a head no more than its weights and which of
its states it feeds back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_eagle3.modeling_eagle3 import Eagle3Attention, Eagle3DecoderLayer, Eagle3DraftModel

# One conversation of `T` tokens: ids `[T]` int64; answers `[T]` bool, true at an answer's tokens, its end among them;
# features `[T, boundaries * target_hidden]`; target_logits `[T, vocab]` over the full vocabulary.
Conversation = tuple[Tensor, Tensor, Tensor, Tensor]

# What one layer keeps: by (step, row) the key, already rotated, and the value, each `[kv_heads, head_dim]`.
Memory = dict[tuple[int, int], tuple[Tensor, Tensor]]


# ---------------------------------------------------------------------- the loss


def plain_batch_loss(
    head: Eagle3DraftModel,
    embeddings: nn.Embedding,
    conversations: list[Conversation],
    steps: int,
    decay: float = 0.8,
) -> tuple[Tensor, list[Tensor]]:
    """The loss over all conversations together, and that of each step.

    A step's loss is the mean of [`row_cost`] over its supervised rows, whichever conversation they are in, and 0 where
    there are none. The whole is their mean, step `i` weighted by `decay ** i`.

    Args:
        head: the draft head; only its weights and its map of the draft vocabulary are read.
        embeddings: the target's, token ids to `[..., hidden]`.
        conversations: each `(ids, answers, features, target_logits)`, of the shapes of [`Conversation`].
        steps: how many steps the training-time test has, at least 1.
        decay: weight of a step relative to the one before.

    Returns:
        The loss, a scalar, and `steps` scalars.
    """
    kept_ids = draft_vocabulary(head)
    costs: list[list[Tensor]] = [[] for _ in range(steps)]
    for ids, answers, features, target_logits in conversations:
        visited = supervised(answers, steps)
        for step, draft_logits in enumerate(plain_step_logits(head, embeddings, ids, features, steps)):
            for row, row_logits in enumerate(draft_logits):
                if visited[step, row]:
                    costs[step].append(row_cost(row_logits, target_logits[row + 1 + step], kept_ids))
    return weighted(costs, decay)


def plain_regression(
    head: Eagle3DraftModel,
    embeddings: nn.Embedding,
    conversations: list[Conversation],
    last_hidden: list[Tensor],
    steps: int,
    decay: float = 0.8,
) -> tuple[Tensor, list[Tensor]]:
    """As [`plain_batch_loss`], of EAGLE-1's regression: the cost of a row is the smooth L1 distance, averaged over the
    hidden units, of its normed state to the target's last hidden state (`last_hidden`, `[T, hidden]` for each
    conversation), whatever the target's first choice there."""
    costs: list[list[Tensor]] = [[] for _ in range(steps)]
    for (ids, answers, features, _), wanted in zip(conversations, last_hidden, strict=True):
        visited = supervised(answers, steps)
        for step, normed in enumerate(plain_step_states(head, embeddings, ids, features, steps)):
            for row, state in enumerate(normed):
                if visited[step, row]:
                    apart = (state - wanted[row + 1 + step]).abs()
                    costs[step].append(torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean())
    return weighted(costs, decay)


def weighted(costs: list[list[Tensor]], decay: float) -> tuple[Tensor, list[Tensor]]:
    """Of each step's costs the mean, 0 of none, and of these the mean that weighs step `i` by `decay ** i`."""
    nothing = next(cost for rows in costs for cost in rows).new_zeros(())
    step_losses = [torch.stack(rows).mean() if rows else nothing for rows in costs]
    weights = torch.tensor([decay**step for step in range(len(costs))], dtype=torch.float64).to(nothing)
    return (weights / weights.sum()) @ torch.stack(step_losses), step_losses


def supervised(answers: Tensor, steps: int) -> Tensor:
    """Which states drafting visits, bool `[steps, T]`: at `[i, t]`, whether all of `x_(t+1) .. x_(t+2+i)` exist and
    are answer tokens by `answers` (bool `[T]`)."""
    flags = [bool(flag) for flag in answers]
    visited = torch.zeros(steps, len(flags), dtype=torch.bool)
    for step in range(steps):
        for row in range(len(flags)):
            first, predicted = row + 1, row + 2 + step
            visited[step, row] = predicted < len(flags) and all(flags[first : predicted + 1])
    return visited


def row_cost(draft_logits: Tensor, target_logits: Tensor, kept_ids: Tensor) -> Tensor:
    """Soft cross-entropy of one row, a scalar: the draft's `[draft_vocab]` logits against the target's `[vocab]`, of
    which the softmax is restricted to `kept_ids` (`[draft_vocab]`) and renormalised. 0 where the target's first choice
    is not among them."""
    if target_logits.argmax() not in kept_ids:
        return draft_logits.new_zeros(())
    probabilities = target_logits.to(draft_logits.dtype).softmax(dim=-1)[kept_ids]
    probabilities = probabilities / probabilities.sum()
    return -(probabilities * draft_logits.log_softmax(dim=-1)).sum()


def draft_vocabulary(head: Eagle3DraftModel) -> Tensor:
    """The target id of every draft id, int64 `[draft_vocab]`: `d2t` holds what to add to a draft id."""
    return torch.arange(len(head.d2t), device=head.d2t.device) + head.d2t


# ---------------------------------------------------------------------- the steps


def plain_step_logits(
    head: Eagle3DraftModel, embeddings: nn.Embedding, ids: Tensor, features: Tensor, steps: int
) -> list[Tensor]:
    """The draft's logits at every state that exists: for step `i` a tensor `[T-1-i, draft_vocab]`, whose row `t` is
    about `x_(t+2+i)`. A step that has no rows left gives a tensor without rows.

    Args:
        ids: int64 `[T]`.
        features: `[T, boundaries * target_hidden]`.
    """
    return [head.lm_head(states) for states in plain_step_states(head, embeddings, ids, features, steps)]


def plain_step_states(
    head: Eagle3DraftModel, embeddings: nn.Embedding, ids: Tensor, features: Tensor, steps: int
) -> list[Tensor]:
    """As [`plain_step_logits`], the states after the final norm, `[T-1-i, hidden]` for step `i`."""
    memories: list[Memory] = [{} for _ in head.layers]
    features = features.to(head.lm_head.weight.dtype)
    states = features if head.fc is None else head.fc(features)
    normed = []
    for step in range(steps):
        tokens = ids[1 + step :]
        # Row t of this step reads x_(t+1+step): the rows at the end, for which there is no such token, are over.
        states = run_layers(head, states[: len(tokens)], embeddings(tokens), step, memories)
        normed.append(head.norm(states))
        if head.config.norm_output:
            states = normed[-1]
    return normed


def run_layers(head: Eagle3DraftModel, states: Tensor, embedded: Tensor, step: int, memories: list[Memory]) -> Tensor:
    """One step of all rows through all layers: `states` and `embedded`, both `[rows, hidden]`, to the states before
    the final norm, `[rows, hidden]`. Each layer's memory gains the keys and values of this step."""
    if len(states) == 0:
        return states
    positions = torch.arange(len(states), device=states.device) + step
    cos, sin = (table[0] for table in head.rotary_emb(states, position_ids=positions[None]))
    for layer, memory in zip(head.layers, memories, strict=True):
        inputs = attention_inputs(layer, states, embedded.to(states.dtype))
        states = states + attention(layer.self_attn, inputs, cos, sin, step, memory)
        states = states + feed_forward(layer, layer.post_attention_layernorm(states))
    return states


def attention_inputs(layer: Eagle3DecoderLayer, states: Tensor, embedded: Tensor) -> Tensor:
    """What a layer's projections read: `[rows, 2 * hidden]`, embedding before state and each with its own norm, in the
    first layer; the normed state alone, `[rows, hidden]`, in the others."""
    if layer.hidden_norm is None:
        return layer.input_layernorm(states)
    return torch.cat((layer.input_layernorm(embedded), layer.hidden_norm(states)), dim=-1)


def feed_forward(layer: Eagle3DecoderLayer, inputs: Tensor) -> Tensor:
    """The gated feed-forward network, `[rows, hidden]` to `[rows, hidden]`."""
    mlp = layer.mlp
    return mlp.down_proj(mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs))


# ---------------------------------------------------------------------- attention


def visible_keys(row: int, step: int) -> list[tuple[int, int]]:
    """The keys that a row sees at a step, each as (step, row): the confirmed context, then its own chain."""
    context = [(0, earlier) for earlier in range(row + 1)]
    chain = [(drafted, row) for drafted in range(1, step + 1)]
    return context + chain


def attention(module: Eagle3Attention, inputs: Tensor, cos: Tensor, sin: Tensor, step: int, memory: Memory) -> Tensor:
    """Attention of one step's rows, `[rows, width]` to `[rows, hidden]`, each row by itself over [`visible_keys`].

    Args:
        cos: `[rows, head_dim]`, as `sin`, at the positions of this step.
        memory: the layer's keys and values of the steps before; this step's are added.
    """
    queries = rotate(split_heads(module.q_proj(inputs), module.head_dim), cos, sin)
    keys = rotate(split_heads(module.k_proj(inputs), module.head_dim), cos, sin)
    values = split_heads(module.v_proj(inputs), module.head_dim)
    for row, (key, value) in enumerate(zip(keys.unbind(), values.unbind(), strict=True)):
        memory[step, row] = (key, value)
    mixed = []
    for row, query in enumerate(queries.unbind()):
        seen = [memory[address] for address in visible_keys(row, step)]
        mixed.append(attend(query, torch.stack([key for key, _ in seen]), torch.stack([value for _, value in seen])))
    return module.o_proj(torch.stack(mixed).flatten(start_dim=1))


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query, `[heads, head_dim]`, over `keys` and `values`, both `[seen, kv_heads, head_dim]`, to `[heads,
    head_dim]`. Neighbouring query heads share a key head where there are fewer of these."""
    outputs = []
    shared_by = query.shape[0] // keys.shape[1]
    for index, head_query in enumerate(query):
        head_keys, head_values = keys[:, index // shared_by], values[:, index // shared_by]
        weights = (head_keys @ head_query / query.shape[1] ** 0.5).softmax(dim=0)
        outputs.append(weights @ head_values)
    return torch.stack(outputs)


def split_heads(projected: Tensor, head_dim: int) -> Tensor:
    """`[rows, heads * head_dim]` to `[rows, heads, head_dim]`."""
    return projected.unflatten(-1, (-1, head_dim))


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: turns entry `d` of `[rows, heads, head_dim]` with entry `d + head_dim / 2` by the row's angle."""
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
