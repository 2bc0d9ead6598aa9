"""What an installed package holds: the modules, the head, the command, and one version."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hf_eagle3

REPOSITORY = Path(__file__).resolve().parents[2]
KERNEL = REPOSITORY / "kernels" / "tree_attention" / "torch-ext" / "tree_attention"
# What the wheel brings beside modules: the texts of user turns, the head without what it learnt from, the page of its
# card.
SHIPPED = {
    "data": {"openings.yaml", "words.yaml"},
    "embedded_head": {"README.md", "config.json", "generation_config.json", "model.safetensors", "training.json"},
    "hub": {"model_card.md"},
    ".": {"py.typed"},
}


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_every_module_is_in_the_wheel(unpacked: Path) -> None:
    inside = {path.relative_to(unpacked) for path in (unpacked / "hf_eagle3").rglob("*.py")}
    own = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "hf_eagle3").rglob("*.py")}
    kernel = {Path("hf_eagle3", "tree_attention", path.relative_to(KERNEL)) for path in KERNEL.rglob("*.py")}
    assert inside == own | kernel
    assert (unpacked / "hf_eagle3" / "py.typed").is_file()


def test_nothing_else_is(unpacked: Path) -> None:
    assert {path.name.split("-")[0] for path in unpacked.iterdir()} == {"hf_eagle3"}
    package = unpacked / "hf_eagle3"
    beside = {path.relative_to(package) for path in package.rglob("*") if path.is_file() and path.suffix != ".py"}
    assert beside == {Path(folder, name) for folder, names in SHIPPED.items() for name in names}


def test_metadata(unpacked: Path) -> None:
    info = next(unpacked.glob("*.dist-info"))
    fields = email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))
    assert fields["Name"] == "hf-eagle3"
    assert fields["Version"] == hf_eagle3.__version__
    assert fields["License-Expression"] == "Apache-2.0"
    assert set(fields.get_all("Provides-Extra")) == {"train", "eval", "triton", "space", "dev"}
    assert not [line for line in fields.get_all("Requires-Dist") if "smollm2" in line]
    assert "hf-eagle3 = hf_eagle3.cli:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
    assert list(info.rglob("LICENSE"))


def test_installed_package_finds_its_head_and_answers_for_itself(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "import json, hf_eagle3; from hf_eagle3 import embedded\n"
        "print(json.dumps([hf_eagle3.__file__, hf_eagle3.__version__, str(embedded.head_folder()),"
        " embedded.load_head().config.model_type]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    origin, version, head, model_type = json.loads(done.stdout.splitlines()[-1])
    assert Path(origin).is_relative_to(unpacked)
    assert version == hf_eagle3.__version__
    assert Path(head) == unpacked / "hf_eagle3" / "embedded_head"
    assert model_type == "eagle3"


ATTEND = (
    "import sys; sys.modules['triton'] = None  # as where it is not installed\n"
    "import torch, hf_eagle3; from hf_eagle3 import tree_attention as kernel\n"
    "words = kernel.pack_ancestors(torch.tensor([[-1, 0]]))\n"
    "out = kernel.tree_attention(*torch.ones(3, 1, 1, 2, 16), words, prefix_len=0)\n"
    "print(kernel.__file__, hf_eagle3.__file__, bool((out == 1).all()))"
)


def test_installed_package_brings_the_kernel(unpacked: Path, tmp_path: Path) -> None:
    """On the CPU in plain torch, without Triton, which need not be there."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", ATTEND], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    kernel = unpacked / "hf_eagle3" / "tree_attention" / "__init__.py"
    assert done.stdout.split() == [str(kernel), str(unpacked / "hf_eagle3" / "__init__.py"), "True"]


def test_an_editable_installation_finds_the_kernel_where_it_lies(source: Path, tmp_path: Path) -> None:
    """In a process that sees the environment's packages, but not what is installed in it as editable."""
    build = f"import setuptools.build_meta as build; print(build.build_editable({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, check=False, cwd=source)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as archive:
        archive.extractall(site)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    code = f"import site, sys; sys.path += [{str(site)!r}, *{packages!r}]; site.addsitedir({str(site)!r})\n{ATTEND}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=_bare()
    )
    assert done.returncode == 0, done.stderr
    kernel = source / "kernels" / "tree_attention" / "torch-ext" / "tree_attention" / "__init__.py"
    assert done.stdout.split() == [str(kernel), str(source / "hf_eagle3" / "__init__.py"), "True"]


def _bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
