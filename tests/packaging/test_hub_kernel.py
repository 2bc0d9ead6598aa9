"""The kernel as a project of the Hub's: its files, and a build of it loaded by the `kernels` package.

`kernels` is no dependency. transformers 5.23 takes 0.18.2 and newer, which PyPI did not have when this was written;
what is tested here needs only what 0.17 has too, and is left out where the package is not installed.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import hf_eagle3.tree_attention as installed
import pytest
import torch
from helpers.hub_kernel import PROJECT, build_hub_kernel, read_build
from huggingface_hub import RepoCard
from packaging.version import Version

from hf_eagle3.release import REPOSITORY

SOURCES = sorted((PROJECT / "torch-ext").rglob("*.py"))
NEEDED = "0.17"


def kernels_package() -> ModuleType:
    """`kernels`, if it is there. Its version is asked for first: a clone has a folder of that name."""
    try:
        version = metadata.version("kernels")
    except metadata.PackageNotFoundError:
        pytest.skip("the package `kernels` is not installed")
    if Version(version) < Version(NEEDED):
        pytest.skip(f"kernels {version} is older than {NEEDED}")
    import kernels

    return kernels


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return build_hub_kernel(tmp_path / "repository", "0a1b2c3")


def attended(module: ModuleType) -> torch.Tensor:
    """What a module makes of one small tree."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 5, 16, generator=generator)
    k, v = torch.randn(2, 1, 2, 12, 16, generator=generator)
    words = module.pack_ancestors(torch.tensor([[-1, 0, 0, 1, 3]]))
    return module.tree_attention(q, k, v, words, prefix_len=7)


def test_build_configuration() -> None:
    build = read_build()
    general = build["general"]
    assert general["license"] == metadata.metadata("hf-eagle3")["License-Expression"]
    assert general["source"] == REPOSITORY
    assert general["edition"] == 5
    assert (PROJECT / "torch-ext" / general["name"].replace("-", "_") / "__init__.py").is_file()
    assert set(build) == {"general", "torch-noarch"}
    assert (PROJECT / "flake.nix").is_file()


def test_the_builders_own_parser_takes_it() -> None:
    kernels_package()
    from kernels._rust import Build

    backends = {str(backend).lower() for backend in Build.open(PROJECT).general.backends}
    assert backends == set(read_build()["general"]["backends"])


def test_the_card_is_one_for_the_hub() -> None:
    general = read_build()["general"]
    card = RepoCard.load(PROJECT / "CARD.md")
    assert card.data["library_name"] == "kernels"
    assert card.data["license"] == general["license"].lower()
    assert f'get_kernel("{general["hub"]["repo-id"]}", version={general["version"]},' in card.text
    assert "{{" not in card.text
    for name in ("tree_attention", "pack_ancestors", "tree_attention_reference"):
        assert name in installed.__all__
        assert name in card.text


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_sources_are_as_a_hub_kernel_must_be(path: Path) -> None:
    """Python 3.9, relative imports of its own modules, and nothing from outside but torch and triton."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    outside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add(str(node.module).split(".")[0])
    assert outside - set(sys.stdlib_module_names) <= {"torch", "triton", "__future__"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_operators_are_registered_under_the_builds_own_name(path: Path) -> None:
    """kernel-builder refuses a decorator of torch.library whose argument is no call of `add_op_namespace_prefix`."""
    named = {"custom_op", "triton_op", "register_kernel", "register_fake", "register_vmap", "register_torch_dispatch"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] in named:
                assert ast.unparse(decorator.args[0]).startswith("add_op_namespace_prefix("), ast.unparse(decorator)


def test_a_build_loads_beside_the_installed_module(repository: Path) -> None:
    kernel = kernels_package().get_local_kernel(repository)
    assert Path(str(kernel.__file__)).parent == repository / "build" / f"torch-{_backend()}"
    assert kernel.__all__ == installed.__all__
    assert kernel.tree_attention is not installed.tree_attention
    assert torch.equal(attended(kernel), attended(installed))
    namespace = f"_tree_attention_{_backend()}_0a1b2c3"
    assert kernel.__name__ == namespace
    assert hasattr(getattr(torch.ops, namespace), "tree_attention")
    assert hasattr(torch.ops.hf_eagle3, "tree_attention")
    older = _import(repository / "build" / f"torch-{_backend()}" / "tree_attention" / "__init__.py")
    assert older.tree_attention is kernel.tree_attention


def test_two_builds_live_in_one_process(tmp_path: Path) -> None:
    load = kernels_package().get_local_kernel
    one, other = (load(build_hub_kernel(tmp_path / name, name)) for name in ("1111111", "2222222"))
    assert one.__name__ != other.__name__
    assert torch.equal(attended(one), attended(other))


def test_by_its_name_on_the_hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`get_kernel`, with the repository replaced by a folder in the way that `kernels` offers."""
    name = read_build()["general"]["hub"]["repo-id"]
    monkeypatch.setenv("LOCAL_KERNELS", f"{name}={build_hub_kernel(repository.parent / 'named', '3333333')}")
    kernel = kernels_package().get_kernel(name, version=0)
    assert kernel.__name__.endswith("_3333333")
    assert torch.equal(attended(kernel), attended(installed))


def test_the_hubs_benchmark_is_one_that_its_runner_takes() -> None:
    """`kernels benchmark` finds the class, sets `kernel` and `device`, and compares `out` with each check."""
    kernels_package()
    script = _import(PROJECT / "benchmarks" / "benchmark.py")
    script.HEADS, script.KV_HEADS, script.DIM = 4, 2, 16
    bench = script.TreeAttentionBenchmark()
    bench.kernel, bench.device = installed, "cpu"
    torch.manual_seed(bench.seed)
    workloads = [name.removeprefix("benchmark_") for name in dir(bench) if name.startswith("benchmark_")]
    assert sorted(workloads) == ["2k", "32k", "8k"]
    bench.setup_2k()
    bench.benchmark_2k()
    assert torch.allclose(bench.out, bench.verify_2k(), atol=1e-2)
    bench.mask = torch.ones_like(bench.mask)
    assert not torch.equal(bench.out, bench.verify_2k())


def test_what_metadata_says_of_the_files_holds(repository: Path) -> None:
    kernels_package()
    from kernels._rust import Digest, DigestAlgorithm, Metadata

    for variant in (repository / "build").iterdir():
        told = Metadata.read_from_file(variant / "metadata.json")
        assert told.digest is not None
        told.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))
        assert str(told.backend.backend_type).lower() == variant.name.removeprefix("torch-")


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("older", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _backend() -> str:
    return "cuda" if torch.version.cuda else "cpu"
