"""The target's cache after a tree: exactly the accepted rows, in every kind of layer that can follow one."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, Qwen3Config, Qwen3NextConfig
from transformers.cache_utils import DynamicCache, StaticCache

from hf_eagle3.cache import check_cache, keep_path, recording

SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
WINDOW = 32
CONFIGS = {
    "full": LlamaConfig(**SIZES),
    "sliding": MistralConfig(**SIZES, sliding_window=WINDOW),
    "mixed": Qwen3Config(
        **SIZES, sliding_window=WINDOW, use_sliding_window=True, layer_types=["sliding_attention", "full_attention"]
    ),
}


def rows(count: int, first: int) -> torch.Tensor:
    """`[1, 1, count, 4]`, every entry telling its own position."""
    return (torch.arange(first, first + count)[:, None] * 10 + torch.arange(4)).float()[None, None]


def filled(kind: str, *lengths: int) -> DynamicCache:
    """A cache that has taken in so many positions, forward by forward; values are the negatives of the keys."""
    cache = DynamicCache(config=CONFIGS[kind])
    cache.activate_past_recording()
    seen = 0
    for length in lengths:
        for layer in range(len(cache.layers)):
            states = rows(length, seen) + 1000 * layer
            cache.update(states, -states, layer)
        seen += length
    return cache


@st.composite
def paths(draw: st.DrawFn, most: int = 12) -> tuple[int, int, list[int]]:
    """Committed positions, nodes of a tree after them, and a path through the tree."""
    committed, nodes = draw(st.integers(1, most)), draw(st.integers(1, 12))
    others = draw(st.sets(st.integers(1, nodes - 1))) if nodes > 1 else set()
    return committed, nodes, [0, *sorted(others)]


@pytest.mark.parametrize("kind", CONFIGS)
@settings(deadline=None, max_examples=40)
@given(case=paths())
def test_keeps_what_a_plain_gather_would(kind: str, case: tuple[int, int, list[int]]) -> None:
    committed, nodes, path = case
    cache = filled(kind, committed, nodes)
    before = copy.deepcopy(cache)
    keep_path(cache, committed, path)
    kept = [*range(committed), *(committed + node for node in path)]
    assert cache.get_seq_length() == len(kept)
    for layer, old in zip(cache.layers, before.layers, strict=True):
        assert torch.equal(layer.keys, old.keys[:, :, kept])
        assert torch.equal(layer.values, old.values[:, :, kept])
        assert layer.get_seq_length() == len(kept)


@pytest.mark.parametrize("kind", CONFIGS)
@settings(deadline=None, max_examples=30)
@given(case=paths(most=3 * WINDOW), following=st.integers(1, 5))
def test_goes_on_as_if_only_the_path_had_been_there(
    kind: str, case: tuple[int, int, list[int]], following: int
) -> None:
    """A second tree after the first: lengths, masks and contents as in a cache that never saw the dropped nodes."""
    committed, nodes, path = case
    cache, plain = filled(kind, committed, nodes), filled(kind, committed)
    keep_path(cache, committed, path)
    for layer in range(len(plain.layers)):
        states = torch.cat([rows(1, committed + node) for node in path], dim=2) + 1000 * layer
        plain.update(states, -states, layer)
    for one in (cache, plain):
        assert one.get_seq_length() == committed + len(path)
    for index, (ours, other) in enumerate(zip(cache.layers, plain.layers, strict=True)):
        assert ours.get_mask_sizes(following) == other.get_mask_sizes(following)
        states = rows(following, 500)
        mine, theirs = (one.update(states, -states, index) for one in (cache, plain))
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])


@settings(deadline=None, max_examples=60)
@given(case=paths(most=3 * WINDOW), recorded=st.booleans())
def test_a_window_keeps_its_last_rows(case: tuple[int, int, list[int]], recorded: bool) -> None:
    """As transformers' own `crop` leaves it, whether or not the prompt's rows were all kept."""
    committed, nodes, path = case
    cache = DynamicCache(config=CONFIGS["sliding"])
    for number, length in enumerate((committed, nodes)):
        if number or recorded:
            cache.activate_past_recording()
        cache.update(rows(length, number * committed), -rows(length, number * committed), 0)
    keep_path(cache, committed, path)
    kept = [*range(committed), *(committed + node for node in path)][-(WINDOW - 1) :]
    layer = cache.layers[0]
    assert torch.equal(layer.keys, rows(committed + nodes, 0)[:, :, kept])
    assert torch.equal(layer.values, -layer.keys)
    assert layer.get_seq_length() == committed + len(path)


@pytest.mark.parametrize("committed", [5, WINDOW - 1, WINDOW, 3 * WINDOW])
def test_a_forward_that_broke_off_inside_a_window(committed: int) -> None:
    """The layer has counted its nodes, and memory ran out before it had their rows."""
    cache = filled("sliding", committed)
    keep_path(cache, committed, [])
    before = [layer.keys.clone() for layer in cache.layers]
    cache.layers[0].cumulative_length += 7
    keep_path(cache, committed, [])
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
    assert {layer.get_seq_length() for layer in cache.layers} == {committed}


def test_a_copy_made_before_is_not_written_into() -> None:
    cache = filled("full", 4, 6)
    copied = copy.deepcopy(cache)
    keep_path(cache, 4, [0, 2, 5])
    assert torch.equal(copied.layers[0].keys, rows(10, 0))


def test_a_layer_that_holds_nothing_is_passed_over() -> None:
    """Layers that share another's keys and values stay empty."""
    cache = filled("full", 3, 4)
    cache.layers.append(copy.deepcopy(DynamicCache(config=CONFIGS["full"]).layers[0]))
    keep_path(cache, 3, [0, 3])
    assert cache.layers[0].keys.shape[2] == 5
    assert not cache.layers[-1].is_initialized


@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_that_follow_a_tree_are_accepted(kind: str) -> None:
    check_cache(filled(kind, 3), CONFIGS[kind])
    check_cache(DynamicCache(), CONFIGS[kind])


def test_caches_that_cannot_drop_a_row() -> None:
    config = CONFIGS["full"]
    for cache in (StaticCache(config=config, max_cache_len=8), DynamicCache(config=config, offloading=True)):
        with pytest.raises(ValueError, match="DynamicCache"):
            check_cache(cache, config)
    with pytest.raises(ValueError, match="tuple"):
        check_cache(((torch.zeros(1), torch.zeros(1)),), config)


def test_a_cache_without_the_layers_that_the_target_needs() -> None:
    """Layers are made as they are filled, so a user's empty cache says nothing: the target's config does."""
    with pytest.raises(ValueError, match="LinearAttention"):
        check_cache(DynamicCache(), Qwen3NextConfig(**SIZES, layer_types=["linear_attention", "full_attention"]))


@pytest.mark.parametrize("kind", CONFIGS)
def test_recording_ends_with_its_block(kind: str) -> None:
    cache = DynamicCache(config=CONFIGS[kind])
    sliding = [layer for layer in cache.layers if layer.is_sliding]
    with contextlib.suppress(KeyError), recording(cache):
        assert all(layer.record_past for layer in sliding)
        raise KeyError("whatever ends the block")
    assert not any(layer.record_past for layer in sliding)
