"""The package under test, as it is installed: inside hf-eagle3's wheel, or by itself as a kernel of the Hub."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

NAME = "hf_eagle3.tree_attention" if find_spec("hf_eagle3") else "tree_attention"
package = import_module(NAME)
tree_attention = package.tree_attention
pack_ancestors = package.pack_ancestors
tree_attention_reference = import_module(f"{NAME}.reference").tree_attention_reference
