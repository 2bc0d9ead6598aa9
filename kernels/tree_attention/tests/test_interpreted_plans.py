"""Tiles and splits do not change the answer: small tiles and many splits, as no table chooses for cases this small."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import trees
from cases import Case, Inputs, batch_of
from hypothesis import given, settings
from hypothesis import strategies as st
from subject import module

pytestmark = pytest.mark.usefixtures("interpreted_launches")

Plan, Tiles = module("tuning").Plan, module("tuning").Tiles
kernel = module("kernel").tree_attention_kernel

_TALL = trees.tall(13)
_LONG = Case(batch_of(_TALL), prefix=119, kv_heads=1, group=3, dim=16, spare=20)
CASES = {
    "long prefix": _LONG,
    "a prefix of whole tiles": replace(_LONG, prefix=128),
    "more splits than tiles": replace(_LONG, prefix=20),
    "no prefix": replace(_LONG, prefix=0),
    "first splits padded away": replace(_LONG, pad=(77,)),
    "padded but for one key": replace(_LONG, pad=(118,)),
    "all splits padded away": replace(_LONG, pad=(119,)),
    "window over some splits": replace(_LONG, window=50),
    "window shorter than the tree is deep": replace(_LONG, window=3),
    "window and padding": replace(_LONG, window=60, pad=(70,)),
    "window that begins at a tile": replace(_LONG, window=119 - 64 + 1),
    "softcap, sinks, values of another width": replace(_LONG, softcap=2.0, sinks=True, value_dim=24),
    "padding, window and prefix length on the device": replace(
        _LONG, parents=batch_of(_TALL, trees.chain(13)), pad=(0, 90), window=70, prefix_on_device=True
    ),
    "many rows": replace(_LONG, parents=batch_of(trees.tall(65)), kv_heads=2, prefix=50),
}


def _plan(rows: int, keys: int, splits: int, tree_keys: int) -> object:
    return Plan(prefix=Tiles(rows, keys, 4, 1), tree=Tiles(16, tree_keys, 4, 1), splits=splits)


@pytest.mark.parametrize("plan", [(16, 16, 4, 16), (32, 32, 2, 32), (16, 32, 3, 16), (64, 16, 8, 32)], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_any_plan_gives_attention_by_definition(case: Case, plan: tuple[int, int, int, int]) -> None:
    inputs = case.inputs()
    inputs.check(_run(inputs, _plan(*plan)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_splits_in_half_precision(dtype: torch.dtype) -> None:
    inputs = replace(CASES["window and padding"], dtype=dtype).inputs()
    inputs.check(_run(inputs, _plan(16, 16, 4, 16)))


def test_two_runs_of_many_splits_agree_to_the_last_bit() -> None:
    inputs = _LONG.inputs()
    assert torch.equal(_run(inputs, _plan(16, 16, 4, 16)), _run(inputs, _plan(16, 16, 4, 16)))


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    nodes = draw(st.integers(1, 40))
    parents = [-1] + [draw(st.integers(0, node - 1)) for node in range(1, nodes)]
    prefix = draw(st.integers(0, 130))
    return Case(
        batch_of(parents),
        prefix=prefix,
        kv_heads=1,
        group=draw(st.integers(1, 3)),
        dim=draw(st.sampled_from((8, 16, 24))),
        pad=draw(st.none() | st.tuples(st.integers(0, prefix))),
        window=draw(st.none() | st.integers(1, 160)),
        softcap=draw(st.none() | st.just(3.0)),
        sinks=draw(st.booleans()),
        prefix_on_device=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


_PLANS = st.builds(
    _plan, st.sampled_from((16, 32)), st.sampled_from((16, 32, 64)), st.integers(1, 8), st.sampled_from((16, 32))
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(_cases(), _PLANS)
def test_any_tree_with_any_options_and_any_plan(case: Case, plan: object) -> None:
    inputs = case.inputs()
    inputs.check(_run(inputs, plan))


def _run(inputs: Inputs, plan: object) -> torch.Tensor:
    return inputs.run(partial(kernel, chosen=plan))
