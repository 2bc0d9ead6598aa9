"""Ways to compute a case, ours among them, behind one interface.

A way has several candidates, tried one by one; the best that is right stands for it. A candidate is built for one
case: `prepare` is what is done once a verification, for all layers, and `call` what every layer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import eager_attention_forward

from .inputs import Inputs
from .leaf import load_leaf

KERNEL, ONE_NODE, NO_MASK = "kernel", "kernel, one node", "no mask"
AS_MODELS_CALL = "kernel, as models call it"
EAGER, SDPA, SDPA_BEST, FLEX = "eager", "sdpa as transformers", "sdpa at its best", "FlexAttention"
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Candidate:
    """
    Args:
        call: the output `[batch, nodes, q_heads, head_dim]` on the cache of that number.
        prepare: what is done once a verification.
        within: what all its calls are made within; entered once, for it would count as launching time.
    """

    call: Callable[[int], torch.Tensor]
    prepare: Callable[[], Any]
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


Candidates = Iterator[tuple[str, Callable[[], Candidate]]]


@dataclass(frozen=True)
class Way:
    """
    Args:
        candidates: by label; each is built, checked and tried by itself.
        exact: whether the output has to be right; the unmasked bound's cannot be.
    """

    name: str
    candidates: Callable[[Inputs], Candidates]
    exact: bool = True


class _Layer(torch.nn.Module):
    """What transformers' attention functions ask of the module that calls them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = True
        self.eval()


def kernel_way() -> Way:
    def candidates(inputs: Inputs) -> Candidates:
        yield "tree_attention", lambda: kernel_candidate(inputs)

    return Way(KERNEL, candidates)


def one_node_way() -> Way:
    """The kernel on the root alone; its inputs are the case's `one_node()`."""
    return Way(ONE_NODE, kernel_way().candidates)


def as_models_call_way() -> Way:
    """The kernel with all that hf_eagle3's bridge passes in every layer, whether it is needed or not: padding, which a
    sliding layer counts anew, depths, and words that are columns of a wider tensor.
    """

    def build(inputs: Inputs) -> Candidate:
        leaf = load_leaf()
        words = leaf.pack_ancestors(inputs.parents)
        depth = leaf.unpack_ancestors(words, inputs.nodes).sum(-1, keepdim=True) - 1
        pad, prefix = depth.new_zeros(depth.shape), depth.new_full(depth.shape, inputs.prefix_len)
        packed = torch.cat([words, *(column.to(torch.int32) for column in (depth, pad, prefix))], dim=-1)

        def call(number: int) -> torch.Tensor:
            keys, values = inputs.caches[number]
            pad = packed[:, 0, -2]
            if inputs.window is not None:  # counted from the first position that a sliding layer holds
                pad = (pad - (packed[:, 0, -1] - inputs.prefix_len)).clamp(min=0)
            options = {"depth": packed[..., -3], "pad": pad, "window": inputs.window}
            return leaf.tree_attention(
                inputs.q, keys, values, packed[..., :-3], prefix_len=inputs.prefix_len, **options
            )

        return Candidate(call, lambda: leaf.pack_ancestors(inputs.parents))

    return Way(AS_MODELS_CALL, lambda inputs: iter([("pad, depth", lambda: build(inputs))]))


def kernel_candidate(inputs: Inputs) -> Candidate:
    leaf = load_leaf()
    words = leaf.pack_ancestors(inputs.parents)

    def call(number: int) -> torch.Tensor:
        keys, values = inputs.caches[number]
        return leaf.tree_attention(inputs.q, keys, values, words, prefix_len=inputs.prefix_len, window=inputs.window)

    return Candidate(call, lambda: leaf.pack_ancestors(inputs.parents))


def eager_way() -> Way:
    def build(inputs: Inputs) -> Candidate:
        layer = _Layer(inputs.groups)

        def prepare() -> torch.Tensor:
            mask = torch.zeros(inputs.visible.shape, dtype=inputs.q.dtype, device=inputs.q.device)
            return mask.masked_fill_(~inputs.visible, torch.finfo(inputs.q.dtype).min)[:, None]

        mask = prepare()

        def call(number: int) -> torch.Tensor:
            return eager_attention_forward(layer, inputs.q, *inputs.caches[number], mask, scaling=inputs.scale)[0]

        return Candidate(call, prepare)

    return Way(EAGER, lambda inputs: iter([("additive mask", lambda: build(inputs))]))


def sdpa_way() -> Way:
    """transformers' own function, with the dense bool mask that its models give it."""

    def build(inputs: Inputs) -> Candidate:
        layer = _Layer(inputs.groups)
        mask = inputs.visible[:, None]

        def call(number: int) -> torch.Tensor:
            return sdpa_attention_forward(layer, inputs.q, *inputs.caches[number], mask, scaling=inputs.scale)[0]

        return Candidate(call, lambda: _dense_mask(inputs))

    return Way(SDPA, lambda inputs: iter([("bool mask", lambda: build(inputs))]))


def sdpa_best_way() -> Way:
    """Every backend by itself, with the key heads repeated, shared (`enable_gqa`), or with a group's query heads laid
    out as rows of one head, which needs neither.
    """
    forms = {"enable_gqa": _shared_heads, "repeated heads": _repeated_heads, "heads as rows": _heads_as_rows}

    def candidates(inputs: Inputs) -> Candidates:
        for backend in _BACKENDS:
            for form, build in forms.items():
                yield f"{backend}, {form}", lambda b=backend, f=build: _under(b, f(inputs))  # type: ignore[misc]

    return Way(SDPA_BEST, candidates)


def no_mask_way() -> Way:
    """The wrong answer with the right bytes: what no tree can be faster than."""

    def candidates(inputs: Inputs) -> Candidates:
        for backend in _BACKENDS:
            for form, build in (("enable_gqa", _shared_heads), ("heads as rows", _heads_as_rows)):
                yield f"{backend}, {form}", lambda b=backend, f=build: _under(b, f(inputs, masked=False))  # type: ignore[misc]

    return Way(NO_MASK, candidates, exact=False)


def _under(backend: str, candidate: Candidate) -> Candidate:
    return replace(candidate, within=lambda: sdpa_kernel(_BACKENDS[backend]))


def _shared_heads(inputs: Inputs, masked: bool = True) -> Candidate:
    mask = inputs.visible[:, None] if masked else None

    def call(number: int) -> torch.Tensor:
        keys, values = inputs.caches[number]
        out = scaled_dot_product_attention(inputs.q, keys, values, attn_mask=mask, enable_gqa=inputs.groups > 1)
        return out.transpose(1, 2).contiguous()

    return Candidate(call, lambda: _dense_mask(inputs))


def _repeated_heads(inputs: Inputs) -> Candidate:
    mask = inputs.visible[:, None]

    def call(number: int) -> torch.Tensor:
        keys, values = (states.repeat_interleave(inputs.groups, dim=1) for states in inputs.caches[number])
        return scaled_dot_product_attention(inputs.q, keys, values, attn_mask=mask).transpose(1, 2).contiguous()

    return Candidate(call, lambda: _dense_mask(inputs))


def _heads_as_rows(inputs: Inputs, masked: bool = True) -> Candidate:
    batch, heads, nodes, dim = inputs.q.shape
    rows = (batch, heads // inputs.groups, inputs.groups * nodes, dim)

    def prepare() -> torch.Tensor | None:
        return _dense_mask(inputs).repeat(1, 1, inputs.groups, 1) if masked else None

    mask = prepare()

    def call(number: int) -> torch.Tensor:
        keys, values = inputs.caches[number]
        out = scaled_dot_product_attention(inputs.q.reshape(rows), keys, values, attn_mask=mask)
        return out.view(batch, heads, nodes, dim).transpose(1, 2).contiguous()

    return Candidate(call, prepare)


def _dense_mask(inputs: Inputs) -> torch.Tensor:
    """bool `[batch, 1, nodes, keys]` out of the ancestors, as a verification makes it once for all its layers."""
    prefix, ancestors = inputs.visible.split([inputs.prefix_len, inputs.nodes], dim=-1)
    return torch.cat([prefix, ancestors], dim=-1)[:, None]
