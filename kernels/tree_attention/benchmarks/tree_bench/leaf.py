"""The module that is measured: the sources beside this folder, never another version that happens to be installed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).resolve().parents[2] / "torch-ext"
_NAME = "hf_eagle3.tree_attention"  # what it is installed as: an operator is registered once in a process


def load_leaf() -> ModuleType:
    """The kernel's public module.

    Raises:
        ImportError: if this process has loaded another copy already.
    """
    wanted = SOURCES / "tree_attention" / "__init__.py"
    loaded = sys.modules.get(_NAME)
    if loaded is None:
        return _load(wanted)
    if loaded.__file__ is None or Path(loaded.__file__).resolve() != wanted:
        raise ImportError(
            f"This process runs the kernel of {loaded.__file__}, and {wanted} is to be measured; start a new process."
        )
    return loaded


def submodule(name: str) -> ModuleType:
    """A module of the kernel's own, such as `tuning`."""
    return importlib.import_module(f"{load_leaf().__name__}.{name}")


def sources_digest() -> str:
    """sha256 over the kernel's sources: a record is of one state of them, in a clone or not."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*.py")):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_NAME, path, submodule_search_locations=[str(path.parent)])
    if spec is None or spec.loader is None:
        raise ImportError(f"The kernel's sources are not at {path}; run this out of a whole copy of its project.")
    module = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_NAME]
        raise
    return module
