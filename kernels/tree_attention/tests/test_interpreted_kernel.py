"""The Triton kernels through Triton's interpreter, on small cases, against attention by definition.

Collected only where TRITON_INTERPRET=1 was set before Python started; `tests/unit/test_kernel_interpreted.py` starts
such a process. The interpreter's time goes by programs and loop turns, so cases are small: few heads, 130 keys.
"""

from __future__ import annotations

from dataclasses import replace

import grid
import pytest
import torch
import trees
from cases import TOLERANCE, Case, batch_of
from subject import tree_attention

pytestmark = pytest.mark.usefixtures("interpreted_launches")

_TREE = trees.tall(11)
_SMALL = Case(batch_of(_TREE), prefix=30, kv_heads=1, dim=16, spare=40)
_PAIR = replace(_SMALL, parents=batch_of(_TREE, trees.chain(11)))

GROUPS = {f"group {group}": replace(_SMALL, group=group) for group in (1, 2, 3, 4, 7)}
DIMS = {f"head dim {dim}": replace(_SMALL, dim=dim) for dim in (8, 64, 80, 128, 256)} | {
    f"head dim {dim}, values {value_dim}": replace(_SMALL, dim=dim, value_dim=value_dim)
    for dim, value_dim in ((64, 80), (80, 16), (16, 128))
}
NODES = {
    f"{nodes} nodes": replace(_SMALL, parents=batch_of(trees.bushy(nodes)), group=1)
    for nodes in (1, 2, 31, 32, 33, 64, 65, 100)
} | {
    "chain": replace(_SMALL, parents=batch_of(trees.chain(65)), group=1),
    "star": replace(_SMALL, parents=batch_of(trees.star(65)), group=1),
    "several row tiles": replace(_SMALL, parents=batch_of(trees.tall(65)), group=3, kv_heads=2),
}
PREFIXES = {f"prefix of {prefix}": replace(_SMALL, prefix=prefix) for prefix in (0, 1, 31, 32, 64, 65, 119)} | {
    "nothing to spare": replace(_SMALL, spare=0),
    "nothing at all": replace(_SMALL, parents=batch_of([-1]), prefix=0, spare=0),
    "prefix length on the device": replace(_SMALL, prefix_on_device=True),
    "prefix length of 0 on the device": replace(_SMALL, prefix=0, prefix_on_device=True),
    "prefix length on the device, long": replace(_SMALL, prefix=90, prefix_on_device=True, spare=100),
}
PADDING = {
    "padding": replace(_SMALL, pad=(7,)),
    "padding beyond a tile": replace(_SMALL, prefix=110, pad=(70,)),
    "padding to a tile's end": replace(_SMALL, prefix=110, pad=(64,)),
    "prefix wholly padded": replace(_SMALL, pad=(30,)),
    "rows padded differently": replace(_PAIR, pad=(30, 4), kv_heads=2),
    "padding and prefix length on the device": replace(_PAIR, pad=(0, 29), prefix_on_device=True),
}
WINDOWS = {
    f"window of {window}": replace(_SMALL, window=window) for window in (1, 3, 29, 30, 31, 36, 10_000, 2**40)
} | {
    "window within a long prefix": replace(_SMALL, prefix=110, window=40),
    "window and padding": replace(_PAIR, window=25, pad=(2, 20)),
    "window shorter than two trees are deep": replace(_PAIR, window=4),
    "window of one, prefix wholly padded": replace(_SMALL, window=1, pad=(30,)),
    "window, depths unlike the ancestors": replace(
        _SMALL, window=6, depth=(tuple(2 * depth for depth in trees.depths(_TREE)),)
    ),
    "window, many nodes": replace(_SMALL, parents=batch_of(trees.tall(65)), window=9, group=1),
    "window, prefix length on the device": replace(_PAIR, window=12, prefix_on_device=True),
}
SCORES = {
    "scale": replace(_SMALL, scale=0.9),
    "softcap": replace(_SMALL, softcap=2.0, scale=1.0),
    "sinks": replace(_SMALL, sinks=True, group=3, kv_heads=2),
    "sinks without a prefix": replace(_SMALL, sinks=True, prefix=0),
    "sinks, prefix wholly padded": replace(_SMALL, sinks=True, pad=(30,)),
}
_DEPTHS = (tuple(trees.depths(_TREE)), tuple(range(11)))
LAYOUTS = {
    layout: replace(_PAIR, layout=layout, kv_heads=2, group=3, pad=(2, 28), sinks=True, window=7, depth=_DEPTHS)
    for layout in ("length before heads", "a slice")
}
EVERYTHING = Case(
    batch_of(trees.tall(33), trees.bushy(33)),
    prefix=60,
    kv_heads=2,
    group=3,
    dim=80,
    value_dim=96,
    pad=(0, 37),
    scale=0.2,
    window=40,
    softcap=5.0,
    sinks=True,
    layout="a slice",
    prefix_on_device=True,
)
ALL = GROUPS | DIMS | NODES | PREFIXES | PADDING | WINDOWS | SCORES | LAYOUTS | {"all at once": EVERYTHING}
HALVES = {name: ALL[name] for name in ("head dim 80", "65 nodes", "padding beyond a tile", "sinks", "all at once")}


@pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())
def test_kernel_is_attention_by_definition(case: Case) -> None:
    inputs = case.inputs()
    inputs.check(inputs.run(tree_attention))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", HALVES.values(), ids=HALVES.keys())
def test_kernel_in_half_precision(case: Case, dtype: torch.dtype) -> None:
    inputs = replace(case, dtype=dtype).inputs()
    inputs.check(inputs.run(tree_attention))


def test_two_runs_agree_to_the_last_bit() -> None:
    inputs = EVERYTHING.inputs()
    assert torch.equal(inputs.run(tree_attention), inputs.run(tree_attention))


def test_spare_keys_change_no_bit() -> None:
    answers = [replace(_SMALL, spare=spare).inputs().run(tree_attention) for spare in (0, 200)]
    assert torch.equal(*answers)


def test_a_row_that_sees_nothing_is_zero() -> None:
    inputs = replace(_SMALL, pad=(30,)).inputs()
    inputs.ancestors[:, 5] = 0
    out = inputs.run(tree_attention)
    assert not out[:, 5].any()
    others = [node for node in range(11) if node != 5]
    tolerance = TOLERANCE[torch.float32]
    torch.testing.assert_close(out[:, others].double(), inputs.expected[:, others], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("case", grid.ALL.values(), ids=grid.ALL.keys())
def test_kernel_on_the_reference_s_grid(case: Case) -> None:
    inputs = case.inputs()
    inputs.check(inputs.run(tree_attention))


def test_a_sink_of_no_weight_changes_nothing_and_is_no_nan() -> None:
    inputs = replace(_SMALL, pad=(30,)).inputs()
    inputs.ancestors[:, 5] = 0
    without = inputs.run(tree_attention)
    inputs.sinks = torch.full((2,), -torch.inf)
    assert torch.equal(inputs.run(tree_attention), without)


def test_both_kernels_run(interpreted_launches: list[str]) -> None:
    _SMALL.inputs().run(tree_attention)
    assert len(set(interpreted_launches)) == 2


def test_a_nan_that_is_seen_is_not_hidden() -> None:
    inputs = _SMALL.inputs()
    inputs.q[:, :, 3] = torch.nan
    out = inputs.run(tree_attention)
    assert out[:, 3].isnan().all()
    assert not out[:, [node for node in range(11) if node != 3]].isnan().any()
