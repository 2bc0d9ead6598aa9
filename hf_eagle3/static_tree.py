"""Draft trees of a fixed form: which of each node's likeliest children are drafted is settled beforehand.

The trees by name are data; see `STATIC_TREES`. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .tree import TreeShape

Path = tuple[int, ...]

# A node by the ranks that lead to it from the root: "021" is the second likeliest child of the third likeliest child
# of the likeliest one. "mc_sim_7b_63" is EAGLE-1's tree (arXiv 2401.15077, appendix A; `choices.py` of its program):
# 25 nodes, 4, 8, 8, 3 and 2 on its five levels.
STATIC_TREES: dict[str, tuple[str, ...]] = {
    "mc_sim_7b_63": (
        *("0", "1", "2", "3"),
        *("00", "01", "02", "10", "11", "20", "21", "30"),
        *("000", "001", "002", "010", "011", "020", "021", "100"),
        *("0000", "0001", "0002"),
        *("00000", "00001"),
    ),
}


@dataclass(frozen=True)
class StaticLevel:
    """One level of a static tree.

    Args:
        parents: for each node, which of the expanded nodes of the level above is its parent.
        ranks: for each node, which of its parent's children it is, 0 the likeliest.
        expanded: which of the nodes have children.
    """

    parents: list[int]
    ranks: list[int]
    expanded: list[int]


@dataclass(frozen=True)
class StaticTree(TreeShape):
    """
    A tree whose nodes stand beforehand; make it with [`StaticTree.of`].

    Args:
        paths: each node by the ranks that lead to it, level by level and in order of rank, the root not among them.
    """

    paths: tuple[Path, ...] = field(kw_only=True)

    @classmethod
    def of(cls, paths: Sequence[Sequence[int]]) -> StaticTree:
        """The tree of some paths, in any order.

        Raises:
            ValueError: if they make no tree.
        """
        known = sorted({tuple(path) for path in paths}, key=lambda path: (len(path), path))
        if not known or len(known) != len(paths) or () in known:
            raise ValueError(f"A static tree needs one path for each of its nodes, each once; got {list(paths)}.")
        if any(not isinstance(rank, int) or isinstance(rank, bool) or rank < 0 for path in known for rank in path):
            raise ValueError(f"A path of a static tree is made of ranks, whole numbers from 0; got {list(paths)}.")
        orphans = [list(path) for path in known if len(path) > 1 and path[:-1] not in known]
        if orphans:
            raise ValueError(f"A static tree has the paths {orphans} but not those of their parents; add them.")
        widest = 1 + max(rank for path in known for rank in path)
        return cls(len(known), len(known[-1]), widest, paths=tuple(known))

    def narrowed(self, width: int, depth: int) -> StaticTree | None:
        """The part of it that is left where nodes have only `width` children and `depth` levels fit, if any."""
        if width >= self.tree_top_k and depth >= self.tree_depth:
            return self
        left = [path for path in self.paths if len(path) <= depth and max(path) < width]
        return StaticTree.of(left) if left else None

    @cached_property
    def levels(self) -> list[StaticLevel]:
        with_children = {path[:-1] for path in self.paths}
        levels = []
        above: list[Path] = [()]
        for depth in range(1, self.tree_depth + 1):
            here = [path for path in self.paths if len(path) == depth]
            expanded = [place for place, path in enumerate(here) if path in with_children]
            levels.append(
                StaticLevel([above.index(path[:-1]) for path in here], [path[-1] for path in here], expanded)
            )
            above = [here[place] for place in expanded]
        return levels

    @cached_property
    def parents(self) -> list[int]:
        """For the root and then each path, the place of its parent; -1 for the root."""
        place = {path: number for number, path in enumerate(((), *self.paths))}
        return [-1, *(place[path[:-1]] for path in self.paths)]


def static_tree(given: Any) -> StaticTree:
    """The tree that a caller named, or gave as paths such as `[[0], [1], [0, 0]]`.

    Raises:
        ValueError: if there is no tree of such a name, or the paths make none.
    """
    if isinstance(given, StaticTree):
        return given
    if isinstance(given, str):
        if given not in STATIC_TREES:
            raise ValueError(
                f"`draft_tree` is {given!r}; known are {', '.join(STATIC_TREES)}, or give a list of paths."
            )
        return StaticTree.of([[int(rank) for rank in path] for path in STATIC_TREES[given]])
    if not isinstance(given, Sequence) or not all(isinstance(path, Sequence) for path in given):
        raise ValueError(
            f"`draft_tree` is {given!r}; give the name of a tree, or a list of paths such as [[0], [0, 0]]."
        )
    return StaticTree.of(given)


__all__ = ["STATIC_TREES", "StaticLevel", "StaticTree", "static_tree"]
