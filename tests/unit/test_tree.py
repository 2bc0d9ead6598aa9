"""Draft trees: what they say of their nodes, against slow and plain Python."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_eagle3 import DraftTree, TreeShape


@st.composite
def trees(draw: st.DrawFn, max_nodes: int = 12, max_rows: int = 3) -> DraftTree:
    """Any batch of trees: each node but the root hangs under some earlier one."""
    nodes, rows = draw(st.integers(1, max_nodes)), draw(st.integers(1, max_rows))
    parents = [[-1] + [draw(st.integers(0, node - 1)) for node in range(1, nodes)] for _ in range(rows)]
    tokens = [[draw(st.integers(0, 9)) for _ in range(nodes)] for _ in range(rows)]
    scores = []
    for row in parents:
        cumulative = [0.0]
        for parent in row[1:]:
            cumulative.append(cumulative[parent] - draw(st.integers(0, 4)) / 4)
        scores.append(cumulative)
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(scores))


def lineage(parents: list[int], node: int) -> list[int]:
    """The nodes from the root to `node`, both included."""
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]


@settings(deadline=None, max_examples=60)
@given(trees())
def test_ancestors_and_depths(tree: DraftTree) -> None:
    rows, nodes = tree.tokens.shape
    assert tree.num_nodes == nodes
    assert tree.ancestors.dtype == torch.bool
    assert tree.ancestors.shape == (rows, nodes, nodes)
    for row in range(rows):
        parents = tree.parents[row].tolist()
        for node in range(nodes):
            path = lineage(parents, node)
            assert tree.ancestors[row, node].nonzero().flatten().tolist() == sorted(path)
            assert int(tree.depths[row, node]) == len(path) - 1


@settings(deadline=None, max_examples=60)
@given(trees())
def test_children_come_in_the_order_of_their_making(tree: DraftTree) -> None:
    for row in range(len(tree.tokens)):
        parents = tree.parents[row].tolist()
        expected = [[child for child, parent in enumerate(parents) if parent == node] for node in range(len(parents))]
        assert tree.children(row) == expected


@settings(deadline=None, max_examples=60)
@given(trees())
def test_best_chain_follows_the_likeliest_child(tree: DraftTree) -> None:
    for row in range(len(tree.tokens)):
        parents, scores = tree.parents[row].tolist(), tree.log_probs[row].tolist()
        chain = tree.best_chain(row)
        assert chain == lineage(parents, chain[-1]), "a chain from the root down, no node left out"
        assert chain[-1] not in parents, "down to a leaf"
        for node, chosen in pairwise(chain):
            siblings = [child for child, parent in enumerate(parents) if parent == node]
            assert scores[chosen] == max(scores[child] for child in siblings)


@settings(deadline=None, max_examples=40)
@given(trees(), st.integers(1, 12))
def test_any_prefix_of_the_nodes_is_a_tree(tree: DraftTree, kept: int) -> None:
    kept = min(kept, tree.num_nodes)
    prefix = DraftTree(tree.tokens[:, :kept], tree.parents[:, :kept], tree.log_probs[:, :kept])
    assert torch.equal(prefix.ancestors, tree.ancestors[:, :kept, :kept])
    assert torch.equal(prefix.depths, tree.depths[:, :kept])


@settings(deadline=None, max_examples=40)
@given(trees(max_rows=4))
def test_rows_do_not_see_each_other(tree: DraftTree) -> None:
    for row in range(len(tree.tokens)):
        alone = DraftTree(*(part[row : row + 1] for part in (tree.tokens, tree.parents, tree.log_probs)))
        assert torch.equal(alone.ancestors[0], tree.ancestors[row])
        assert torch.equal(alone.depths[0], tree.depths[row])
        assert alone.best_chain(0) == tree.best_chain(row)


def test_root_only() -> None:
    tree = DraftTree.root_only(torch.tensor([7, 3]))
    assert tree.tokens.tolist() == [[7], [3]]
    assert tree.parents.tolist() == [[-1], [-1]]
    assert tree.log_probs.tolist() == [[0.0], [0.0]]
    assert tree.log_probs.dtype == torch.float32
    assert tree.children(1) == [[]]
    assert tree.best_chain(0) == [0]
    assert tree.depths.tolist() == [[0], [0]]


@pytest.mark.parametrize("value", [-0.1, 1.5, "0.4", None, True, float("nan")])
def test_a_threshold_is_a_probability(value: Any) -> None:
    with pytest.raises(ValueError, match="`assistant_confidence_threshold` is"):
        TreeShape(4, 2, 2, value)


def test_three_tensors_of_one_shape() -> None:
    tokens, parents = torch.tensor([[1, 2]]), torch.tensor([[-1, 0]])
    with pytest.raises(ValueError, match=r"\[batch, nodes\]"):
        DraftTree(tokens, parents, torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"\[batch, nodes\]"):
        DraftTree(tokens[0], parents[0], torch.zeros(2))


@pytest.mark.parametrize("name", ["num_assistant_tokens", "tree_depth", "tree_top_k"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "8", None, True])
def test_a_shape_is_made_of_positive_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is"):
        TreeShape(**{"num_assistant_tokens": 4, "tree_depth": 2, "tree_top_k": 2, name: value})
