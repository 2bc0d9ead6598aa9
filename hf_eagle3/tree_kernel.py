"""Which tree-attention kernel runs: the one that is installed with us, one from the Hub if the user asks, or the plain
torch reference.

It is looked for when the first tree is attended, once for each process, and told in one line of the log. Knows the
kernel's contract (`hf_eagle3.tree_attention`) and nothing of models.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from packaging.version import Version

# "auto", "triton", "reference", or a kernel on the Hub: "org/name", "org/name@revision", "org/name@3" (a version).
CHOICE_VARIABLE = "HF_EAGLE3_TREE_KERNEL"
INSTALLED = "hf_eagle3.tree_attention"
# Before it, the compiler complains of the loop over the prefix ("operation scheduled before its operands"), and reads
# nothing ahead.
LEAST_TRITON = Version("3.3")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TreeKernel:
    """
    Args:
        name: what the log calls it.
        tree_attention: `(q, k, v, ancestors, *, prefix_len, pad, scale, window, depth, softcap, sinks) -> out`.
        pack_ancestors: `(parents) -> words`, int32 `[batch, nodes, ceil(nodes / 32)]`.
        is_reference: whether it is plain torch, which no device runs faster than its own dense attention.
    """

    name: str
    tree_attention: Callable[..., torch.Tensor]
    pack_ancestors: Callable[[torch.Tensor], torch.Tensor]
    is_reference: bool = False


_LOCK = threading.RLock()
_kernel: TreeKernel | None = None


def tree_kernel() -> TreeKernel:
    """The kernel of this process; the first call chooses it, as `HF_EAGLE3_TREE_KERNEL` says.

    Raises:
        ImportError: if the variable asks for one that cannot be had.
    """
    if _kernel is not None:
        return _kernel
    with _LOCK:
        return _kernel or use_tree_kernel(os.environ.get(CHOICE_VARIABLE) or "auto")


def use_tree_kernel(choice: str = "auto", *, trust_remote_code: bool = False) -> TreeKernel:
    """Choose the kernel that all trees of this process are attended with from now on.

    Args:
        choice: `"auto"`, the installed module if Triton can be imported and else its plain torch reference;
            `"triton"` or `"reference"`, that and nothing else; or a repository on the Hub, which the `kernels` package
            loads, with a revision or the number of a version behind an `@`.
        trust_remote_code: let `kernels` load from organisations that it does not know.

    Raises:
        ImportError: if what was asked for cannot be had.
    """
    global _kernel
    with _LOCK:
        if "/" in choice:
            _kernel = _from_hub(choice, trust_remote_code)
        elif choice == "reference" or (choice == "auto" and not has_triton()):
            _kernel = _reference()
        elif choice in ("auto", "triton"):
            _kernel = _installed()
        else:
            raise ImportError(
                f'`{choice}` is no tree-attention kernel; say "auto", "triton", "reference", or "organisation/name" '
                "for one on the Hub."
            )
        logger.info("Draft trees are attended by %s.", _kernel.name)
        return _kernel


def has_triton() -> bool:
    """Whether a Triton that compiles the kernel well can be imported here; the first call tries."""
    try:
        triton = importlib.import_module("triton")
    except ImportError:
        return False
    return Version(triton.__version__) >= LEAST_TRITON


def _installed() -> TreeKernel:
    if not has_triton():
        raise ImportError(
            f"The Triton kernel for tree attention was asked for, but no Triton from {LEAST_TRITON} on can be "
            f'imported; run `pip install "triton>={LEAST_TRITON}"`, or say "auto" or "reference".'
        )
    module = importlib.import_module(INSTALLED)
    return TreeKernel(
        f"{INSTALLED} (Triton on a GPU, plain torch on a CPU)", module.tree_attention, module.pack_ancestors
    )


def _reference() -> TreeKernel:
    module = importlib.import_module(INSTALLED)
    name = f"the plain torch reference of {INSTALLED}"
    return TreeKernel(name, module.tree_attention_reference, module.pack_ancestors, is_reference=True)


def _from_hub(choice: str, trust_remote_code: bool) -> TreeKernel:
    repository, _, at = choice.partition("@")
    which: dict[str, Any] = {"version": int(at)} if at.isdecimal() else {"revision": at or "main"}
    if trust_remote_code:
        which["trust_remote_code"] = True
    try:
        module = importlib.import_module("kernels").get_kernel(repository, **which)
        return TreeKernel(f"the kernel {choice} of the Hub", module.tree_attention, module.pack_ancestors)
    except Exception as error:  # whatever the package, the network or the repository's own code raises
        reason = next(iter(str(error).strip().splitlines()), "no reason given").rstrip(".")
        raise ImportError(
            f"The tree-attention kernel {choice!r} cannot be loaded from the Hub ({type(error).__name__}: {reason}); "
            f"check the name and that the `kernels` package is installed, give `hf_eagle3.use_tree_kernel({choice!r}, "
            f"trust_remote_code=True)` if you trust its publisher, or leave {CHOICE_VARIABLE} unset."
        ) from error
