"""The draft tree of a call that asks for none: decided by what a forward over many nodes costs, in steps of one token.

A GPU verifies sixty nodes for about the price of one. A CPU pays for each, least where it multiplies in half precision
by itself and most where it emulates that. What `hf-eagle3 sweep` measured lies with the shipped head, the choice is
`hf_eagle3.evaluation.sweep.chosen`, and a test holds this table to both.
"""

from __future__ import annotations

import torch

from .native_products import multiplies_natively
from .tree import TreeShape

ACCELERATOR, CPU, CPU_HALF, CPU_EMULATED = "accelerator", "cpu", "cpu, half precision", "cpu, emulated"

DEFAULT_TREES = {
    ACCELERATOR: TreeShape(59, 8, 10),  # the paper's; not measured
    CPU: TreeShape(7, 5, 4, 0.3),  # float32
    CPU_HALF: TreeShape(9, 5, 4, 0.5),
    CPU_EMULATED: TreeShape(1, 1, 1),  # not measured yet: every node costs about what a plain token does
}


def default_tree(device: torch.device, dtype: torch.dtype) -> TreeShape:
    """The tree for a target that computes on `device` in `dtype`."""
    return DEFAULT_TREES[device_kind(device, dtype)]


def device_kind(device: torch.device, dtype: torch.dtype, native: bool | None = None) -> str:
    """Which line of `DEFAULT_TREES` holds.

    Args:
        native: whether the device multiplies in `dtype` by itself; asked of this machine if not given.
    """
    if device.type != "cpu":
        return ACCELERATOR
    if dtype not in (torch.bfloat16, torch.float16):
        return CPU
    able = multiplies_natively(dtype, device) if native is None else native
    return CPU_HALF if able else CPU_EMULATED
