"""A head whose matrices lie in memory as a CPU multiplies them.

oneDNN wants matrices in blocks, and a product with the few rows of a draft level costs less than laying its matrix
out. Torch has that done at every product in bfloat16, and in float32 turns to a library that is slow at few rows.
Knows nothing of drafting.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .native_products import multiplies_natively

# A hint to oneDNN, which takes any number of rows afterwards: about a level of a tree.
_ROWS = 4


def prepacked(head: nn.Module) -> nn.Module:
    """A twin of a head for one call of `generate`: the head's own parts, but for the products of its `nn.Linear`s,
    whose matrices are laid out for oneDNN once more.

    It computes what the head does; float32 sums may round otherwise. It is made for each call, in less time than a
    token takes, because no cheap look at a head tells whether its weights have changed since the last one.

    The head itself comes back where oneDNN does not help: on other devices and processors, in dtypes that the CPU
    emulates and other classes of tensors; where autograd or autocast are to see each product; and where a module of it
    is compiled, has hooks, or has a forward of somebody else's.
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not _helps_here():
        return head
    plain = not any(_tampered(part) for part in head.modules())
    return _twin(head) if plain and all(_packable(linear.weight) for linear in _linears(head)) else head


def _helps_here() -> bool:
    mkldnn = torch.backends.mkldnn
    return platform.machine() in ("x86_64", "AMD64") and mkldnn.is_available() and bool(mkldnn.enabled)


def _tampered(part: nn.Module) -> bool:
    watched = part._forward_hooks or part._forward_pre_hooks or part._compiled_call_impl is not None
    return bool(watched) or "forward" in vars(part)


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (part for part in module.modules() if type(part) is nn.Linear)


def _packable(weight: torch.Tensor) -> bool:
    return (
        type(weight) in (nn.Parameter, torch.Tensor)
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and multiplies_natively(weight.dtype)
    )


def _twin(module: nn.Module) -> Any:
    """A module of the same class with the same tensors; what holds no matrix is shared whole, state and all."""
    if next(_linears(module), None) is None:
        return module
    twin: Any = copy.copy(module)
    twin._modules = {name: part if part is None else _twin(part) for name, part in module._modules.items()}
    if type(module) is nn.Linear:
        twin.forward = _Product(module)
    return twin


class _Product:
    """The forward of an `nn.Linear` on its prepacked matrix: `[..., in_features]` to `[..., out_features]`, both in
    the matrix's dtype; without gradients."""

    def __init__(self, linear: nn.Linear) -> None:
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = linear.bias

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self.matrix, self.bias, "none", [], "")
