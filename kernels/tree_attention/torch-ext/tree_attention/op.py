"""`tree_attention`: the checks of its arguments, and the operator of torch behind it."""

from __future__ import annotations

import os

import torch

from .ancestors import words_for
from .reference import tree_attention_reference

try:  # a build for the Hub has a namespace of its own, so that several versions live in one process
    from ._ops import add_op_namespace_prefix  # type: ignore[import-not-found]
except ImportError:

    def add_op_namespace_prefix(op_name: str) -> str:
        return f"hf_eagle3::{op_name}"


DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST_HEAD = 256
# Triton decides this when it is imported, from the same variable: set it before Python starts.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def tree_attention(
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
    """Attention of a tree's nodes to a prefix, which all of them see, and to their ancestors.

    Keys `0 .. prefix_len - 1` are the prefix, the next `nodes` are the tree's; what a cache holds behind them is not
    read. Runs as two Triton kernels on CUDA, where the host reads no value of a tensor; in plain torch on the CPU, or
    through Triton's interpreter if the process was started with `TRITON_INTERPRET=1`. For inference: no gradients.

    Args:
        q: `[batch, heads, nodes, dim]`, float32, float16 or bfloat16. Any strides, here and below, but the last
            dimension is contiguous.
        k: `[batch, kv_heads, length, dim]` of the same dtype; `heads` is a multiple of `kv_heads`, and `length` at
            least `prefix_len + nodes`.
        v: `[batch, kv_heads, length, value_dim]` of the same dtype. Both widths are at most 256.
        ancestors: int32 `[batch, nodes, ceil(nodes / 32)]`, as from [`pack_ancestors`].
        prefix_len: positions before the tree; as an integer tensor of one element on the device, its value may change
            between replays of a CUDA graph.
        pad: integers `[batch]`, how many positions at the left are masked, at most `prefix_len`.
        scale: of the scores, `dim ** -0.5` if left out.
        window: a node sees keys at positions above its own minus `window`; positions count from `prefix_len` by depth.
        depth: integers `[batch, nodes]`, how deep each node is, the root 0; counted from `ancestors` if left out.
        softcap: scores become `softcap * tanh(scores / softcap)`, as in Gemma-2.
        sinks: `[heads]`, floats, for each head one more score that takes part in the softmax and adds nothing, as in
            gpt-oss.

    Returns:
        `[batch, nodes, heads, value_dim]`, contiguous, in the dtype of `q`, accumulated in float32. Zeros for a node
        that sees nothing.

    Raises:
        TypeError: for a dtype or a kind of argument that it does not take.
        ValueError: for shapes, devices or numbers that do not fit together.
        RuntimeError: if a gradient would be asked of it.
    """
    _check_kinds(q=q, k=k, v=v, ancestors=ancestors)
    _check_kinds(optional=True, pad=pad, depth=depth, sinks=sinks)
    _check_states(q, k, v)
    # Here, not by an autograd formula: torch would call that in Python for every layer, with and without gradients.
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise RuntimeError(
            "`tree_attention` has no backward pass: it verifies drafts; call it under `torch.no_grad()`, and train "
            "with another attention implementation."
        )
    batch, heads, nodes, dim = q.shape
    _check_integers("ancestors", ancestors, (batch, nodes, words_for(nodes)), q.device, (torch.int32,))
    if pad is not None:
        _check_integers("pad", pad, (batch,), q.device)
    if depth is not None:
        _check_integers("depth", depth, (batch, nodes), q.device)
    at, length = _prefix(prefix_len, k, nodes)
    _check_numbers(window, softcap)
    if sinks is not None:
        _check_sinks(sinks, heads, q.device)
    scale = dim**-0.5 if scale is None else float(scale)
    return _operator(q, k, v, ancestors, length, at, pad, scale, window, depth, softcap, sinks)


# ---------------------------------------------------------------------- the operator


def _run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ancestors: torch.Tensor,
    prefix_len: int,
    prefix_at: torch.Tensor | None,
    pad: torch.Tensor | None,
    scale: float,
    window: int | None,
    depth: torch.Tensor | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    options = {"pad": pad, "scale": scale, "window": window, "depth": depth, "softcap": softcap, "sinks": sinks}
    at = prefix_len if prefix_at is None else prefix_at
    if not (q.is_cuda or INTERPRETED):
        return tree_attention_reference(q, k, v, ancestors, prefix_len=at, **options)  # type: ignore[arg-type]
    from .kernel import tree_attention_kernel  # here, not above: it imports triton

    return tree_attention_kernel(q, k, v, ancestors, prefix_len=at, **options)  # type: ignore[arg-type]


NAME = add_op_namespace_prefix("tree_attention")
torch.library.define(
    NAME,
    "(Tensor q, Tensor k, Tensor v, Tensor ancestors, SymInt prefix_len, Tensor? prefix_at, Tensor? pad, float scale, "
    "SymInt? window, Tensor? depth, float? softcap, Tensor? sinks) -> Tensor",
    tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag),
)
torch.library.impl(NAME, "CompositeExplicitAutograd", _run)
_operator = getattr(getattr(torch.ops, NAME.split("::")[0]), NAME.split("::")[1])


@torch.library.register_fake(add_op_namespace_prefix("tree_attention"))  # as kernel-builder checks for
def _fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object) -> torch.Tensor:
    batch, heads, nodes, _ = q.shape
    return q.new_empty(batch, nodes, heads, v.shape[-1])


# ---------------------------------------------------------------------- what is wrong with the arguments


def _check_kinds(optional: bool = False, **given: object) -> None:
    for name, value in given.items():
        if not (isinstance(value, torch.Tensor) or (optional and value is None)):
            raise TypeError(
                f"`{name}` is a {type(value).__name__}, but a tensor{' or None' if optional else ''} is needed."
            )


def _check_states(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise ValueError(f"Tree attention takes [batch, heads, rows, dim] three times, but {_told_all(q, k, v)}.")
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise TypeError(
            f"Tree attention takes float32, float16 or bfloat16, the same three times, but {_told_all(q, k, v)}."
        )
    batch, heads, nodes, dim = q.shape
    if batch < 1 or nodes < 1 or k.shape[:3] != v.shape[:3] or k.shape[0] != batch or k.shape[-1] != dim:
        raise ValueError(
            "q [batch, heads, nodes, dim], k [batch, kv_heads, length, dim] and v [batch, kv_heads, length, "
            f"value_dim] must agree, with a sequence and a node at least, but {_told_all(q, k, v)}."
        )
    if k.shape[1] < 1 or heads % k.shape[1]:
        raise ValueError(f"Query heads must be a multiple of the {k.shape[1]} kv heads, but {_told_all(q, k, v)}.")
    if not 1 <= min(dim, v.shape[-1]) <= max(dim, v.shape[-1]) <= WIDEST_HEAD:
        raise ValueError(f"Heads may be up to {WIDEST_HEAD} wide, but {_told_all(q, k, v)}.")
    if k.device != q.device or v.device != q.device:
        raise ValueError(f"q, k and v must be on one device, but they are on {q.device}, {k.device} and {v.device}.")
    for name, states in (("q", q), ("k", k), ("v", v)):
        if states.stride(-1) != 1 and states.shape[-1] > 1:
            raise ValueError(
                f"The last dimension of `{name}` must be contiguous, but its strides are {states.stride()}; call "
                "`.contiguous()` on it."
            )


def _check_integers(
    name: str,
    given: torch.Tensor,
    shape: tuple[int, ...],
    device: torch.device,
    dtypes: tuple[torch.dtype, ...] = (torch.int32, torch.int64),
) -> None:
    if tuple(given.shape) != shape or given.dtype not in dtypes or given.device != device:
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"`{name}` is {_told(given)}, but {kinds} {list(shape)} on {device} is needed.")


def _prefix(prefix_len: int | torch.Tensor, k: torch.Tensor, nodes: int) -> tuple[torch.Tensor | None, int]:
    """The prefix as the operator takes it: a tensor and 0, or None and the number."""
    at, length = (prefix_len, 0) if isinstance(prefix_len, torch.Tensor) else (None, prefix_len)
    if at is not None:
        _check_integers("prefix_len", at, tuple(at.shape) if at.numel() == 1 else (1,), k.device)
    if not isinstance(length, (int, torch.SymInt)):
        raise TypeError(
            f"`prefix_len` is {prefix_len!r}, but an integer, or an integer tensor of one element, is needed."
        )
    if length < 0 or k.shape[2] < length + nodes:
        raise ValueError(
            f"`k` holds {k.shape[2]} positions, but {length} of the prefix (`prefix_len`) and {nodes} nodes need "
            f"{length + nodes}; append the nodes' keys and values to the cache first."
        )
    return at, length


def _check_sinks(sinks: torch.Tensor, heads: int, device: torch.device) -> None:
    if sinks.shape != (heads,) or not sinks.is_floating_point() or sinks.device != device:
        raise ValueError(
            f"`sinks` is {_told(sinks)}, but one float for each of the {heads} query heads is needed, on {device}."
        )


def _check_numbers(window: int | None, softcap: float | None) -> None:
    if not isinstance(window, (int, torch.SymInt, type(None))):
        raise TypeError(f"`window` is {window!r}, but an integer of 1 or more is needed (or None).")
    if not isinstance(softcap, (int, float, torch.SymInt, torch.SymFloat, type(None))):
        raise TypeError(f"`softcap` is {softcap!r}, but a number above 0 is needed (or None for no cap).")
    if window is not None and window < 1:
        raise ValueError(f"`window` is {window}, but a node sees itself at least, so 1 or more is needed (or None).")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"`softcap` is {softcap}, but a number above 0 is needed (or None for no cap).")


def _told_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    return f"got q {_told(q)}, k {_told(k)}, v {_told(v)}"


def _told(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
