"""The picture of a tree is a whole SVG document that shows every node, the accepted ones in colour."""

from __future__ import annotations

from xml.etree import ElementTree

import torch

from hf_eagle3 import DraftTree
from hf_eagle3.drawing import ACCEPTED, draw_tree

TREE = DraftTree(
    torch.tensor([[7, 3, 4, 5, 6]]),
    torch.tensor([[-1, 0, 0, 1, 3]]),
    torch.tensor([[0.0, -0.1, -2.0, -0.3, -0.4]]),
)
SVG = "{http://www.w3.org/2000/svg}"


def test_every_node_and_edge_is_drawn() -> None:
    words = ["<root>", " a&b", "\n", "a long token indeed", "x"]
    picture = ElementTree.fromstring(draw_tree(TREE, words, accepted=[0, 1, 3], bonus="!"))
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert texts == ["<root>", "␣a&b", "\\n", "a␣long␣tok…", "x", "!"]
    edges = list(picture.iter(f"{SVG}path"))
    assert len(edges) == 5
    assert [edge.get("stroke") == ACCEPTED for edge in edges] == [True, False, True, False, True]


def test_nodes_of_a_level_do_not_overlap() -> None:
    picture = ElementTree.fromstring(draw_tree(TREE, list("abcde"), accepted=[0], bonus="!"))
    boxes = [(box.get("x"), box.get("y")) for box in picture.iter(f"{SVG}rect")][1:]
    assert len(set(boxes)) == len(boxes) == 6
