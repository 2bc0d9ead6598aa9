"""Attention over a draft tree: every node sees the prefix and its own ancestors, and the mask is a bit for each pair.

Imports torch, and triton once a kernel runs. Knows nothing of models, caches or transformers.
"""

from __future__ import annotations

from .ancestors import pack_ancestors, unpack_ancestors
from .op import tree_attention
from .reference import tree_attention_reference

__all__ = ["pack_ancestors", "tree_attention", "tree_attention_reference", "unpack_ancestors"]
