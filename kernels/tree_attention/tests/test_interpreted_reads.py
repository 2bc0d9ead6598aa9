"""What the kernels read: every address that the interpreter loads from lies in an element that may be read.

NaN where nothing may be read does not show this for keys: a score that is masked afterwards forgets what it came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import trees
from cases import Case, Inputs, batch_of
from subject import module
from triton.runtime.interpreter import InterpreterBuilder

pytestmark = pytest.mark.usefixtures("interpreted_launches")

_TREE = trees.tall(11)
# Slices of something larger, with many keys behind: what is read in error lies in the same storage.
_CASE = Case(batch_of(_TREE, trees.chain(11)), prefix=70, kv_heads=2, group=1, dim=24, spare=90, layout="a slice")
CASES = {
    "plain": _CASE,
    "one node": replace(_CASE, parents=batch_of([-1])),
    "no prefix": replace(_CASE, prefix=0),
    "33 nodes": replace(_CASE, parents=batch_of(trees.bushy(33)), prefix=10),
    "padded": replace(_CASE, pad=(5, 40)),
    "wholly padded": replace(_CASE, pad=(70, 70)),
    "window": replace(_CASE, window=25, pad=(5, 60)),
    "prefix length on the device": replace(_CASE, pad=(0, 33), prefix_on_device=True),
    "values of another width": replace(_CASE, dim=40, value_dim=16),
}


@pytest.fixture
def addresses_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[np.ndarray]]:
    """Addresses of all loads that were not masked."""
    read: list[np.ndarray] = []
    load = InterpreterBuilder.create_masked_load

    def noted(self: InterpreterBuilder, pointers: object, mask: object, *rest: object) -> object:
        read.append(pointers.data[mask.data.astype(bool)].ravel().astype(np.uint64))
        return load(self, pointers, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", noted)
    return read


@pytest.mark.parametrize("plan", [(16, 16, 3, 16), (32, 64, 1, 32)], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_nothing_is_read_that_may_not_be(
    case: Case, plan: tuple[int, int, int, int], addresses_read: list[np.ndarray]
) -> None:
    inputs, tiles = case.inputs(), module("tuning").Tiles
    rows, keys, splits, tree_keys = plan
    chosen = module("tuning").Plan(tiles(rows, keys, 4, 1), tiles(16, tree_keys, 4, 1), splits)
    inputs.check(inputs.run(partial(module("kernel").tree_attention_kernel, chosen=chosen)))
    read = np.unique(np.concatenate(addresses_read))
    for name, allowed in _readable(inputs).items():
        storage = getattr(inputs, name).untyped_storage()
        start, stop = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        inside = read[(read >= start) & (read < stop)]
        assert len(inside), f"nothing of {name} was read"
        assert np.isin(inside, allowed).all(), f"of {name}, what is outside of it or masked was read"


def _readable(inputs: Inputs) -> dict[str, np.ndarray]:
    """Addresses of q, and of the keys and values from the padding to the tree's last node."""
    case = inputs.case
    allowed = {"q": _addresses(inputs.q)}
    for name in ("k", "v"):
        rows = []
        for row, cache in enumerate(getattr(inputs, name)):
            live = slice(0 if case.pad is None else case.pad[row], case.prefix + case.nodes)
            rows.append(_addresses(cache[:, live]))
        allowed[name] = np.concatenate(rows)
    return allowed


def _addresses(view: torch.Tensor) -> np.ndarray:
    storage, size = view.untyped_storage(), view.element_size()
    numbers = torch.arange(storage.nbytes() // size)
    places = numbers.as_strided(view.shape, view.stride(), view.storage_offset()).reshape(-1).numpy()
    return places.astype(np.uint64) * np.uint64(size) + np.uint64(storage.data_ptr())
