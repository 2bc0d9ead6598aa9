"""A head whose matrices lie in memory as a CPU multiplies them.

oneDNN wants matrices in blocks. Torch has it lay them out anew for every product, which takes longer than a product
with a few rows, and a head does little else. Knows nothing of drafting.
"""

from __future__ import annotations

import copy
import platform
import weakref
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import nn

from .native_products import multiplies_natively

# A hint to oneDNN, which takes any number of rows afterwards: about a level of a tree.
_ROWS = 4

_TWINS: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, nn.Module]] = weakref.WeakKeyDictionary()


def prepacked(head: nn.Module) -> nn.Module:
    """A twin of a head for drafting: its parameters, buffers and config, not copies of them, and besides the matrix of
    each `nn.Linear` as oneDNN takes it, which takes that memory once more.

    It computes what the head computes; float32 sums may round otherwise. It is made once for a head, and again after
    its weights have changed. The head itself comes back where oneDNN does not help (other devices and processors,
    dtypes that the CPU emulates) and where a twin could miss something: in a class that is not of this package, and
    while a module has hooks or a forward of somebody else's.
    """
    if not (_ours(head) and all(_packable(linear.weight) for linear in _linears(head))):
        return head
    state = _state(head)
    made = _TWINS.get(head)
    if made is None or made[0] != state:
        made = _TWINS[head] = (state, _twin(head))
    return made[1]


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (part for part in module.modules() if type(part) is nn.Linear)


def _ours(head: nn.Module) -> bool:
    return type(head).__module__.partition(".")[0] == __package__ and not any(
        "forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks for part in head.modules()
    )


def _packable(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.layout == torch.strided
        and weight.dtype in (torch.float32, torch.bfloat16)
        and multiplies_natively(weight.dtype)
        and not weight.is_inference()  # whether such a tensor was written to, nobody can tell
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _state(head: nn.Module) -> Hashable:
    """What a twin was made from: the modules, the places of the matrices, and how often each was written to. None of
    the places is given to anything else while the twin lives, which holds on to them."""
    modules = tuple((id(part._parameters), part.training) for part in head.modules())
    return modules, tuple((linear.weight.data_ptr(), linear.weight._version) for linear in _linears(head))


def _twin(module: nn.Module) -> Any:
    twin: Any = copy.copy(module)
    twin._modules = {name: part if part is None else _twin(part) for name, part in module._modules.items()}
    if type(module) is nn.Linear:
        twin.forward = _Product(module)
    return twin


class _Product:
    """The forward of an `nn.Linear` on its prepacked matrix: `[..., in_features]` to `[..., out_features]`."""

    def __init__(self, linear: nn.Linear) -> None:
        self.given = linear.weight.detach()
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(self.given, _ROWS)
        self.bias = linear.bias

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self.matrix, self.bias, "none", [], "")
