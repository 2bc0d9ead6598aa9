"""Tree attention in plain torch: what the kernel computes, written down. Its oracle, and its CPU path."""

from __future__ import annotations

import torch

from .ancestors import unpack_ancestors


def tree_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ancestors: torch.Tensor,
    *,
    prefix_len: int | torch.Tensor,
    pad: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    depth: torch.Tensor | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same as [`tree_attention`], one operation after another, on any device and also in float64.

    Reads `prefix_len` if it is a tensor, so on a device it waits.

    Raises:
        ValueError: if `k` is too short for the prefix and the nodes.
    """
    batch, heads, nodes, dim = q.shape
    kv_heads, prefix = k.shape[1], int(prefix_len)
    if prefix < 0 or k.shape[2] < prefix + nodes:
        raise ValueError(
            f"`k` holds {k.shape[2]} positions, but {prefix} of the prefix (`prefix_len`) and {nodes} nodes need "
            f"{prefix + nodes}; append the nodes' keys and values to the cache first."
        )
    precision = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys, values = (states[:, :, : prefix + nodes].to(precision) for states in (k, v))
    visible = visible_keys(ancestors, prefix, pad, window, depth)
    # What nobody sees may be anything, and not even a weight of zero makes nothing of NaN.
    unseen = ~visible.any(1)[:, None, :, None]
    keys, values = keys.masked_fill(unseen, 0), values.masked_fill(unseen, 0)

    queries = q.to(precision).reshape(batch, kv_heads, heads // kv_heads * nodes, dim)
    scores = queries @ keys.transpose(-1, -2) * (dim**-0.5 if scale is None else scale)
    scores = scores.view(batch, heads, nodes, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    if sinks is not None:
        sink = sinks.to(precision).view(1, heads, 1, 1).expand(batch, -1, nodes, -1)
        scores = torch.cat((scores, sink), dim=-1)
    blind = ~visible.any(-1)[:, None, :, None]  # a row of nothing but minus infinity
    weights = scores.softmax(-1)[..., : prefix + nodes].masked_fill(blind, 0)
    out = weights.view(batch, kv_heads, -1, prefix + nodes) @ values
    return out.view(batch, heads, nodes, -1).transpose(1, 2).to(q.dtype).contiguous()


def visible_keys(
    ancestors: torch.Tensor,
    prefix: int,
    pad: torch.Tensor | None,
    window: int | None,
    depth: torch.Tensor | None,
) -> torch.Tensor:
    """bool `[batch, nodes, prefix + nodes]`: the keys that each node attends to."""
    batch, nodes, _ = ancestors.shape
    in_tree = unpack_ancestors(ancestors, nodes)
    before = torch.arange(prefix, device=ancestors.device).expand(batch, nodes, -1)
    seen = torch.ones_like(before, dtype=torch.bool) if pad is None else before >= pad[:, None, None]
    visible = torch.cat((seen, in_tree), dim=-1)
    if window is None:
        return visible
    depths = (in_tree.sum(-1) - 1 if depth is None else depth).to(before.dtype)
    positions = torch.cat((before[:, 0], prefix + depths), dim=-1)
    return visible & (positions[:, None] > prefix + depths[..., None] - window)
