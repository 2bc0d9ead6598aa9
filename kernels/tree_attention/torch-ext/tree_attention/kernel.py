"""Tree attention in Triton: a pass over the prefix without a mask, and one over the tree that merges its pieces.

The rows of a program are the queries that read the same keys: all nodes, for each the query heads of one kv head. The
first kernel splits the prefix into pieces, so that one sequence fills a device, and leaves for each piece a normalised
result with the logarithm of its weight; the second computes the tree's own part, a word of ancestors at a time, and
adds the pieces up. Split-KV: Flash-Decoding; adding up by log-sum-exp: Milakov and Gimelshein, arXiv:1805.02867.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from .ancestors import unpack_ancestors
from .op import INTERPRETED
from .tuning import Plan, device_of, plan

LOG2E = 1.4426950408889634  # exponentials are powers of two here, which is what the hardware has


# ---------------------------------------------------------------------- pieces of both kernels


@triton.jit
def _load_queries(
    q_ptr, stride_h, stride_n, head, rows, total,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """`[rows, WIDTH]`: row `r` is node `r // GROUP`, query head `r % GROUP` of the kv head's group."""
    at = (rows // GROUP) * stride_n + (head * GROUP + rows % GROUP) * stride_h
    dims = tl.arange(0, WIDTH)
    q = tl.load(q_ptr + at[:, None] + dims[None, :], mask=(rows < total)[:, None] & (dims < DIM)[None, :], other=0.0)
    return q.to(tl.float32) if UPCAST else q


@triton.jit
def _fold(scores, v, acc, top, weight):
    """One tile of scores (powers of two) into the running result: the online softmax."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A row that has seen nothing yet: minus infinity less minus infinity is no number.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, new_top, weight * shrink + tl.sum(p, 1)


@triton.jit
def _added(acc, top, weight, other, other_top, other_weight):
    """Two results over different keys as one over both."""
    new_top = tl.maximum(top, other_top)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    shrink, share = tl.exp2(top - base), tl.exp2(other_top - base)
    return acc * shrink[:, None] + other * share[:, None], new_top, weight * shrink + other_weight * share


@triton.jit
def _sum_of_pieces(
    part_ptr, lse_ptr, at, inside, splits, total,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What the prefix kernel left, from its first piece's rows `at` on. A sum of its own: added to the tree's result
    one by one, each piece would be carried over into the layout of the tree's products."""
    value_dims = tl.arange(0, VALUE_WIDTH)
    kept = inside[:, None] & (value_dims < VALUE_DIM)[None, :]
    acc = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    for _ in range(splits):
        lse = tl.load(lse_ptr + at, mask=inside, other=float("-inf"))
        part = tl.load(part_ptr + at[:, None] * VALUE_DIM + value_dims[None, :], mask=kept, other=0.0)
        acc, top, weight = _added(acc, top, weight, part, lse, 1.0)
        at += total
    return acc, top, weight


@triton.jit
def _capped(scores, cap):
    """`cap * tanh(scores)`, from exponentials that cannot overflow."""
    e = tl.exp2(tl.abs(scores) * (-2.0 * 1.4426950408889634))
    return tl.where(scores < 0, -cap, cap) * ((1.0 - e) / (1.0 + e))


# ---------------------------------------------------------------------- the two kernels


# What changes from step to step is compiled once, whatever it is divisible by.
STRIDES_OF_TREES = ["stride_db", "stride_dn", "stride_ab", "stride_an", "stride_pad"]
NUMBERS = ["prefix_len", "window", "nodes", "splits"]


@triton.jit(do_not_specialize=[*STRIDES_OF_TREES, *NUMBERS])
def prefix_kernel(
    q_ptr, k_ptr, v_ptr, depth_ptr, pad_ptr, prefix_ptr, part_ptr, lse_ptr,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_db, stride_dn, stride_pad, prefix_len, window, nodes, splits, qk_scale, cap,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PADDED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PREFIX_AT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One piece of the prefix for one tile of rows. Grid: row tiles (fastest: they share keys), pieces, kv heads.

    Writes float32 partial results `[batch * kv_heads, splits, rows, VALUE_DIM]` and the base-2 logarithm of their
    weights `[batch * kv_heads, splits, rows]`, minus infinity where a piece holds nothing to see.
    """
    tile, split, place = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, head = (place // KV_HEADS).to(tl.int64), place % KV_HEADS
    total = nodes * GROUP
    rows = tile * ROWS + tl.arange(0, ROWS)
    prefix = tl.load(prefix_ptr).to(tl.int32) if PREFIX_AT else prefix_len

    low = tl.load(pad_ptr + row * stride_pad).to(tl.int32) if PADDED else 0
    clear = low  # from here on every row sees every key
    if WINDOW:
        inside = rows < total
        depths = tl.load(depth_ptr + row * stride_db + rows // GROUP * stride_dn, mask=inside, other=0).to(tl.int32)
        first_seen = prefix + depths - window + 1
        low = tl.maximum(low, prefix - window + 1)  # the root looks back furthest
        clear = tl.maximum(low, tl.max(first_seen, 0))
    # Pieces are whole tiles, but for the last, so that reads stay aligned.
    bottom = low // KEYS * KEYS
    piece = tl.cdiv(tl.cdiv(tl.maximum(prefix - bottom, 0), KEYS), splits) * KEYS
    start = bottom + split * piece
    stop = tl.minimum(start + piece, prefix)

    q = _load_queries(q_ptr + row * stride_qb, stride_qh, stride_qn, head, rows, total, GROUP, DIM, WIDTH, UPCAST)
    k_ptr += row * stride_kb + head.to(tl.int64) * stride_kh
    v_ptr += row * stride_vb + head.to(tl.int64) * stride_vh
    dims, value_dims, lanes = tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH), tl.arange(0, KEYS)
    k_tile = lanes[None, :] * stride_kl + dims[:, None]
    v_tile = lanes[:, None] * stride_vl + value_dims[None, :]
    acc = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)

    for key in range(start, stop, KEYS):
        keys = key + lanes
        real = (keys >= low) & (keys < stop)
        k_at, v_at = k_ptr + tl.cast(key, tl.int64) * stride_kl, v_ptr + tl.cast(key, tl.int64) * stride_vl
        k = tl.load(k_at + k_tile, mask=real[None, :] & (dims < DIM)[:, None], other=0.0)
        v = tl.load(v_at + v_tile, mask=real[:, None] & (value_dims < VALUE_DIM)[None, :], other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, k, input_precision="ieee") * qk_scale
        if SOFTCAP:
            scores = _capped(scores, cap)
        if (key < clear) | (key + KEYS > stop):  # the first tiles and the last: between them nothing is masked
            seen = real[None, :]
            if WINDOW:
                seen = seen & (keys[None, :] >= first_seen[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        acc, top, weight = _fold(scores, v, acc, top, weight)

    nothing = weight == 0.0
    acc = acc / tl.where(nothing, 1.0, weight)[:, None]
    lse = tl.where(nothing, float("-inf"), top + tl.log2(tl.where(nothing, 1.0, weight)))
    at = (place.to(tl.int64) * splits + split) * total + rows
    kept = (rows < total)[:, None] & (value_dims < VALUE_DIM)[None, :]
    tl.store(part_ptr + at[:, None] * VALUE_DIM + value_dims[None, :], acc, mask=kept)
    tl.store(lse_ptr + at, lse, mask=rows < total)


@triton.jit(do_not_specialize=[*STRIDES_OF_TREES, *NUMBERS])
def tree_kernel(
    q_ptr, k_ptr, v_ptr, ancestors_ptr, depth_ptr, prefix_ptr, sinks_ptr, part_ptr, lse_ptr, out_ptr,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    stride_db, stride_dn, stride_ab, stride_an, prefix_len, window, nodes, splits, qk_scale, cap,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    PREFIX_AT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The tree's own keys for one tile of rows, then the pieces of the prefix, then the result.

    Grid: row tiles, kv heads. A tile of keys lies within one ancestor word. Writes `[batch, nodes, heads, VALUE_DIM]`.
    """
    tile, place = tl.program_id(0), tl.program_id(1)
    row, head = (place // KV_HEADS).to(tl.int64), place % KV_HEADS
    total = nodes * GROUP
    rows = tile * ROWS + tl.arange(0, ROWS)
    inside, node = rows < total, rows // GROUP
    dims, value_dims, lanes = tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH), tl.arange(0, KEYS)
    prefix = tl.load(prefix_ptr).to(tl.int64) if PREFIX_AT else prefix_len.to(tl.int64)

    q = _load_queries(q_ptr + row * stride_qb, stride_qh, stride_qn, head, rows, total, GROUP, DIM, WIDTH, UPCAST)
    k_ptr += row * stride_kb + head.to(tl.int64) * stride_kh + prefix * stride_kl
    v_ptr += row * stride_vb + head.to(tl.int64) * stride_vh + prefix * stride_vl
    if WINDOW:
        own_depth = tl.load(depth_ptr + row * stride_db + node * stride_dn, mask=inside, other=0).to(tl.int32)
    acc = tl.zeros([ROWS, VALUE_WIDTH], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    for first in range(0, nodes, KEYS):
        keys = first + lanes
        real = keys < nodes
        k = tl.load(
            k_ptr + keys[None, :] * stride_kl + dims[:, None], mask=real[None, :] & (dims < DIM)[:, None], other=0.0
        )
        v = tl.load(
            v_ptr + keys[:, None] * stride_vl + value_dims[None, :],
            mask=real[:, None] & (value_dims < VALUE_DIM)[None, :],
            other=0.0,
        )
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        word = tl.load(ancestors_ptr + row * stride_ab + node * stride_an + first // 32, mask=inside, other=0)
        seen = (((word[:, None] >> (keys % 32)[None, :]) & 1) != 0) & real[None, :]
        if WINDOW:
            depths = tl.load(depth_ptr + row * stride_db + keys * stride_dn, mask=real, other=0).to(tl.int32)
            seen = seen & (depths[None, :] > own_depth[:, None] - window)
        scores = tl.dot(q, k, input_precision="ieee") * qk_scale
        if SOFTCAP:
            scores = _capped(scores, cap)
        scores = tl.where(seen, scores, float("-inf"))
        acc, top, weight = _fold(scores, v, acc, top, weight)

    at = place.to(tl.int64) * splits * total + rows
    pieces, highest, held = _sum_of_pieces(part_ptr, lse_ptr, at, inside, splits, total, VALUE_DIM, VALUE_WIDTH, ROWS)
    acc, top, weight = _added(acc, top, weight, pieces, highest, held)
    if SINKS:
        sink = tl.load(sinks_ptr + head * GROUP + rows % GROUP, mask=inside, other=0.0).to(tl.float32)
        acc, top, weight = _added(acc, top, weight, tl.zeros_like(acc), sink * 1.4426950408889634, 1.0)

    out = acc / tl.where(weight == 0.0, 1.0, weight)[:, None]
    at = (row * nodes + node) * (KV_HEADS * GROUP) + head * GROUP + rows % GROUP
    tl.store(
        out_ptr + at[:, None] * VALUE_DIM + value_dims[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=inside[:, None] & (value_dims < VALUE_DIM)[None, :],
    )


# ---------------------------------------------------------------------- the launch


def tree_attention_kernel(
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
    chosen: Plan | None = None,
) -> torch.Tensor:
    """[`tree_attention`] by the two kernels; arguments are taken as checked.

    Args:
        chosen: tiles and splits in place of the table's, for tests and for tuning.
    """
    batch, heads, nodes, dim = q.shape
    kv_heads, value_dim = k.shape[1], v.shape[-1]
    group, rows = heads // kv_heads, nodes * (heads // kv_heads)
    # Plain numbers, here and in the grids: Triton's own helpers take a quarter of the launches' time on the host.
    width, value_width = (max(16, 1 << (size - 1).bit_length()) for size in (dim, value_dim))
    if chosen is None:
        chosen = _plan_for(q, k, max(width, value_width), window)
    if window is not None and depth is None:
        depth = unpack_ancestors(ancestors, nodes).sum(-1, dtype=torch.int32) - 1
    if ancestors.stride(-1) != 1:
        ancestors = ancestors.contiguous()
    sinks = None if sinks is None else sinks.contiguous()

    places = batch * kv_heads
    parts = torch.empty(places, chosen.splits, rows, value_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(places, chosen.splits, rows, dtype=torch.float32, device=q.device)
    out = torch.empty(batch, nodes, heads, value_dim, dtype=q.dtype, device=q.device)
    scale = dim**-0.5 if scale is None else scale
    at = prefix_len if isinstance(prefix_len, torch.Tensor) else None
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *((0, 0) if depth is None else depth.stride()))
    # No prefix is as long as 2**30, so no window need be, and sums of both stay within 32 bits.
    numbers = (0 if at is not None else prefix_len, min(window or 0, 2**30), nodes, chosen.splits)
    scores = (scale * LOG2E, 0.0) if softcap is None else (scale / softcap, softcap * LOG2E)
    shape = {"KV_HEADS": kv_heads, "GROUP": group, "DIM": dim, "VALUE_DIM": value_dim}
    shape |= {"WIDTH": width, "VALUE_WIDTH": value_width}
    switches = {"WINDOW": window is not None, "SOFTCAP": softcap is not None, "PREFIX_AT": at is not None}
    # Triton's interpreter multiplies the bit patterns of bfloat16 (triton#11584).
    switches["UPCAST"] = INTERPRETED and q.dtype == torch.bfloat16
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        tiles = chosen.prefix
        prefix_kernel[(-(-rows // tiles.rows), chosen.splits, places)](
            q, k, v, depth, pad, at, parts, lse, *strides, 0 if pad is None else pad.stride(0), *numbers, *scores,
            **shape, **switches, PADDED=pad is not None, ROWS=tiles.rows, KEYS=tiles.keys,
            num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True,
        )  # fmt: skip
        tiles = chosen.tree
        tree_kernel[(-(-rows // tiles.rows), places)](
            q, k, v, ancestors, depth, at, sinks, parts, lse, out, *strides, *ancestors.stride()[:2], *numbers,
            *scores, **shape, **switches, SINKS=sinks is not None, ROWS=tiles.rows, KEYS=tiles.keys,
            num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def _plan_for(q: torch.Tensor, k: torch.Tensor, width: int, window: int | None) -> Plan:
    """What the table says of this call."""
    batch, heads, nodes, _ = q.shape
    kv_heads, longest = k.shape[1], k.shape[2] - nodes
    arch, processors = ("interpreter", 1) if INTERPRETED else device_of(q.device.index or 0)
    keys = longest if window is None else min(longest, window)
    return plan(arch, processors, q.element_size(), width, nodes * (heads // kv_heads), batch * kv_heads, keys)
