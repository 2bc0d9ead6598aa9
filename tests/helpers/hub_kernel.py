"""The kernel's project built as kernel-builder builds one without compiled code, into the layout of a Hub repository:
`build/torch-<backend>/` with the sources, a generated `_ops.py`, `metadata.json`, and a folder for older loaders.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import tomllib

PROJECT = Path(__file__).resolve().parents[2] / "kernels" / "tree_attention"

_OPS = """\
import torch

ops = getattr(torch.ops, "{namespace}")


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{namespace}::{{op_name}}"
"""
_COMPAT = '''\
"""Older loaders look here; the kernel is the folder above."""
import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("{namespace}", Path(__file__).parents[1] / "__init__.py")
_module = sys.modules.setdefault("{namespace}", importlib.util.module_from_spec(_spec))
if not hasattr(_module, "__all__"):
    _spec.loader.exec_module(_module)
globals().update({{name: getattr(_module, name) for name in _module.__all__}})
'''


def read_build(project: Path = PROJECT) -> dict[str, Any]:
    return tomllib.loads((project / "build.toml").read_text(encoding="utf-8"))


def build_hub_kernel(folder: Path, unique_id: str, project: Path = PROJECT) -> Path:
    """A repository in `folder` with a variant for every backend that build.toml names; gives `folder`."""
    general = read_build(project)["general"]
    extensions = read_build(project)["torch-noarch"].get("pyext", ["py", "pyi"])
    module = general["name"].replace("-", "_")
    for backend in general["backends"]:
        variant = folder / "build" / f"torch-{backend}"
        namespace = f"_{module}_{backend}_{unique_id}"
        _copy_sources(project / "torch-ext" / module, variant, extensions)
        (variant / "_ops.py").write_text(_OPS.format(namespace=namespace), encoding="utf-8")
        (variant / module).mkdir()
        (variant / module / "__init__.py").write_text(_COMPAT.format(namespace=namespace), encoding="utf-8")
        metadata = {
            "name": general["name"],
            "id": namespace,
            "version": general["version"],
            "license": general["license"],
            "source": general["source"],
            "python-depends": [],
            "backend": {"type": backend},
            "digest": {"algorithm": "sha256", "files": _digests(variant)},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")
    return folder


def _copy_sources(sources: Path, variant: Path, extensions: list[str]) -> None:
    for path in sources.rglob("*"):
        if path.is_file() and path.suffix[1:] in extensions:
            target = variant / path.relative_to(sources)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def _digests(variant: Path) -> dict[str, str]:
    paths = sorted(path for path in variant.rglob("*") if path.is_file())
    return {
        path.relative_to(variant).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in paths
    }
