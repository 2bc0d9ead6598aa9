"""Who may import whom: the table of the architecture, checked against the imports that are in the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hf_eagle3

PACKAGE = Path(hf_eagle3.__file__).parent

# A part is a module, or a folder of modules, directly under the package. It may import the parts named here and
# whatever those may import. `pairing`, `switching` and `probe` are what `generation` asks before it decodes.
MAY_IMPORT: dict[str, set[str]] = {
    "configuration_eagle3": set(),
    "tree": set(),
    "static_tree": {"tree"},
    "embedded": set(),
    "cache": set(),
    "limits": set(),
    "whole_files": set(),
    "fingerprint": set(),
    "native_products": set(),
    "prepacked": {"native_products"},
    "default_trees": {"native_products", "tree"},
    "states": {"configuration_eagle3"},
    "hub_errors": set(),
    "hub_files": {"hub_errors"},
    "head_files": {"hub_files"},
    "publishing": set(),
    "configuration_eagle": {"configuration_eagle3"},
    "layout_fields": {"configuration_eagle3", "head_files"},
    "layouts": {"configuration_eagle", "configuration_eagle3", "layout_fields"},
    "layouts_eagle1": {"layouts"},
    "layouts_eagle3": {"layouts"},
    "checkpoint": {"layouts_eagle1", "layouts_eagle3"},
    "adapted": {"checkpoint", "release"},
    "head": {"adapted", "checkpoint", "publishing"},
    "latent_attention": {"configuration_eagle3"},
    "modeling_eagle3": {"configuration_eagle3", "head", "latent_attention"},
    "modeling_eagle": {"configuration_eagle", "head", "modeling_eagle3"},
    "loading": {"modeling_eagle", "modeling_eagle3"},
    "tree_attention": set(),
    "tree_kernel": {"tree_attention"},
    "attention": {"tree", "tree_kernel"},
    "acceptance": {"tree"},
    "drafters": {"head", "modeling_eagle", "modeling_eagle3", "prepacked", "states", "static_tree", "tree"},
    "verification": {"attention", "states", "tree"},
    "probe": {"attention", "cache", "states", "verification", "tree", "tree_kernel"},
    "switching": {"attention", "probe", "tree_kernel"},
    "pairing": {
        "default_trees",
        "drafters",
        "modeling_eagle",
        "modeling_eagle3",
        "native_products",
        "static_tree",
        "switching",
        "tree",
    },
    "decoding": {"attention", "drafters", "verification", "acceptance", "cache", "limits", "probe", "states"},
    "generation": {"decoding", "pairing", "loading", "layouts", "head_files"},
    "drawing": {"tree"},
    "data": {"attention", "fingerprint", "states", "release", "whole_files"},
    "evaluation": {
        "generation",
        "drawing",
        "embedded",
        "fingerprint",
        "native_products",
        "release",
        "whole_files",
    },
    "training": {"modeling_eagle3", "data", "evaluation", "native_products"},
    "release": set(),
    "hub": {"modeling_eagle3", "layouts", "evaluation", "release", "hub_files", "hub_errors"},
    "doctor": {"generation", "layouts", "evaluation"},
}
# The command line, the modules that hold its commands, and the package's own list of names may import everything.
FREE = {
    "__init__", "cli", "evaluation.command", "evaluation.sweep_command", "training.command", "data.command",
    "hub.command", "doctor.command",
}  # fmt: skip
# What one of our parts may import from outside, where the architecture narrows it.
OUTSIDE = {"cache": {"torch", "transformers"}, "tree": {"torch"}}


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


SOURCES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(source: str, package: str) -> set[str]:
    """Absolute dotted names of all imports in `source`, inside functions and TYPE_CHECKING blocks as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            origin = ".".join(filter(None, [base if node.level else "", node.module]))
            names.update(f"{origin}.{alias.name}" for alias in node.names)
    return names


def _package_of(module: str) -> str:
    """The package whose names a relative import of `module` starts from."""
    path = SOURCES[module]
    return ".".join(["hf_eagle3", *path.relative_to(PACKAGE).parts[:-1]])


def _own_imports(module: str) -> set[str]:
    """The modules of this package that `module` imports, named as in SOURCES; "__init__" is the package itself."""
    found: set[str] = set()
    for name in imported_names(SOURCES[module].read_text(encoding="utf-8"), _package_of(module)):
        if name.split(".")[0] != "hf_eagle3":
            continue
        parts = name.split(".")[1:]
        while parts and ".".join(parts) not in SOURCES:
            parts.pop()
        found.add(".".join(parts) or "__init__")
    return found - {module}


def _reachable(part: str) -> set[str]:
    allowed = {part}
    for other in MAY_IMPORT[part]:
        allowed |= _reachable(other)
    return allowed


def test_the_parser_sees_every_form_of_import() -> None:
    source = (
        "import torch.nn as nn\nfrom ..tree import DraftTree\nfrom . import base\n"
        "def f():\n    from hf_eagle3.cache import keep\n"
    )
    expected = {"torch.nn", "hf_eagle3.tree.DraftTree", "hf_eagle3.drafters.base", "hf_eagle3.cache.keep"}
    assert imported_names(source, "hf_eagle3.drafters") == expected


@pytest.mark.parametrize("module", sorted(set(SOURCES) - FREE))
def test_a_module_imports_only_what_its_row_allows(module: str) -> None:
    part = module.split(".")[0]
    assert part in MAY_IMPORT, f"{module} is new: give it a row in MAY_IMPORT, and the architecture a line"
    strangers = {name for name in _own_imports(module) if name.split(".")[0] not in _reachable(part)}
    assert not strangers, f"{module} may not import {sorted(strangers)}"


def test_there_are_no_circles() -> None:
    graph = {module: _own_imports(module) for module in SOURCES if module != "__init__"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", sorted(OUTSIDE))
def test_narrow_modules_stay_narrow(module: str) -> None:
    names = imported_names(SOURCES[module].read_text(encoding="utf-8"), _package_of(module))
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"hf_eagle3", "__future__"}
    assert outside <= OUTSIDE[module]


def test_importing_the_package_is_cheap() -> None:
    heavy = ("triton", "datasets", "gradio", "typer", "rich", "peft", "matplotlib")
    # Where Triton is installed torch imports it by itself.
    ours = f"[name for name in {heavy!r} if name in set(sys.modules) - before]"
    code = f"import sys, torch._dynamo; before = set(sys.modules); import hf_eagle3; print({ours})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"
