"""A drafter that knows the target's true continuation, and hides it in random trees.

The true tokens stand at random places among random siblings, side branches grow everywhere, nodes are numbered in a
random order, and now and then the truth is left out: so a round accepts several drafts, not always all, on branches
that do not come first. What the loop does with a tree can then go wrong, and be seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

import hf_eagle3.generation
from hf_eagle3.drafters.base import TreeDrafter
from hf_eagle3.tree import DraftTree, TreeShape


class OracleConfig(PreTrainedConfig):
    """What the doors read of a head's config; `corruption` is the share of rounds' levels that hide the truth."""

    model_type = "test_oracle"

    vocab_size: int = 96
    target_hidden_size: int = 32
    target_boundaries: list[int] | None = None
    corruption: float = 0.2
    seed: int = 0

    def boundaries_for(self, num_target_layers: int) -> list[int]:
        return self.target_boundaries or []


@dataclass
class Record:
    """What one call of `generate` asked of its drafter."""

    shape: TreeShape
    trees: list[tuple[int, DraftTree]] = field(default_factory=list)  # with the position of each root
    observed: list[tuple[int, list[torch.Tensor]]] = field(default_factory=list)  # with `end`


class OracleHead(PreTrainedModel):
    """A head without weights, but with texts learned by heart and a record for each call that it drafted in."""

    config_class = OracleConfig
    _no_split_modules: list[str] = []

    def __init__(self, config: OracleConfig) -> None:
        super().__init__(config)
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # gives the head a device and a dtype
        self.generation_config = GenerationConfig(num_assistant_tokens=14, tree_depth=5, tree_top_k=4)
        self.texts: list[list[int]] = []
        self.records: list[Record] = []
        self.post_init()

    def learn(self, sequence: torch.Tensor, skipped: int = 0) -> None:
        """Learn a text `[1, length]` by heart; its first token stands at position `skipped` of what the target saw."""
        self.texts.insert(0, [-1] * skipped + sequence[0].tolist())

    def continuation(self, ids: list[int], offset: int) -> list[int]:
        """What follows `ids`, which begin at position `offset`; nothing if no learned text has them there."""
        end = offset + len(ids)
        return next((text[end:] for text in self.texts if text[offset:end] == ids and len(text) > end), [])


def oracle(target: PreTrainedModel, boundaries: Sequence[int] = (2, 5), **fields: Any) -> OracleHead:
    """An oracle for a target; `fields` are those of its config."""
    text = target.config.get_text_config(decoder=True)
    sizes = {"vocab_size": text.vocab_size, "target_hidden_size": text.hidden_size}
    return OracleHead(OracleConfig(**sizes, target_boundaries=list(boundaries), **fields))


class OracleDrafter(TreeDrafter):
    def __init__(
        self,
        head: OracleHead,
        target: PreTrainedModel,
        shape: TreeShape,
        state: Any = None,
        max_length: int | None = None,
    ) -> None:
        layers = target.config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(head.config.boundaries_for(layers), shape, max_length)
        self.head = head
        self.record = Record(shape)
        head.records.append(self.record)

    def observe(self, states: Sequence[torch.Tensor], end: int) -> None:
        self.record.observed.append((end, list(states)))

    def draft(self, input_ids: torch.Tensor, offset: int = 0, max_depth: int | None = None) -> DraftTree:
        ids, config = input_ids[0].tolist(), self.head.config
        position = offset + len(ids) - 1
        depth = self.shape.tree_depth if max_depth is None else min(self.shape.tree_depth, max_depth)
        dice = random.Random(f"{config.seed} {position} {ids[-1]}")
        truth = []
        for token in self.head.continuation(ids, offset)[:depth]:
            if dice.random() < config.corruption:
                break
            truth.append(token)
        tree = grow(ids[-1], truth, depth, self.shape, config.vocab_size, dice)
        self.record.trees.append((position, tree))
        return tree


def grow(root: int, truth: list[int], depth: int, shape: TreeShape, vocabulary: int, dice: random.Random) -> DraftTree:
    """A tree of `shape` that holds the chain `truth` among random branches; nodes are numbered at random, but a parent
    comes before its children."""
    truth = truth[: shape.num_assistant_tokens]
    tokens, parents, depths, scores = [root, *truth], [-1, *range(len(truth))], [*range(len(truth) + 1)], [0.0]
    for _ in truth:
        scores.append(scores[-1] - 0.1)
    children: dict[int, set[int]] = {node: {token} for node, token in enumerate(truth)}
    for _ in range(8 * shape.num_assistant_tokens):
        parent, token = dice.randrange(len(tokens)), dice.randrange(vocabulary)
        taken = children.setdefault(parent, set())
        if len(tokens) > shape.num_assistant_tokens:
            break
        if depths[parent] < depth and token not in taken and len(taken) < shape.tree_top_k:
            taken.add(token)
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            scores.append(scores[parent] - 1 - dice.random())
    order = _random_order(parents, dice)
    number = {node: index for index, node in enumerate(order)} | {-1: -1}
    return DraftTree(
        torch.tensor([[tokens[node] for node in order]]),
        torch.tensor([[number[parents[node]] for node in order]]),
        torch.tensor([[scores[node] for node in order]]),
    )


def _random_order(parents: list[int], dice: random.Random) -> list[int]:
    order, ready = [], [0]
    while ready:
        node = ready.pop(dice.randrange(len(ready)))
        order.append(node)
        ready += [child for child, parent in enumerate(parents) if parent == node]
    return order


hf_eagle3.generation.DRAFTERS[OracleHead] = OracleDrafter
