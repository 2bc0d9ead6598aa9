"""The package under test, as it is installed: inside hf-eagle3's wheel, or by itself as a kernel of the Hub."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

_NAME = "hf_eagle3.tree_attention" if find_spec("hf_eagle3") else "tree_attention"


def module(name: str) -> ModuleType:
    """One of the package's modules; `kernel` imports triton."""
    return import_module(f"{_NAME}.{name}")


_package = import_module(_NAME)
tree_attention = _package.tree_attention
pack_ancestors = _package.pack_ancestors
tree_attention_reference = _package.tree_attention_reference
