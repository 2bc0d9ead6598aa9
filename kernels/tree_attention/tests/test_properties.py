"""What holds for every tree: its packing, what a chain is, what the order of nodes may change, what may not matter."""

from __future__ import annotations

from dataclasses import replace

import grid
import oracle
import pytest
import torch
import trees
from cases import TOLERANCE, Case, Inputs, batch_of
from hypothesis import given, settings
from hypothesis import strategies as st
from subject import pack_ancestors, tree_attention

_FEW = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def _parents(draw: st.DrawFn, largest: int = 100) -> list[int]:
    nodes = draw(st.integers(1, largest))
    return [-1] + [draw(st.integers(0, node - 1)) for node in range(1, nodes)]


@st.composite
def _batches(draw: st.DrawFn) -> list[list[int]]:
    first = draw(_parents())
    others = draw(st.integers(0, 2))
    return [first] + [[-1] + [draw(st.integers(0, node - 1)) for node in range(1, len(first))] for _ in range(others)]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    parents = draw(_parents(largest=40))
    prefix = draw(st.integers(0, 60))
    return Case(
        batch_of(parents),
        prefix=prefix,
        dim=16,
        pad=draw(st.none() | st.tuples(st.integers(0, prefix))),
        window=draw(st.none() | st.integers(1, 120)),
        softcap=draw(st.none() | st.just(3.0)),
        sinks=draw(st.booleans()),
        prefix_on_device=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def _bit(words: torch.Tensor, row: int, node: int, other: int) -> bool:
    return bool(int(words[row, node, other // 32]) & 0xFFFFFFFF & (1 << (other % 32)))


@_FEW
@given(_batches())
def test_words_say_who_is_an_ancestor_of_whom(batch: list[list[int]]) -> None:
    words = pack_ancestors(torch.tensor(batch))
    nodes = len(batch[0])
    assert words.dtype == torch.int32
    assert words.shape == (len(batch), nodes, -(-nodes // 32))
    assert torch.equal(words, trees.words(batch))
    for row, parents in enumerate(batch):
        for node in range(nodes):
            said = [other for other in range(32 * words.shape[-1]) if _bit(words, row, node, other)]
            assert said == trees.ancestors(parents, node)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_parents_may_be_any_integers(dtype: torch.dtype) -> None:
    parents = trees.bushy(65)
    assert torch.equal(pack_ancestors(torch.tensor([parents], dtype=dtype)), trees.words([parents]))


@pytest.mark.parametrize("nodes", [1, 31, 32, 33, 64, 65, 256])
@pytest.mark.parametrize("make", [trees.chain, trees.star, trees.tall], ids=lambda make: make.__name__)
def test_words_at_their_borders(make: type[trees.chain], nodes: int) -> None:
    parents = make(nodes)
    assert torch.equal(pack_ancestors(torch.tensor([parents])), trees.words([parents]))


def test_packing_takes_parents_of_any_strides() -> None:
    batch = [trees.bushy(40, seed) for seed in range(3)]
    columns = torch.tensor(batch).T.contiguous().T
    assert torch.equal(pack_ancestors(columns), trees.words(batch))


@pytest.mark.parametrize(("prefix", "nodes"), [(0, 1), (0, 33), (50, 1), (50, 64), (129, 65)])
def test_a_chain_is_causal_attention(prefix: int, nodes: int) -> None:
    inputs = Case(batch_of(trees.chain(nodes)), prefix=prefix, group=1, kv_heads=4).inputs()
    live = slice(0, prefix + nodes)
    whole = torch.cat([torch.zeros(1, 4, prefix, 64), inputs.q], dim=2)
    causal = torch.nn.functional.scaled_dot_product_attention(
        whole, inputs.k[:, :, live], inputs.v[:, :, live], is_causal=True
    )
    torch.testing.assert_close(inputs.run(tree_attention), causal[:, :, prefix:].transpose(1, 2), rtol=1e-5, atol=1e-5)


@_FEW
@given(_cases(), st.integers(0, 1000))
def test_the_order_of_nodes_orders_the_rows(case: Case, seed: int) -> None:
    inputs = case.inputs()
    order = trees.another_order(inputs.parents[0], seed)
    tree_keys = [case.prefix + node for node in order]
    keys = [*range(case.prefix), *tree_keys, *range(case.prefix + case.nodes, inputs.k.shape[2])]
    words = trees.words([trees.reorder(inputs.parents[0], order)])
    moved = tree_attention(inputs.q[:, :, order], inputs.k[:, :, keys], inputs.v[:, :, keys], words, **inputs.options)
    torch.testing.assert_close(moved, inputs.run(tree_attention)[:, order], rtol=1e-5, atol=1e-5)


@_FEW
@given(_cases())
def test_any_tree_with_any_options_is_attention_by_definition(case: Case) -> None:
    inputs = case.inputs()
    inputs.check(inputs.run(tree_attention))


@_FEW
@given(_cases(), st.data())
def test_keys_that_a_node_does_not_see_do_not_matter_to_it(case: Case, data: st.DataObject) -> None:
    inputs = case.inputs()
    before = inputs.run(tree_attention)
    node = data.draw(st.integers(0, case.nodes - 1))
    hidden = _hidden_keys(inputs, node)
    inputs.k[:, :, hidden] = 1e3 * torch.randn_like(inputs.k[:, :, hidden])
    inputs.v[:, :, hidden] = 1e3 * torch.randn_like(inputs.v[:, :, hidden])
    after = inputs.run(tree_attention)
    torch.testing.assert_close(after[:, node], before[:, node], rtol=1e-6, atol=1e-6)


@_FEW
@given(_cases(), st.integers(0, 200))
def test_spare_keys_change_nothing(case: Case, spare: int) -> None:
    answers = [replace(case, spare=spare).inputs().run(tree_attention) for spare in (0, spare)]
    torch.testing.assert_close(*answers, rtol=1e-6, atol=1e-6)


def test_rows_of_a_batch_do_not_meet() -> None:
    inputs = grid.EVERYTHING["all at once"].inputs()
    together = inputs.run(tree_attention)
    for row in range(2):
        alone = slice(row, row + 1)
        options = inputs.options | {"pad": inputs.options["pad"][alone]}
        out = tree_attention(inputs.q[alone], inputs.k[alone], inputs.v[alone], inputs.ancestors[alone], **options)
        torch.testing.assert_close(out, together[alone], rtol=1e-6, atol=1e-6)


def test_depths_left_out_are_the_numbers_of_ancestors() -> None:
    inputs = grid.WINDOWS["window, two trees, prefix length on the device"].inputs()
    depth = torch.tensor([trees.depths(parents) for parents in inputs.parents])
    given_depths = tree_attention(inputs.q, inputs.k, inputs.v, inputs.ancestors, depth=depth, **inputs.options)
    assert torch.equal(given_depths, inputs.run(tree_attention))


def test_a_row_that_sees_nothing_is_zero() -> None:
    """Words without a node's own bit are no tree, but a padded batch has them, and NaN there would spread."""
    inputs = Case(batch_of(trees.bushy(33)), prefix=20, pad=(20,), dim=16).inputs()
    inputs.ancestors[:, 5] = 0
    out = inputs.run(tree_attention)
    assert not out[:, 5].any()
    others = [node for node in range(33) if node != 5]
    torch.testing.assert_close(out[:, others].double(), inputs.expected[:, others], **_close(torch.float32))


def test_a_nan_that_is_seen_is_not_hidden() -> None:
    """A model that has gone wrong must not look as if it had not: zeros are for nodes that see nothing."""
    inputs = Case(batch_of(trees.star(5)), prefix=20, dim=16).inputs()
    inputs.q[:, :, 3] = torch.nan
    out = inputs.run(tree_attention)
    assert out[:, 3].isnan().all()
    assert not out[:, [0, 1, 2, 4]].isnan().any()


def test_the_oracle_knows_plain_attention() -> None:
    """The oracle itself, where torch can say the same: one tree as a dense mask."""
    inputs = Case(batch_of(trees.bushy(33)), spare=0).inputs()
    mask = torch.zeros(33, 40 + 33, dtype=torch.bool)
    for node in range(33):
        seen = oracle.visible_keys(inputs.parents[0], node, 0, 40, trees.depths(inputs.parents[0]), None)
        mask[node, seen] = True
    assert mask[:, :40].all()
    dense = torch.nn.functional.scaled_dot_product_attention(
        inputs.q.double(), inputs.k.double(), inputs.v.double(), attn_mask=mask, enable_gqa=True
    )
    torch.testing.assert_close(inputs.expected, dense.transpose(1, 2), rtol=1e-12, atol=1e-12)


def _hidden_keys(inputs: Inputs, node: int) -> list[int]:
    case = inputs.case
    first = 0 if case.pad is None else case.pad[0]
    depth = trees.depths(inputs.parents[0])
    seen = set(oracle.visible_keys(inputs.parents[0], node, first, case.prefix, depth, case.window))
    return [key for key in range(inputs.k.shape[2]) if key not in seen]


def _close(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
