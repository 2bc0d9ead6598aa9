"""Random draft trees over a prompt, and what a target says of them: at once, and path by path."""

from __future__ import annotations

import random

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from hf_eagle3.attention import has_holes
from hf_eagle3.cache import recording
from hf_eagle3.tree import DraftTree
from hf_eagle3.verification import verify

from .targets import VOCABULARY


def random_tree(nodes: int, seed: int = 0, batch: int = 1) -> DraftTree:
    """A tree of so many nodes in each row; a parent comes anywhere before its children."""
    dice = random.Random(seed)
    tokens = [[dice.randrange(VOCABULARY) for _ in range(nodes)] for _ in range(batch)]
    parents = [[-1, *(dice.randrange(max(0, node - 4), node) for node in range(1, nodes))] for _ in range(batch)]
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.zeros(batch, nodes))


def left_padded(ids: torch.Tensor, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt `[1, length]` behind so many pad tokens, and its mask."""
    padded = torch.cat((ids.new_zeros(1, padding), ids), dim=1)
    return padded, (torch.arange(padded.shape[1]) >= padding)[None].long()


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position ids as `generate` makes them of a prompt's mask."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def tree_logits(target: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, tree: DraftTree) -> torch.Tensor:
    """Logits `[batch, nodes, vocab]` of one forward over the tree, on the target's own cache of the prompt."""
    cache = DynamicCache(config=target.config)
    target(ids, attention_mask=mask, position_ids=positions_of(mask), past_key_values=cache)
    with recording(cache):
        root = mask.sum(-1, keepdim=True)
        return verify(target, tree, cache, mask.bool(), root, [], holes=has_holes(mask), use_cache=True).logits


@torch.no_grad()
def path_logits(target: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, tree: DraftTree) -> torch.Tensor:
    """The same logits, each node's at the end of the plain text from the prompt's first token to that node."""
    rows = []
    for row in range(len(ids)):
        logits = []
        for node in range(tree.num_nodes):
            path = tree.tokens[row, tree.ancestors[row, node]][None]
            seen = torch.cat((mask[row : row + 1], torch.ones_like(path)), dim=1)
            text = torch.cat((ids[row : row + 1], path), dim=1)
            logits.append(target(text, attention_mask=seen, position_ids=positions_of(seen)).logits[0, -1])
        rows.append(torch.stack(logits))
    return torch.stack(rows)
