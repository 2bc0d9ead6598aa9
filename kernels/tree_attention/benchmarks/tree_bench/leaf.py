"""The module that is measured: the sources beside this folder, never another version that happens to be installed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).resolve().parents[2] / "torch-ext"
_INSTALLED = "hf_eagle3.tree_attention"


def load_leaf() -> ModuleType:
    """`tree_attention`, under the name that it is installed by if that is these sources: an op has one registration."""
    if _origin(_INSTALLED) == SOURCES / "tree_attention" / "__init__.py":
        return importlib.import_module(_INSTALLED)
    if str(SOURCES) not in sys.path:
        sys.path.insert(0, str(SOURCES))
    return importlib.import_module("tree_attention")


def sources_digest() -> str:
    """sha256 over the kernel's sources: a record is of one state of them, in a clone or not."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _origin(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve()
