"""The target's cache: which kinds can follow a tree, and keeping the accepted path of one.

Knows transformers' caches and nothing else of this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

GROWING_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def check_cache(cache: object, config: PreTrainedConfig) -> None:
    """Refuse a cache that cannot drop the rejected nodes of a tree.

    Args:
        cache: what `generate` prepared or the user passed.
        config: the target's; it may ask for layers that the user's cache does not have.

    Raises:
        ValueError: naming the cache and what to use instead.
    """
    if not isinstance(cache, Cache) or getattr(cache, "offloading", False):
        what = "an offloaded cache" if isinstance(cache, Cache) else type(cache).__name__
        raise ValueError(
            f"Got {what} as the target's cache, but a draft tree needs a `DynamicCache`; pass one, or none at all."
        )
    for layer in [*cache.layers, *DynamicCache(config=config.get_text_config(decoder=True)).layers]:
        if type(layer) not in (*GROWING_LAYERS, DummyLayer):
            raise ValueError(
                f"The target's cache has layers of type {type(layer).__name__}, from which rejected draft tokens "
                "cannot be dropped; use a target with plain attention and a `DynamicCache` (no "
                "`cache_implementation`)."
            )


@contextmanager
def recording(cache: Cache) -> Iterator[None]:
    """Let sliding layers keep what slides out, so that a tree can be taken back; afterwards they are as before."""
    layers: list[Any] = [layer for layer in cache.layers if getattr(layer, "is_sliding", False)]
    before = [layer.record_past for layer in layers]
    cache.activate_past_recording()
    try:
        yield
    finally:
        for layer, recorded in zip(layers, before, strict=True):
            layer.record_past = recorded


def keep_path(cache: Cache, prefix_len: int, path: list[int]) -> None:
    """Keep the rows of a path of tree nodes, drop the other nodes' (in place).

    Args:
        cache: holds `prefix_len` committed positions (of them a sliding layer the last ones that its window shows),
            then one row for each node.
        path: nodes kept, ascending, root first; they become positions `prefix_len` onwards.
    """
    in_place = next((place for place, node in enumerate(path) if node != place), len(path))
    moved = torch.tensor(path[in_place:], dtype=torch.long)
    rows: dict[tuple[torch.device, int], torch.Tensor] = {}
    layers: list[Any] = cache.layers  # of the growing kinds: `check_cache` has seen them
    for layer in layers:
        if isinstance(layer, DummyLayer) or not layer.is_initialized:
            continue  # a layer that shares another's keys and values
        held = _held(layer, prefix_len)
        if len(moved):
            device = layer.keys.device
            index = rows.setdefault((device, held), (moved + held).to(device))
            for states in (layer.keys, layer.values):
                states[:, :, held + in_place : held + len(path)] = states.index_select(2, index)
        end = held + len(path)
        first = max(0, end - layer.sliding_window + 1) if layer.is_sliding else 0
        layer.keys, layer.values = layer.keys[:, :, first:end], layer.values[:, :, first:end]
        if layer.is_sliding:
            layer.cumulative_length = prefix_len + len(path)


def _held(layer: Any, prefix_len: int) -> int:
    """How many of the committed positions have rows in a layer; its nodes' rows come behind them."""
    if not layer.is_sliding:
        return prefix_len
    rows, nodes = layer.keys.shape[2], layer.get_seq_length() - prefix_len
    # A forward that broke off inside this layer has counted its nodes and not stored them.
    return rows - nodes if rows - nodes >= min(prefix_len, layer.sliding_window - 1) else rows
