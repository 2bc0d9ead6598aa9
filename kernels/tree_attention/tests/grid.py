"""The cases that every path through the kernel's package has to get right: the reference, and the kernels on a GPU."""

from __future__ import annotations

import trees
from cases import Case, batch_of

_TREE = trees.bushy(33)
_TALL = trees.tall(40)
_TALL_DEPTH = max(trees.depths(_TALL))
_TWO = batch_of(_TREE, trees.chain(33))
_SPREAD = tuple(2 * depth for depth in trees.depths(_TALL))

GROUPS = {f"group {group}": Case(batch_of(_TREE), group=group) for group in (1, 2, 3, 4, 7)}
DIMS = {f"head dim {dim}": Case(batch_of(_TREE), dim=dim) for dim in (8, 16, 64, 72, 80, 96, 128, 256)} | {
    f"head dim {dim}, values {value_dim}": Case(batch_of(_TREE), dim=dim, value_dim=value_dim)
    for dim, value_dim in ((64, 128), (192, 128), (80, 16), (16, 72), (256, 64))
}
NODES = {
    f"{nodes} nodes": Case(batch_of(trees.bushy(nodes)), dim=16) for nodes in (1, 2, 31, 32, 33, 60, 64, 65, 100, 256)
}
SHAPES = {
    "chain": Case(batch_of(trees.chain(65)), dim=16),
    "star": Case(batch_of(trees.star(65)), dim=16),
    "tall": Case(batch_of(trees.tall(65)), dim=16),
    "batch of four trees": Case(batch_of(trees.bushy(40), trees.chain(40), trees.star(40), trees.tall(40)), dim=16),
    "one key and value head": Case(batch_of(_TREE), kv_heads=1, group=8),
}
PREFIXES = {
    f"prefix of {prefix}": Case(batch_of(_TREE), prefix=prefix) for prefix in (0, 1, 15, 16, 63, 64, 65, 300)
} | {
    "prefix of 0, one node": Case(batch_of([-1]), prefix=0),
    "nothing to spare": Case(batch_of(_TREE), spare=0),
    "one node, nothing to spare": Case(batch_of([-1]), spare=0),
    "much to spare": Case(batch_of(_TREE), spare=300),
    "prefix length on the device": Case(batch_of(_TREE), prefix_on_device=True, spare=64),
    "prefix length of 0 on the device": Case(batch_of(_TREE), prefix=0, prefix_on_device=True, spare=64),
}
PADDING = {
    "no padding, said so": Case(batch_of(_TREE), pad=(0,)),
    "padding of one": Case(batch_of(_TREE), pad=(1,)),
    "padding beyond a tile": Case(batch_of(_TREE), prefix=200, pad=(131,)),
    "all but one padded": Case(batch_of(_TREE), pad=(39,)),
    "prefix wholly padded": Case(batch_of(_TREE), pad=(40,)),
    "rows padded differently": Case(batch_of(_TREE, _TREE, _TREE), pad=(0, 17, 40)),
    "padding and prefix length on the device": Case(_TWO, pad=(5, 33), prefix_on_device=True, spare=64),
    "padding of nothing": Case(batch_of(_TREE), prefix=0, pad=(0,)),
}
_EDGES = (1, 2, _TALL_DEPTH - 1, _TALL_DEPTH, _TALL_DEPTH + 1, 39, 40, 41, 40 + _TALL_DEPTH, 10_000, 2**31, 2**40)
WINDOWS = {f"window of {window}": Case(batch_of(_TALL), window=window) for window in _EDGES} | {
    "window over a long prefix": Case(batch_of(_TALL), prefix=300, window=130),
    "window that begins in the padding": Case(batch_of(_TALL, _TALL), window=50, pad=(10, 25)),
    "window of one, prefix wholly padded": Case(batch_of(_TALL), window=1, pad=(40,)),
    "window, depths given": Case(batch_of(_TALL), window=12, depth=(tuple(trees.depths(_TALL)),)),
    "window, depths unlike the ancestors": Case(batch_of(_TALL), window=12, depth=(_SPREAD,)),
    "window, two trees, prefix length on the device": Case(
        batch_of(_TALL, trees.bushy(40)), window=9, prefix_on_device=True, spare=64
    ),
}
SCORES = {
    "scale": Case(batch_of(_TREE), scale=0.3),
    "softcap": Case(batch_of(_TREE), softcap=2.0, scale=1.0),
    "softcap far away": Case(batch_of(_TREE), softcap=50.0),
    "sinks": Case(batch_of(_TREE), sinks=True),
    "sinks without a prefix": Case(batch_of(_TREE), prefix=0, sinks=True),
    "sinks, prefix wholly padded": Case(batch_of(_TREE), pad=(40,), sinks=True),
    "sinks and softcap": Case(batch_of(_TREE), sinks=True, softcap=2.0, scale=1.0),
}
_DEPTHS = (tuple(trees.depths(_TREE)), tuple(range(33)))
LAYOUTS = {
    layout: Case(_TWO, layout=layout, pad=(3, 0), group=3, sinks=True, window=30, depth=_DEPTHS)
    for layout in ("length before heads", "a slice")
}
EVERYTHING = {
    "all at once": Case(
        batch_of(trees.tall(65), trees.bushy(65)),
        prefix=150,
        group=3,
        dim=80,
        value_dim=96,
        pad=(0, 77),
        scale=0.2,
        window=70,
        softcap=5.0,
        sinks=True,
        layout="a slice",
        prefix_on_device=True,
    )
}
ALL = GROUPS | DIMS | NODES | SHAPES | PREFIXES | PADDING | WINDOWS | SCORES | LAYOUTS | EVERYTHING
