"""Tree attention by definition: for each query, list the keys that it sees, then a softmax and a sum, all in float64.

Slow on purpose. It reads no key that a query does not see, so what lies there cannot matter, and it works from
parents, not from words.
"""

from __future__ import annotations

import torch
import trees


def tree_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    parents: list[list[int]],
    *,
    prefix_len: int,
    pad: list[int] | None = None,
    scale: float | None = None,
    window: int | None = None,
    depth: list[list[int]] | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """float64 `[batch, nodes, query heads, value dim]`; arguments as the kernel's, but parents in place of words."""
    q, k, v = (given.detach().cpu().double() for given in (q, k, v))
    batch, heads, nodes, dim = q.shape
    group = heads // k.shape[1]
    scale = dim**-0.5 if scale is None else scale
    out = torch.zeros(batch, nodes, heads, v.shape[-1], dtype=torch.float64)
    for row in range(batch):
        depth_of = trees.depths(parents[row]) if depth is None else depth[row]
        first = 0 if pad is None else pad[row]
        for node in range(nodes):
            keys = visible_keys(parents[row], node, first, prefix_len, depth_of, window)
            for head in range(heads):
                sink = None if sinks is None else sinks[head].double().cpu()
                seen_k, seen_v = k[row, head // group, keys], v[row, head // group, keys]
                out[row, node, head] = _attend(q[row, head, node], seen_k, seen_v, scale, softcap, sink)
    return out


def visible_keys(
    parents: list[int], node: int, first: int, prefix_len: int, depth: list[int], window: int | None
) -> list[int]:
    """The keys that a node sees: prefix from `first` on, and its ancestors, as far as the window reaches."""
    positions = {key: key for key in range(first, prefix_len)}
    positions |= {prefix_len + seen: prefix_len + depth[seen] for seen in trees.ancestors(parents, node)}
    if window is None:
        return list(positions)
    return [key for key, position in positions.items() if position > prefix_len + depth[node] - window]


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    softcap: float | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """One query over the keys that it sees."""
    if len(k) == 0:
        return torch.zeros(v.shape[-1], dtype=torch.float64)
    scores = (k @ q) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    logits = scores if sink is None else torch.cat([scores, sink[None]])
    return torch.softmax(logits, dim=0)[: len(scores)] @ v
