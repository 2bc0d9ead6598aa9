"""One target forward over a draft tree.

The target is called through its public forward, unmodified. Knows nothing of drafting or acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from .attention import backend_of, tree_mask
from .states import captured, capturing
from .tree import DraftTree

# Inputs with one entry per token. Plain `generate` gives new tokens the last one's kind, or the kind 0, that of text.
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


@dataclass(frozen=True)
class Verified:
    """
    Args:
        logits (`[batch, nodes, vocab]`): The target's scores after each node, in its own dtype.
        states: one `[batch, nodes, target_hidden]` per captured boundary.
    """

    logits: torch.Tensor
    states: list[torch.Tensor]


def verify(
    target: Any,
    tree: DraftTree,
    cache: Cache,
    committed: torch.Tensor,
    root_position: torch.Tensor,
    boundaries: Sequence[int],
    *,
    holes: bool = False,
    **model_kwargs: Any,
) -> Verified:
    """Run the target once over all nodes of a tree.

    Args:
        tree: `[batch, nodes]`, tokens on the target's input device.
        cache: grows by one row per node.
        committed: bool `[batch, cached]`, the cached positions that are not padding.
        root_position: int64 `[..., 1]`, position ids of the root (some targets have several kinds of positions).
        boundaries: which states to capture.
        holes: whether some of the padding is not on the left.
        model_kwargs: whatever else the target's forward gets in plain `generate`.
    """
    for name in ("attention_mask", "position_ids", "logits_to_keep", "output_hidden_states", "past_key_values"):
        model_kwargs.pop(name, None)
    for name in TOKEN_TYPES:
        if model_kwargs.get(name) is not None:
            last = model_kwargs[name][..., -1:].expand_as(tree.tokens)
            model_kwargs[name] = torch.zeros_like(last) if name == "mm_token_type_ids" else last
    inputs = target.prepare_inputs_for_generation(
        tree.tokens, next_sequence_length=tree.num_nodes, past_key_values=cache, **model_kwargs
    )
    # A prompt may be on the CPU though the target is not: transformers has moved the tokens by now.
    device = inputs["input_ids"].device
    inputs["attention_mask"] = tree_mask(tree, committed, backend_of(target), target.dtype, holes).to(device)
    inputs["position_ids"] = (root_position + tree.depths.to(root_position.device)).to(device)
    with capturing(target, boundaries) as capture:
        outputs = target(**inputs, **capture.asked, return_dict=True)
    return Verified(outputs.logits, capture.states(outputs.get("hidden_states")))


__all__ = ["TOKEN_TYPES", "Verified", "captured", "verify"]
