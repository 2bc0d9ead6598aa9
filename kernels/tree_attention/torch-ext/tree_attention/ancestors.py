"""Ancestor words: a draft tree's mask, one bit for each pair of nodes. Knows nothing of attention."""

from __future__ import annotations

import torch

BITS = 32  # of an int32 word, which is also one tile of tree keys in the kernel


def words_for(nodes: int) -> int:
    """How many words a row of so many nodes takes."""
    return -(-nodes // BITS)


def pack_ancestors(parents: torch.Tensor) -> torch.Tensor:
    """The ancestor words of trees, without waiting for a device.

    Args:
        parents: integers `[batch, nodes]`, each node's parent, -1 for a root; a parent comes before its children.

    Returns:
        int32 `[batch, nodes, ceil(nodes / 32)]`: bit `j % 32` of word `j // 32` in row `i` says that node `j` is node
        `i` or an ancestor of it. The layout is that of TensorRT-LLM's packed masks.

    Raises:
        TypeError: if the parents are no tensor of integers.
        ValueError: if the shape is another, or (told on the CPU only: a device is not waited for) a parent does not
            come before its child.
    """
    if not isinstance(parents, torch.Tensor):
        raise TypeError(f"`parents` is a {type(parents).__name__}, but a tensor of integers [batch, nodes] is needed.")
    if parents.is_floating_point() or parents.is_complex() or parents.dtype == torch.bool:
        raise TypeError(f"`parents` are {parents.dtype}, but indices of nodes are needed; give int32 or int64.")
    if parents.dim() != 2 or parents.shape[1] < 1:
        raise ValueError(
            f"`parents` has shape {list(parents.shape)}, but [batch, nodes] with a node at least is needed."
        )
    nodes = parents.shape[1]
    index = torch.arange(nodes, device=parents.device)
    if parents.device.type == "cpu":
        misplaced = (parents >= index) | (parents < -1)
        if misplaced.any():
            row, node = (int(place) for place in misplaced.nonzero()[0])
            raise ValueError(
                f"Node {node} of row {row} has parent {int(parents[row, node])}, but a parent must come before its "
                "child (-1 for a root); sort the nodes by depth."
            )
    own = torch.zeros(nodes, words_for(nodes), dtype=torch.int64, device=parents.device)
    own[index, index // BITS] = torch.ones_like(index) << (index % BITS)
    words = own.expand(len(parents), -1, -1)
    # Each round doubles how far up a node sees: its own words and those of the node that it sees up to.
    above = parents.long()
    for _ in range(max(nodes - 1, 0).bit_length()):
        at = above.clamp(min=0)
        seen = words.gather(1, at[..., None].expand_as(words))
        words = words | seen.masked_fill((above < 0)[..., None], 0)
        above = above.gather(1, at).masked_fill(above < 0, -1)
    return words.to(torch.int32)  # the last bit becomes the sign


def unpack_ancestors(words: torch.Tensor, nodes: int) -> torch.Tensor:
    """bool `[..., nodes, nodes]` of int32 words `[..., nodes, ceil(nodes / 32)]`: entry `[i, j]` says that node `i`
    sees node `j`."""
    bits = torch.arange(BITS, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> bits) & 1).flatten(-2)[..., :nodes].bool()
