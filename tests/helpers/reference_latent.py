"""Latent attention (MLA) in plain torch: the oracle of heads whose first layer is DeepSeek's.

Written from the published description alone: DeepSeek-V2 (arXiv:2405.04434, section 2.1 and appendix C) for the
projections, YaRN (arXiv:2309.00071) with DeepSeek's `mscale` for the softmax scale; and from what serving engines
say of draft heads: the two down projections read [embedding ; hidden], 2H wide, in layer 0 (vLLM's and SGLang's
DeepSeek EAGLE-3 models, TensorRT-LLM#9677), the rotation is of neighbouring pairs, and the norms of both latents take
the config's epsilon. Knows no variant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import linear

from .checkpoint_conventions import Rope
from .checkpoint_options import Sizes

__all__ = ["LatentCache", "latent_attention"]


@dataclass
class LatentCache:
    """What one layer has seen, oldest first: keys [A, n, nope + rope], values [A, n, v] and positions [n]."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)


def latent_attention(
    weight: Callable[[str], Tensor],
    norm: Callable[[str, Tensor], Tensor],
    values: Tensor,
    positions: Tensor,
    cache: LatentCache,
    sizes: Sizes,
    rope: Rope,
    frequencies: Tensor,
    rotary_scale: float,
    low_rank_queries: bool,
) -> Tensor:
    """Attention of rows [n, H or 2H] over everything the layer has seen, themselves included, to [n, H].

    Args:
        weight, norm: the matrix of a projection and the RMS norm of some values, by the names under `self_attn.`.
        frequencies: [rope / 2] rotations per position; `rotary_scale` multiplies cosine and sine.
        low_rank_queries: whether queries have a latent of their own, or one matrix.
    """
    rows = len(values)
    if low_rank_queries:
        latent = norm("q_a_layernorm", linear(values, weight("q_a_proj")))
        query = linear(latent, weight("q_b_proj"))
    else:
        query = linear(values, weight("q_proj"))
    query = query.reshape(rows, sizes.A, sizes.nope + sizes.rope).transpose(0, 1)

    compressed = linear(values, weight("kv_a_proj_with_mqa"))
    latent, shared_key = compressed[:, : sizes.kv_lora], compressed[:, sizes.kv_lora :]
    both = linear(norm("kv_a_layernorm", latent), weight("kv_b_proj"))
    both = both.reshape(rows, sizes.A, sizes.nope + sizes.v).transpose(0, 1)

    angles = positions[:, None].to(values.dtype) * frequencies[None, :]
    rotated_query = _rotate_pairs(query[..., sizes.nope :], angles, rotary_scale)
    # One rotated key serves every head.
    rotated_key = _rotate_pairs(shared_key[None], angles, rotary_scale).expand(sizes.A, -1, -1)
    query = torch.cat([query[..., : sizes.nope], rotated_query], dim=-1)
    cache.keys.append(torch.cat([both[..., : sizes.nope], rotated_key], dim=-1))
    cache.values.append(both[..., sizes.nope :])
    cache.positions.append(positions)

    keys, seen = torch.cat(cache.keys, dim=1), torch.cat(cache.positions)
    scores = query @ keys.transpose(1, 2) * _softmax_scale(sizes, rope)
    weights = scores.masked_fill(seen[None, :] > positions[:, None], -math.inf).softmax(dim=-1)
    mixed = weights @ torch.cat(cache.values, dim=1)
    return linear(mixed.transpose(0, 1).reshape(rows, sizes.A * sizes.v), weight("o_proj"))


def _rotate_pairs(values: Tensor, angles: Tensor, scale: float) -> Tensor:
    """Rotate [heads, n, rope]: entry 2i turns with entry 2i + 1."""
    turned = torch.empty_like(values)
    cosine, sine = angles.cos() * scale, angles.sin() * scale
    even, odd = values[..., 0::2], values[..., 1::2]
    turned[..., 0::2] = even * cosine - odd * sine
    turned[..., 1::2] = even * sine + odd * cosine
    return turned


def _softmax_scale(sizes: Sizes, rope: Rope) -> float:
    scale = 1 / math.sqrt(sizes.nope + sizes.rope)
    if rope.kind == "yarn" and rope.mscale_all_dim:
        scale *= (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0) ** 2
    return scale
