"""The acceptance lengths that trees of many sizes would have reached on one answer, without decoding it again.

What a head drafts behind a position depends on the text alone, so one tree behind each position of the answer, with
all that was scored, tells of every tree of the same top-k with fewer nodes or levels, or that ends early: it is the
part of that tree with the best scores. Trees of another top-k expand other nodes and want a run of the head of their
own. Exact but for rounding (decoding computes states in other batches), and for the last round, which the answer's end
may cut. A sampled answer serves as well as a greedy one: whatever the temperature, a drafted token is taken exactly
when the target's own draw is that token ([`hf_eagle3.acceptance`]).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from ..pairing import as_head, check_pair, drafter_for
from ..states import capturing
from ..tree import DraftTree, TreeShape


class Round(NamedTuple):
    """One round: its acceptance length (bonus included), the nodes verified (root included) and the levels drafted."""

    length: int
    nodes: int
    levels: int


@torch.no_grad()
def rehearse(
    model: PreTrainedModel,
    head: PreTrainedModel,
    prompt: torch.Tensor,
    answer: Sequence[int],
    shapes: Sequence[TreeShape],
) -> dict[TreeShape, list[Round]]:
    """For each shape its rounds.

    Args:
        prompt: int64 `[1, length]`.
        answer: plain `generate`'s, greedy or sampled.
    """
    check_pair(model, head)
    ids = torch.cat((prompt, torch.tensor([list(answer)], device=prompt.device)), dim=1)
    first = prompt.shape[1]  # where the first root stands: the token that the prompt's forward gives
    states = _states(model, head, ids)
    rounds: dict[TreeShape, list[Round]] = {}
    for top_k in sorted({shape.tree_top_k for shape in shapes}):
        own = [shape for shape in dict.fromkeys(shapes) if shape.tree_top_k == top_k]
        behind: dict[TreeShape, list[Round]] = {shape: [] for shape in own}
        for place, tree in enumerate(_trees(model, head, ids, states, first, max(s.tree_depth for s in own), top_k)):
            following = ids[0, first + place + 1 :].tolist()
            for shape in own:
                kept, levels = kept_nodes(tree, shape)
                behind[shape].append(Round(1 + accepted_drafts(tree, kept, following), 1 + len(kept), levels))
        rounds |= {shape: list(_rounds(behind[shape])) for shape in own}
    return rounds


def kept_nodes(tree: DraftTree, shape: TreeShape) -> tuple[set[int], int]:
    """The part of `tree` that a smaller shape keeps, the root not among it, and how many levels it drafts.

    Args:
        tree: one row, with every node that was scored at the shape's top-k, at its depth or beyond.
    """
    scores, depths = tree.log_probs[0].tolist(), tree.depths[0].tolist()
    # Of equal scores the node created first, as the drafter chooses; so no child comes without its parent.
    best = sorted(range(1, tree.num_nodes), key=lambda node: (-scores[node], node))
    levels = 1
    while levels < shape.tree_depth:
        expanded = [node for node in best if depths[node] == levels][: shape.tree_top_k]
        if sum(math.exp(scores[node]) for node in expanded) < shape.assistant_confidence_threshold:
            break
        levels += 1
    return set([node for node in best if depths[node] <= levels][: shape.num_assistant_tokens]), levels


def accepted_drafts(tree: DraftTree, kept: set[int], following: Sequence[int]) -> int:
    """How many of the tokens that follow the root are drafted by the nodes `kept` of a tree of one row."""
    tokens, children, node, length = tree.tokens[0].tolist(), tree.children(0), 0, 0
    for token in following:
        found = [child for child in children[node] if child in kept and tokens[child] == token]
        if not found:
            break
        node, length = found[0], length + 1
    return length


def _states(model: Any, head: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """The target's states over the whole text, in one forward."""
    boundaries = drafter_for(as_head(head), model, TreeShape(1, 1, 1), None).boundaries
    with capturing(model, boundaries) as capture:
        out = model(ids, use_cache=False, **capture.asked)
    return capture.states(out.get("hidden_states"))


def _trees(
    model: Any, head: Any, ids: torch.Tensor, states: list[torch.Tensor], first: int, depth: int, top_k: int
) -> Iterator[DraftTree]:
    """The tree behind each position from `first` on, with all nodes that were scored."""
    drafter = drafter_for(as_head(head), model, TreeShape(top_k + (depth - 1) * top_k**2, depth, top_k), None)
    drafter.observe([state[:, :first] for state in states], first)
    for root in range(first, ids.shape[1]):
        if root > first:
            drafter.observe([state[:, root - 1 : root] for state in states], root)
        yield drafter.draft(ids[:, : root + 1])


def _rounds(behind: Sequence[Round]) -> Iterator[Round]:
    """Of the rounds behind every position those that follow one another, each beginning where the one before ended."""
    place = 0
    while place < len(behind) - 1:  # behind the last token there is nothing left to verify
        yield behind[place]
        place += behind[place].length


def together(rehearsed: Sequence[Mapping[TreeShape, Sequence[Round]]]) -> dict[TreeShape, list[Round]]:
    """The rounds of each shape over all answers."""
    return {shape: [one for each in rehearsed for one in each[shape]] for shape in rehearsed[0]}


def mean_length(rounds: Sequence[Round]) -> float:
    """Tokens per verification; 1.0 where there was no round."""
    return sum(one.length for one in rounds) / len(rounds) if rounds else 1.0
