"""The draft trees of a real answer, and a picture of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_eagle3.drawing import draw_tree
from hf_eagle3.generation import drafting_with
from hf_eagle3.tree import DraftTree

from .questions import encode_chat


@dataclass(frozen=True)
class Round:
    """One verification: the tree, its accepted nodes (root first), and the token that the target added."""

    tree: DraftTree
    path: list[int]
    bonus: int


def observe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    head: PreTrainedModel,
    question: str,
    max_new_tokens: int,
    knobs: Mapping[str, Any],
) -> list[Round]:
    """Every round of a greedy answer whose tokens were all emitted."""
    inputs = encode_chat(tokenizer, question, model.device)
    seen: list[tuple[DraftTree, list[int]]] = []
    door = drafting_with(head, on_round=lambda tree, path: seen.append((tree, path)), **knobs)
    generate: Any = model.generate
    ids = generate(**inputs, custom_generate=door, do_sample=False, max_new_tokens=max_new_tokens)
    position, rounds = inputs["input_ids"].shape[1], []
    for tree, path in seen:
        position += len(path)
        if position < ids.shape[1]:
            rounds.append(Round(tree, path, int(ids[0, position])))
    return rounds


def svg(round: Round, tokenizer: PreTrainedTokenizerBase) -> str:
    """The picture of a round, with the tokens as text."""
    words = [tokenizer.decode([token]) for token in round.tree.tokens[0].tolist()]
    return draw_tree(round.tree, [str(word) for word in words], round.path, str(tokenizer.decode([round.bonus])))
