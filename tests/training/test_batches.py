"""Batches: every conversation once an epoch, in bounds, repeatably; padded and packed tensors hold the same text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_eagle3.data.features import Example
from hf_eagle3.training.batches import GRAIN, Collator, Items, TokenBatches

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@settings(deadline=None, max_examples=100)
@given(LENGTHS, st.integers(16, 512), st.booleans(), st.integers(0, 3))
def test_every_example_comes_once_an_epoch(lengths: list[int], most: int, packed: bool, epoch: int) -> None:
    batches = TokenBatches(lengths, most, packed, seed=5)
    batches.set_epoch(epoch)
    taken = list(batches)
    assert len(taken) == len(batches)
    assert sorted(index for batch in taken for index, _ in batch) == list(range(len(lengths)))
    for batch in taken:
        sizes = [lengths[index] for index, _ in batch]
        tokens = sum(sizes) if packed else max(sizes) * len(sizes)
        assert tokens <= most or len(batch) == 1


@given(LENGTHS, st.booleans())
@settings(deadline=None, max_examples=50)
def test_an_epoch_is_repeatable_and_its_shapes_stay(lengths: list[int], packed: bool) -> None:
    first, again = (list(TokenBatches(lengths, 512, packed, seed=1)) for _ in range(2))
    assert first == again
    later = TokenBatches(lengths, 512, packed, seed=1)
    later.set_epoch(1)

    def shapes(batches: list[list[tuple[int, int]]]) -> list[list[int]]:
        return sorted(sorted(-(-lengths[index] // GRAIN) for index, _ in batch) for batch in batches)

    assert shapes(first) == shapes(list(later))


def test_epochs_and_seeds_differ() -> None:
    lengths = [20 + index % 7 for index in range(200)]
    batches = TokenBatches(lengths, 512, False, seed=1)
    zero = list(batches)
    batches.set_epoch(1)
    assert list(batches) != zero
    assert list(TokenBatches(lengths, 512, False, seed=2)) != zero
    assert len({seed for batch in zero for _, seed in batch}) == len(lengths)


@given(LENGTHS, st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_processes_share_an_epoch(lengths: list[int], processes: int) -> None:
    """In turns they take what one process would take, and all the same number of batches."""
    whole = list(TokenBatches(lengths, 128, False))
    shares = [list(TokenBatches(lengths, 128, False, rank=rank, processes=processes)) for rank in range(processes)]
    together = [batch for turn in zip(*shares, strict=True) for batch in turn]
    assert together[: len(whole)] == whole
    assert len(together) - len(whole) < processes


@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_well_filled(packed: bool) -> None:
    """Like goes with like: little of a batch is padding, or room left at its end."""
    generator = torch.Generator().manual_seed(0)
    lengths = (20 + 200 * torch.rand(1000, generator=generator)).int().tolist()
    filled = []
    for batch in TokenBatches(lengths, 2048, packed, seed=0):
        sizes = [lengths[index] for index, _ in batch]
        filled.append(sum(sizes) / (2048 if packed else max(sizes) * len(sizes)))
    assert sum(filled) / len(filled) > 0.9


def example(tokens: int, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    return Example(
        torch.randint(0, 64, (tokens,), generator=generator),
        torch.rand(tokens, generator=generator) < 0.6,
        torch.randn(tokens, 6, generator=generator),
        torch.randn(tokens, 2, generator=generator),
        torch.randint(-1, 64, (tokens,), generator=generator),
    )


def test_padded_and_packed_hold_the_same() -> None:
    items = [(example(5, 0), 11), (example(3, 1), 12), (example(7, 2), 13)]
    padded, packed = Collator(packed=False)(items), Collator(packed=True)(items)
    assert padded["features"].shape == (3, 7, 6)
    assert packed["features"].shape == (1, 15, 6)
    assert packed["documents"].tolist() == [[0] * 5 + [1] * 3 + [2] * 7]
    assert packed["positions"].tolist() == [[*range(5), *range(3), *range(7)]]
    assert padded["documents"][1].tolist() == [1, 1, 1, -1, -1, -1, -1]
    assert not padded["answers"][1, 3:].any()
    assert (padded["best"][1, 3:] == -1).all()
    real = padded["documents"] >= 0
    for name, values in padded.items():
        assert torch.equal(values[real], packed[name][0]), name


def test_draws_belong_to_the_example_not_to_the_batch() -> None:
    items = [(example(5, 0), 11), (example(7, 2), 13)]
    together, alone = Collator(packed=False)(items), Collator(packed=False)(items[1:])
    assert torch.equal(together["anchors"][1], alone["anchors"][0])
    assert not torch.equal(together["anchors"][0, :5], alone["anchors"][0, :5])


def test_ids_without_a_target_are_refused() -> None:
    rows = Items([{"input_ids": [1, 2, 3], "loss_mask": [False, True, True]}])
    with pytest.raises(ValueError, match="no target was given"):
        Collator(packed=False)([rows[0, 1]])
