"""Draft-head arithmetic in plain torch, one unpadded sequence at a time: the oracle a loaded head is compared with.

Written from the published conventions, not from a loader, and slow on purpose: no batch, no mask tensors handed in, no
module. Reads weights by the names the files give them and the rules from `checkpoint_conventions.py`.

Row t pairs the target's state at position t with the embedding of token t + 1, at rotary position t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from .checkpoint_catalogue import Synthetic
from .checkpoint_conventions import ORIGINAL_POSITIONS, Conventions, Rope
from .reference_latent import LatentCache, latent_attention

__all__ = ["Step", "inverse_frequencies", "random_inputs", "reference_logits", "reference_steps"]


@dataclass(frozen=True)
class Step:
    """One pass of the head.

    Attributes:
        draft_logits: [rows, Vd], over draft ids.
        output: [rows, H], what leaves the last layer.
        fed_back: [rows, H], what the next step of a chain receives.
    """

    draft_logits: Tensor
    output: Tensor
    fed_back: Tensor


def reference_logits(
    synthetic: Synthetic,
    target_states: Sequence[Tensor],
    token_ids: Tensor,
    target_embeddings: Tensor,
    target_lm_head: Tensor,
    steps: int = 1,
    *,
    dtype: torch.dtype = torch.float64,
    feedback: Literal["pre_norm", "post_norm"] | None = None,
    drafting: Literal["chain", "parallel"] | None = None,
    rope_base: float | None = None,
    mask_token: int | None = None,
) -> list[Tensor]:
    """Logits over TARGET ids; -inf where the draft vocabulary has no such token. Arguments as `reference_steps`.

    Returns:
        `steps` tensors of `dtype`: [T, Vt] for the pass over the whole sequence, then [1, Vt] for each further step.
    """
    outcome = reference_steps(
        synthetic,
        target_states,
        token_ids,
        target_embeddings,
        target_lm_head,
        steps,
        dtype=dtype,
        feedback=feedback,
        drafting=drafting,
        rope_base=rope_base,
        mask_token=mask_token,
    )
    facts = synthetic.facts
    scattered = []
    for step in outcome:
        logits = torch.full((len(step.draft_logits), facts.target_vocab_size), -math.inf, dtype=dtype)
        logits[:, facts.target_ids] = step.draft_logits
        scattered.append(logits)
    return scattered


def reference_steps(
    synthetic: Synthetic,
    target_states: Sequence[Tensor],
    token_ids: Tensor,
    target_embeddings: Tensor,
    target_lm_head: Tensor,
    steps: int = 1,
    *,
    dtype: torch.dtype = torch.float64,
    feedback: Literal["pre_norm", "post_norm"] | None = None,
    drafting: Literal["chain", "parallel"] | None = None,
    rope_base: float | None = None,
    mask_token: int | None = None,
) -> list[Step]:
    """Run the head over a sequence, then `steps - 1` times more from its last row.

    Args:
        target_states: the residual stream at each boundary of `synthetic.facts.boundaries`, in that order, then LAST
            the target's post-norm last hidden state; each [T, Ht].
        token_ids: [at least T + steps] int64: the T tokens of the states, the token that follows them, then the tokens
            the chain draws. Further step j feeds back the state of the step before with token T + j, at position
            T - 1 + j. Masked slots ignore the tokens of the chain, so [T + 1] is enough for them.
        target_embeddings: [Vt, Ht]; used where the head brings none.
        target_lm_head: [Vt, Ht]; used where the head brings none.
        feedback, rope_base: override the head's convention where the formats disagree, see `Conventions.unsettled`.
        drafting: "chain" feeds back, "parallel" uses masked slots; default is what the head is made for.
        mask_token: embedding of the masked slots for a head that names none.

    Raises:
        ValueError: no arithmetic is known for the variant, or an input does not fit.
    """
    if synthetic.conventions is None:
        raise ValueError(f"{synthetic.variant.id} has no reference arithmetic: {synthetic.variant.inexpressible}.")
    head = _Head(synthetic, synthetic.conventions, dtype, target_embeddings, target_lm_head, rope_base)
    rules = head.rules
    if len(target_states) != len(synthetic.facts.boundaries) + 1:
        raise ValueError(
            f"{synthetic.variant.id} needs the states at boundaries {synthetic.facts.boundaries} and the post-norm"
            f" state, got {len(target_states)} tensors."
        )
    mask_token = rules.mask_token if mask_token is None else mask_token
    if drafting is None:
        drafting = "parallel" if rules.kind == "peagle" and mask_token is not None else "chain"
    length = len(target_states[0])
    needed = length + (1 if drafting == "parallel" else steps)
    if len(token_ids) < needed:
        raise ValueError(f"{length} states and {steps} steps need {needed} tokens, got {len(token_ids)}.")

    states = [state.to(dtype) for state in target_states]
    # EAGLE-1 and heads without auxiliary states read the state that the target's own output head reads.
    hidden = _project(head, states[:-1]) if rules.boundaries else states[-1]
    step = _pass(head, hidden, token_ids[1 : length + 1], torch.arange(length), feedback)
    outcome = [step]
    for index in range(1, steps):
        position = torch.tensor([length - 1 + index])
        if drafting == "parallel":
            hidden, token = _masked_slot(head), torch.tensor([_required_mask_token(synthetic, mask_token)])
        else:
            hidden, token = step.fed_back[-1:], token_ids[length + index : length + index + 1]
        step = _pass(head, hidden, token, position, feedback)
        outcome.append(step)
    return outcome


def random_inputs(
    synthetic: Synthetic, length: int, steps: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Random `target_states`, `token_ids`, `target_embeddings`, `target_lm_head` that fit `reference_logits`."""
    generator = torch.Generator().manual_seed(seed)
    facts = synthetic.facts
    width, vocabulary = facts.target_hidden_size, facts.target_vocab_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    states = [normal(length, width) for _ in range(len(facts.boundaries) + 1)]
    tokens = torch.randint(0, vocabulary, (length + steps,), generator=generator)
    return states, tokens, 0.5 * normal(vocabulary, width), 0.3 * normal(vocabulary, width)


@dataclass
class _Cache:
    """Keys [K, n, D], values [K, n, D] and positions [n] of one layer, oldest first."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)


class _Head:
    """Weights and rules of one head in one dtype, with the keys and values it has seen."""

    def __init__(
        self,
        synthetic: Synthetic,
        rules: Conventions,
        dtype: torch.dtype,
        target_embeddings: Tensor,
        target_lm_head: Tensor,
        rope_base: float | None,
    ) -> None:
        self.rules = rules
        self.sizes = synthetic.sizes
        self.eps = synthetic.facts.rms_norm_eps
        self.state = synthetic.state_dict
        self.dtype = dtype
        self.embeddings = self.weight("embed_tokens") if rules.embeddings == "own" else target_embeddings.to(dtype)
        self.lm_head = self.state["lm_head.weight"] if rules.lm_head == "own" else target_lm_head
        self.lm_head = self.lm_head.to(dtype)
        rotated = self.sizes.rope if rules.latent else self.sizes.D
        frequencies, self.rotary_scale = inverse_frequencies(rules.rope, rotated, rope_base)
        self.frequencies = frequencies.to(dtype)
        self.caches = [_Cache() for _ in range(rules.layers)]
        self.latent_caches = [LatentCache() for _ in range(rules.layers)]

    def tensor(self, key: str) -> Tensor:
        return self.state[self.rules.root + key].to(self.dtype)

    def weight(self, name: str) -> Tensor:
        return self.tensor(f"{name}.weight")

    def norm(self, name: str, values: Tensor) -> Tensor:
        """RMS norm over the last axis."""
        mean_square = values.square().mean(-1, keepdim=True)
        return values * torch.rsqrt(mean_square + self.eps) * self.weight(name)

    def layer_name(self, index: int, name: str) -> str:
        return self.rules.layer_prefix.format(i=index) + name


def _pass(head: _Head, hidden: Tensor, tokens: Tensor, positions: Tensor, feedback: str | None) -> Step:
    """Run rows `hidden` [n, H] with the embeddings of `tokens` [n], adding to the caches."""
    rules = head.rules
    embedding = head.embeddings[tokens]
    if rules.kind == "eagle1":
        if rules.embedding_norm:
            embedding = head.norm(rules.embedding_norm, embedding)
        bias = head.tensor(f"{rules.fuse}.bias") if rules.fc_bias else None
        # EAGLE-1 projects at every step, also what it feeds back.
        output = linear(torch.cat([embedding, hidden], dim=-1), head.weight(rules.fuse), bias)
        output = _plain_layer(head, 0, output, positions, "input_layernorm" if rules.first_norm else None)
    else:
        output = _first_layer(head, embedding, hidden, positions)
    for index in range(1, rules.layers):
        output = _plain_layer(head, index, output, positions, rules.deep_norm)
    normed = head.norm(rules.final_norm, output) if rules.final_norm else output
    fed_back = normed if (feedback or rules.feedback) == "post_norm" else output
    return Step(linear(normed, head.lm_head), output, fed_back)


def _project(head: _Head, states: Sequence[Tensor]) -> Tensor:
    """N target states [n, Ht], ascending by layer, to [n, H]."""
    if head.rules.state_norm == "chunk":
        states = [head.norm(f"fc_norm.{index}", state) for index, state in enumerate(states)]
    joined = torch.cat(list(states), dim=-1)
    if head.rules.state_norm == "concat":
        joined = head.norm("input_norm", joined)
    bias = head.tensor(f"{head.rules.fuse}.bias") if head.rules.fc_bias else None
    return linear(joined, head.weight(head.rules.fuse), bias)


def _masked_slot(head: _Head) -> Tensor:
    """[1, H]: the trained stand-in for the target states of a slot that has none."""
    learned = head.tensor("mask_hidden").reshape(1, -1)
    return _project(head, learned.chunk(len(head.rules.boundaries), dim=-1))


def _required_mask_token(synthetic: Synthetic, mask_token: int | None) -> int:
    if mask_token is None:
        raise ValueError(f"The config of {synthetic.variant.id} names no mask token, pass `mask_token`.")
    return mask_token


def _first_layer(head: _Head, embedding: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
    """EAGLE-3's layer 0: attention reads [normed embedding ; normed hidden], 2H wide."""
    normed = head.norm(head.layer_name(0, "hidden_norm"), hidden)
    embedding = head.norm(head.layer_name(0, "input_layernorm"), embedding)
    residual = normed if head.rules.residual == "normed" else hidden
    attended = residual + _attention(head, 0, torch.cat([embedding, normed], dim=-1), positions)
    return attended + _mlp(head, 0, attended)


def _plain_layer(head: _Head, index: int, hidden: Tensor, positions: Tensor, norm: str | None) -> Tensor:
    """A pre-norm Llama layer, H wide; `norm` None leaves the input of attention as it is."""
    normed = head.norm(head.layer_name(index, norm), hidden) if norm else hidden
    attended = hidden + _attention(head, index, normed, positions)
    return attended + _mlp(head, index, attended)


def _mlp(head: _Head, index: int, hidden: Tensor) -> Tensor:
    gate, up, down = (head.weight(head.layer_name(index, f"mlp.{name}_proj")) for name in ("gate", "up", "down"))
    normed = head.norm(head.layer_name(index, "post_attention_layernorm"), hidden)
    return linear(silu(linear(normed, gate)) * linear(normed, up), down)


def _attention(head: _Head, index: int, values: Tensor, positions: Tensor) -> Tensor:
    """Attention of the rows over everything the layer has seen, themselves included. [n, H or 2H] to [n, H]."""
    sizes, rules, cache = head.sizes, head.rules, head.caches[index]
    if rules.latent:
        return _latent_attention(head, index, values, positions)
    query = _heads(head, index, "q", values, sizes.A)
    key = _heads(head, index, "k", values, sizes.K)
    value = _heads(head, index, "v", values, sizes.K)
    if rules.qk_norm:
        query = head.norm(head.layer_name(index, "self_attn.q_norm"), query)
        key = head.norm(head.layer_name(index, "self_attn.k_norm"), key)
    query, key = _rotate(head, query, positions), _rotate(head, key, positions)
    cache.keys.append(key)
    cache.values.append(value)
    cache.positions.append(positions)
    keys, seen = torch.cat(cache.keys, dim=1), torch.cat(cache.positions)
    # Query heads come in groups of A/K neighbours that share one key head.
    group = sizes.A // sizes.K
    scores = query @ keys.repeat_interleave(group, dim=0).transpose(1, 2) / math.sqrt(sizes.D)
    visible = seen[None, :] <= positions[:, None]
    if rules.window is not None:
        visible &= seen[None, :] > positions[:, None] - rules.window
    weights = scores.masked_fill(~visible, -math.inf).softmax(dim=-1)
    mixed = weights @ torch.cat(cache.values, dim=1).repeat_interleave(group, dim=0)
    joined = mixed.transpose(0, 1).reshape(len(values), sizes.A * sizes.D)
    return linear(joined, head.weight(head.layer_name(index, "self_attn.o_proj")))


def _latent_attention(head: _Head, index: int, values: Tensor, positions: Tensor) -> Tensor:
    prefix = head.layer_name(index, "self_attn.")
    return latent_attention(
        lambda name: head.weight(prefix + name),
        lambda name, values: head.norm(prefix + name, values),
        values,
        positions,
        head.latent_caches[index],
        head.sizes,
        head.rules.rope,
        head.frequencies,
        head.rotary_scale,
        head.rules.low_rank_queries,
    )


def _heads(head: _Head, index: int, name: str, values: Tensor, count: int) -> Tensor:
    """Project [n, width] to [count, n, D]."""
    projection = head.layer_name(index, f"self_attn.{name}_proj")
    bias = head.tensor(f"{projection}.bias") if head.rules.qkv_bias else None
    return linear(values, head.weight(projection), bias).reshape(len(values), count, head.sizes.D).transpose(0, 1)


def _rotate(head: _Head, values: Tensor, positions: Tensor) -> Tensor:
    """Rotate [heads, n, D]: entry i turns with entry i + D/2."""
    angles = positions[:, None].to(head.dtype) * head.frequencies[None, :]
    cosine, sine = angles.cos() * head.rotary_scale, angles.sin() * head.rotary_scale
    first, second = values.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def inverse_frequencies(rope: Rope, head_dim: int, base: float | None = None) -> tuple[Tensor, float]:
    """Rotations per position [head_dim / 2], float64, and the factor on cosine and sine.

    Formulas: Llama 3.1's smoothing between the wavelengths original/high and original/low; YaRN is arXiv:2309.00071.
    """
    base = rope.base if base is None else base
    half = torch.arange(head_dim // 2, dtype=torch.float64)
    plain = base ** (-2.0 * half / head_dim)
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        turns = ORIGINAL_POSITIONS * plain / (2 * math.pi)
        smooth = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
        return plain * (smooth + (1 - smooth) / rope.factor), 1.0
    if rope.kind == "yarn":
        low, high = (
            head_dim * math.log(ORIGINAL_POSITIONS / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (rope.beta_fast, rope.beta_slow)
        )
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        slowed = ((half - low) / max(high - low, 1e-3)).clamp(0, 1)
        return plain * (1 - slowed) + plain / rope.factor * slowed, _rotary_scale(rope)
    return plain, 1.0


def _rotary_scale(rope: Rope) -> float:
    """YaRN's factor on cosine and sine; DeepSeek moves a part of it, or all, into the softmax scale."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0

    return scale(1.0 if rope.mscale is None else rope.mscale) / scale(rope.mscale_all_dim or 0.0)
