"""How a draft tree reaches the target's attention: the 4D mask that its back end wants.

Any 4D `attention_mask` passes every mask factory of transformers untouched. Knows back ends' conventions, not models.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from .tree import DraftTree

SUPPORTED_BACKENDS = ("sdpa", "eager")


def backend_of(target: PreTrainedModel) -> str:
    """The attention implementation that the target's decoder runs.

    Raises:
        ValueError: if it cannot express a tree.
    """
    backend = str(target.config.get_text_config(decoder=True)._attn_implementation)
    if backend not in SUPPORTED_BACKENDS:
        raise ValueError(
            f"The target runs attention implementation {backend!r}, which cannot express a draft tree; load it with "
            '`attn_implementation="sdpa"` or `attn_implementation="eager"`.'
        )
    return backend


def tree_mask(tree: DraftTree, committed: torch.Tensor, backend: str, dtype: torch.dtype) -> torch.Tensor:
    """The mask of one target forward over a tree.

    Args:
        tree: the nodes, `[batch, nodes]`.
        committed: bool `[batch, cached]`, which cached positions are real (not padding).
        backend: `"sdpa"` takes a bool mask, `"eager"` adds a float one (a bool mask there is silently wrong).
        dtype: of the target's activations.

    Returns:
        `[batch, 1, nodes, cached + nodes]`.
    """
    ancestors = tree.ancestors.to(committed.device)
    visible = torch.cat((committed[:, None].expand(-1, tree.num_nodes, -1), ancestors), dim=-1)[:, None]
    if backend == "sdpa":
        return visible
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
