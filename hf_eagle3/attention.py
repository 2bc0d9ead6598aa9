"""The bridge to transformers' attention: how a draft tree reaches it, and `eagle3_tree`, which takes trees packed.

Any 4D `attention_mask` passes every mask factory of transformers untouched. What it has to hold differs by back end:
sdpa wants a bool, eager adds a float, and `eagle3_tree`, our own implementation, takes an int32 tensor of a few words
for each node, in which everything about the tree travels to every layer, whatever its window. Called without such a
tensor it is sdpa (or eager, where a model has no sdpa), so a model may keep it for all its calls.

Knows back ends' conventions, not models.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from .tree import DraftTree
from .tree_kernel import tree_kernel

EAGLE3_TREE = "eagle3_tree"
SUPPORTED_BACKENDS = ("sdpa", "eager", EAGLE3_TREE)


def backend_of(target: PreTrainedModel) -> str:
    """The attention implementation that the target's decoder runs.

    Raises:
        ValueError: if it cannot express a tree.
    """
    backend = str(target.config.get_text_config(decoder=True)._attn_implementation)
    if backend not in SUPPORTED_BACKENDS:
        raise ValueError(
            f"The target runs attention implementation {backend!r}, which cannot express a draft tree; load it with "
            f'`attn_implementation="{EAGLE3_TREE}"`, `"sdpa"` or `"eager"`.'
        )
    return backend


# ---------------------------------------------------------------------- masks


def tree_mask(
    tree: DraftTree, committed: torch.Tensor, backend: str, dtype: torch.dtype, holes: bool = False
) -> torch.Tensor:
    """The mask of one target forward over a tree.

    Args:
        tree: the nodes, `[batch, nodes]`.
        committed: bool `[batch, cached]`, which cached positions are real (not padding).
        backend: `"sdpa"` takes a bool mask, `"eager"` adds a float one (a bool mask there is silently wrong),
            `"eagle3_tree"` takes the tree packed.
        dtype: of the target's activations.
        holes: whether some padding is not on the left, which only a dense mask can say; `"eagle3_tree"` then gets the
            one of sdpa.

    Returns:
        `[batch, 1, nodes, cached + nodes]`, or packed, int32 `[batch, 1, nodes, ceil(nodes / 32) + 3]`.
    """
    if backend == EAGLE3_TREE and not holes:
        return pack_tree(tree, committed)
    ancestors = tree.ancestors.to(committed.device)
    visible = torch.cat((committed[:, None].expand(-1, tree.num_nodes, -1), ancestors), dim=-1)[:, None]
    return _additive(visible, dtype) if backend == "eager" else visible


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where something is seen, the lowest number where not: what eager attention adds, as transformers makes it."""
    return torch.where(visible, torch.zeros((), dtype=dtype, device=visible.device), torch.finfo(dtype).min)


def has_holes(padding: torch.Tensor) -> bool:
    """Whether a mask of a prompt, `[batch, length]`, has padding anywhere but on the left. Waits for the device."""
    real = padding.bool()
    return bool((real[:, :-1] & ~real[:, 1:]).any())


# ---------------------------------------------------------------------- a packed tree

# Columns behind the words: the node's depth, the masked positions on the left, the committed positions of the cache.
EXTRA_COLUMNS = 3


def packed_columns(nodes: int) -> int:
    """Width of a packed tree of so many nodes."""
    return -(-nodes // 32) + EXTRA_COLUMNS


def pack_tree(tree: DraftTree, committed: torch.Tensor) -> torch.Tensor:
    """A tree over a cache, for every layer of a target at once.

    Args:
        tree: `[batch, nodes]`.
        committed: bool `[batch, cached]`; padding on the left only.

    Returns:
        int32 `[batch, 1, nodes, ceil(nodes / 32) + 3]`, on `committed`'s device.
    """
    device = committed.device
    # On the CPU, where the tree's parents are read anyway: so few bits are many small operations on a device.
    words = tree_kernel().pack_ancestors(tree.host_parents).to(device, non_blocking=True)
    depths = tree.depths.to(device, torch.int32)[..., None]
    pad = (~committed).sum(-1, dtype=torch.int32)
    prefix = torch.full_like(pad, committed.shape[1])
    cached = torch.stack((pad, prefix), dim=-1)[:, None].expand(-1, tree.num_nodes, -1)
    return torch.cat((words, depths, cached), dim=-1)[:, None]


def is_packed_tree(attention_mask: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    """Whether a mask is a packed tree: sdpa takes bools and floats only, so that no ordinary mask is int32."""
    return attention_mask is not None and attention_mask.dim() == 4 and attention_mask.dtype == torch.int32


# ---------------------------------------------------------------------- the attention function


def eagle3_tree(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of one layer, as transformers calls it: over a packed tree, or as it would be without us.

    Args:
        query (`[batch, heads, nodes, head_dim]`): One row for each node of the tree.
        key, value (`[batch, kv_heads, length, head_dim]`): What the layer's cache gives: the committed positions, or
            the last ones that fit into its window, and then the nodes.
        attention_mask: a packed tree, or any mask that sdpa takes.
        kwargs: of them a tree knows `sliding_window`, `softcap` and `s_aux` (sinks, `[heads]`).

    Returns:
        `[batch, nodes, heads, head_dim]`, and the weights where eager attention gave them.

    Raises:
        ValueError: if a tree is asked for what its kernel does not do.
    """
    if not is_packed_tree(attention_mask):
        return _ordinary(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    nodes, window = query.shape[2], kwargs.get("sliding_window")
    _refuse(nodes, attention_mask, dropout, kwargs)
    if (seen := _seen) is not None:
        seen.append((module, window))
    packed = attention_mask[:, 0]
    words = packed.shape[-1] - EXTRA_COLUMNS
    depth, pad, prefix = packed[..., words], packed[:, 0, words + 1], packed[:, 0, words + 2]
    held = key.shape[2] - nodes
    if window is not None and held < window:
        # Its cache may hold the last committed positions only: padding is counted from the first one that it holds.
        pad = (pad - (prefix - held)).clamp(min=0)
    out = tree_kernel().tree_attention(
        query,
        key,
        value,
        packed[..., :words],
        prefix_len=held,
        pad=pad,
        scale=scaling,
        window=window,
        depth=depth,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    return out, None


def _refuse(nodes: int, packed: torch.Tensor, dropout: float, kwargs: dict[str, Any]) -> None:
    if packed.shape[2:] != (nodes, packed_columns(nodes)):
        raise ValueError(
            f"{EAGLE3_TREE} got a packed tree of shape {tuple(packed.shape)} for {nodes} query rows, which takes "
            f"[batch, 1, {nodes}, {packed_columns(nodes)}]; an int32 mask of four dimensions is a tree, so give any "
            "other mask as a bool."
        )
    asked = ["position_bias"] if kwargs.get("position_bias") is not None else []
    asked += ["output_attentions"] if kwargs.get("output_attentions") else []
    asked += ["dropout"] if dropout > 0 else []
    if asked:
        raise ValueError(
            f"{EAGLE3_TREE} attends a draft tree without {' and '.join(asked)}, which this target asks for; load it "
            'with `attn_implementation="eager"`, and call `eval()`.'
        )


# ---------------------------------------------------------------------- ordinary calls


def _ordinary(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the layer computes without us: sdpa, or eager where the model has no sdpa, or sdpa not what it asks for."""
    more = kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None
    which = (type(module), more)
    if which not in _EAGER:
        _EAGER[which] = _own_eager(*which)
    eager = _EAGER[which]
    if eager is None:
        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    causal = kwargs.get("is_causal")
    if mask is None and query.shape[2] > 1 and (getattr(module, "is_causal", True) if causal is None else causal):
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is not None and mask.dtype == torch.bool:
        mask = _additive(mask, query.dtype)
    return eager(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)


# A dict and no `functools.cache`, about which `torch.compile` would warn.
_EAGER: dict[tuple[type[nn.Module], bool], Callable[..., Any] | None] = {}


def _own_eager(attention: type[nn.Module], more: bool) -> Callable[..., Any] | None:
    """The `eager_attention_forward` of the file that a layer's class is from, if ordinary calls are to take it.

    Args:
        attention: class of the layer.
        more: whether it asks for more than sdpa does (soft-capping, sinks).
    """
    for cls in attention.__mro__:
        file = sys.modules.get(cls.__module__)
        eager = getattr(file, "eager_attention_forward", None)
        if eager is not None:
            return eager if more or not _has_sdpa(file) else None
    if more:
        raise ValueError(
            f"{attention.__name__} caps its scores or has sinks, but the eager attention that knows how was not found "
            'beside it; load the model with `attn_implementation="eager"`.'
        )
    return None


def _has_sdpa(file: Any) -> bool:
    """Whether a modeling file's models support sdpa, by their own word."""
    classes = (cls for cls in vars(file).values() if inspect.isclass(cls) and cls.__module__ == file.__name__)
    models: list[Any] = [cls for cls in classes if issubclass(cls, PreTrainedModel)]
    return not models or any(model._supports_sdpa for model in models)


# Configs whose ordinary masks stay those of eager attention, by their `id`.
_ADDITIVE: set[int] = set()


def keep_additive_masks(config: PreTrainedConfig) -> None:
    """Make ordinary masks for a config as eager attention takes them. A forward in another thread may begin with one
    implementation and end with the other: eager would add a bool mask, silently, and `eagle3_tree` takes both."""
    if id(config) not in _ADDITIVE:
        _ADDITIVE.add(id(config))
        weakref.finalize(config, _ADDITIVE.discard, id(config))


def eagle3_tree_mask(*args: Any, config: PreTrainedConfig | None = None, **kwargs: Any) -> torch.Tensor | None:
    """The mask of an ordinary call, made as transformers asks for it: sdpa's."""
    make = eager_mask if _ADDITIVE and id(config) in _ADDITIVE else sdpa_mask
    return make(*args, config=config, **kwargs)


# ---------------------------------------------------------------------- what layers tell

_seen: list[tuple[nn.Module, int | None]] | None = None
_SEEN_LOCK = threading.Lock()


@contextmanager
def listening(target: PreTrainedModel) -> Iterator[dict[int, int | None]]:
    """Note which of the target's layers attend trees by `eagle3_tree`, and the window that each asks for.

    Yields:
        layer index -> window, filled when the block is left.
    """
    global _seen
    heard: dict[int, int | None] = {}
    with _SEEN_LOCK:
        seen: list[tuple[nn.Module, int | None]] = []
        _seen = seen
        try:
            yield heard
        finally:
            _seen = None
    own = set(target.modules())  # other threads may be running other targets
    heard |= {getattr(module, "layer_idx", -1): window for module, window in seen if module in own}


def register() -> None:
    """Teach transformers the name; again and again changes nothing, and so does never using it."""
    AttentionInterface.register(EAGLE3_TREE, eagle3_tree)
    AttentionMaskInterface.register(EAGLE3_TREE, eagle3_tree_mask)
