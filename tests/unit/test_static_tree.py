"""Static trees: the data of the named one, what makes a tree of paths, and what is refused."""

from __future__ import annotations

import pytest

from hf_eagle3.static_tree import STATIC_TREES, StaticTree, static_tree


def test_the_tree_of_eagle1() -> None:
    """25 nodes, 4, 8, 8, 3 and 2 a level (arXiv 2401.15077)."""
    tree = static_tree("mc_sim_7b_63")
    assert [len(level.ranks) for level in tree.levels] == [4, 8, 8, 3, 2]
    assert (tree.num_assistant_tokens, tree.tree_depth, tree.tree_top_k) == (25, 5, 4)
    # A node's likelier sibling is in the tree, and so is the same place under a likelier parent.
    for path in tree.paths:
        for place in range(len(path)):
            assert path[place] == 0 or (*path[:place], path[place] - 1, *path[place + 1 :]) in tree.paths


@pytest.mark.parametrize("name", STATIC_TREES)
def test_every_named_tree_is_one(name: str) -> None:
    tree = static_tree(name)
    assert len(tree.paths) == len(STATIC_TREES[name])
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert max(tree.levels[0].parents) == 0


def test_paths_in_any_order_make_one_tree() -> None:
    paths = [[1, 0], [0], [0, 2], [1]]
    tree = static_tree(paths)
    assert tree.paths == ((0,), (1,), (0, 2), (1, 0))
    assert tree.parents == [-1, 0, 0, 1, 2]
    assert (tree.num_assistant_tokens, tree.tree_depth, tree.tree_top_k) == (4, 2, 3)
    assert static_tree(tree) is tree
    first, second = tree.levels
    assert (first.parents, first.ranks, first.expanded) == ([0, 0], [0, 1], [0, 1])
    assert (second.parents, second.ranks, second.expanded) == ([0, 1], [2, 0], [])


def test_only_what_fits_is_left() -> None:
    tree = static_tree("mc_sim_7b_63")
    assert tree.narrowed(4, 5) is tree
    shallow, narrow = tree.narrowed(10, 2), tree.narrowed(1, 5)
    assert shallow is not None
    assert narrow is not None
    assert [len(level.ranks) for level in shallow.levels] == [4, 8]
    assert narrow.paths == ((0,), (0, 0), (0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0, 0))
    assert StaticTree.of([[1]]).narrowed(1, 1) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("mc_sim_7b_64", "'mc_sim_7b_64'; known are mc_sim_7b_63"),
        (7, "the name of a tree, or a list of paths"),
        ([0, 1], "the name of a tree, or a list of paths"),
        ([], "one path for each of its nodes"),
        ([[0], [0]], "each once"),
        ([[]], "one path for each of its nodes"),
        ([[0], [1, 0]], r"\[\[1, 0\]\] but not those of their parents"),
        ([[0], [-1]], "whole numbers from 0"),
        ([[0], [0.5]], "whole numbers from 0"),
    ],
)
def test_what_is_no_tree_is_refused_in_a_sentence(given: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        static_tree(given)
    assert "\n" not in str(caught.value)
