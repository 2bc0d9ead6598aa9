"""The golden data of the official EAGLE program (see tests/golden/README.md), and how trees are compared with it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_eagle3 import DraftTree, load_head
from hf_eagle3.attention import EAGLE3_TREE
from hf_eagle3.head import DraftHead

FOLDER = Path(__file__).parent.parent / "golden"
PAIRS = ("eagle3_llama", "eagle3_qwen3", "eagle1_llama")
# How the target attends: by dense masks, and by packed trees (in plain torch, on a CPU).
ATTENTIONS = ("sdpa", EAGLE3_TREE)
# Below these gaps another float32 implementation may keep other nodes, or order them otherwise (golden/README.md).
BOUNDARY_GAP = ORDER_GAP = 1e-5


@functools.cache
def dump(name: str) -> dict[str, Any]:
    """One JSON file of dumps/."""
    return json.loads((FOLDER / "dumps" / f"{name}.json").read_text())


@functools.cache
def pair(name: str, attention: str = "sdpa") -> tuple[PreTrainedModel, DraftHead]:
    """Target and head of a golden pair, both in float32 (heads are stored in float16)."""
    target_name = name.split("_", 1)[1] + "_target"
    options = {"dtype": torch.float32, "attn_implementation": attention}
    target = AutoModelForCausalLM.from_pretrained(FOLDER / "models" / target_name, **options)
    head = load_head(FOLDER / "models" / f"{name}_head", dtype=torch.float32)
    return target.eval(), head


def paths(tokens: list[int], parents: list[int], scores: list[float]) -> dict[tuple[int, ...], float]:
    """A tree as what it proposes: the token path from the root to each node, with the node's cumulative score."""
    path_of: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        path_of.append((*(path_of[parent] if parent >= 0 else ()), token))
    return dict(zip(path_of, scores, strict=True))


def tree_paths(tree: DraftTree) -> dict[tuple[int, ...], float]:
    return paths(tree.tokens[0].tolist(), tree.parents[0].tolist(), tree.log_probs[0].tolist())


def golden_paths(step: dict[str, Any]) -> dict[tuple[int, ...], float]:
    scores = [0.0 if score is None else score for score in step["node_scores"]]
    return paths(step["draft_tokens"], step["parents"], scores)
