"""Which kernel attends trees: every way of asking for one, and one line of the log."""

from __future__ import annotations

import importlib
import logging
import sys
import types
from typing import Any

import pytest
import torch
from helpers.agreement import compare
from helpers.oracle import oracle
from helpers.targets import prompt, tiny_target

import hf_eagle3
from hf_eagle3 import switching, tree_attention, tree_kernel
from hf_eagle3.tree_kernel import use_tree_kernel


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not attended a tree yet."""
    monkeypatch.setattr(tree_kernel, "_kernel", None)
    monkeypatch.delenv(tree_kernel.CHOICE_VARIABLE, raising=False)


@pytest.fixture(params=[True, False], ids=["triton", "no triton"])
def triton(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(tree_kernel, "has_triton", lambda: request.param)
    return request.param


class Hub:
    """A `kernels` package with one repository, and what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any = tree_attention) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.module = module
        package = types.ModuleType("kernels")
        package.get_kernel = self.get_kernel  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "kernels", package)

    def get_kernel(self, repository: str, **which: Any) -> Any:
        self.asked.append((repository, which))
        if repository != "someone/tree":
            raise FileNotFoundError(f"no build of {repository} for this machine\nand a second line")
        return self.module


# ---------------------------------------------------------------------- without the Hub


def test_by_itself(triton: bool) -> None:
    kernel = tree_kernel.tree_kernel()
    assert kernel.is_reference is not triton
    expected = tree_attention.tree_attention if triton else tree_attention.tree_attention_reference
    assert kernel.tree_attention is expected
    assert tree_kernel.tree_kernel() is kernel, "chosen once"


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_reference_asked_for(triton: bool, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "variable":
        monkeypatch.setenv(tree_kernel.CHOICE_VARIABLE, "reference")
        kernel = tree_kernel.tree_kernel()
    else:
        kernel = use_tree_kernel("reference")
    assert kernel.is_reference
    assert kernel.tree_attention is tree_attention.tree_attention_reference


def test_triton_asked_for(triton: bool) -> None:
    if triton:
        assert use_tree_kernel("triton").tree_attention is tree_attention.tree_attention
        return
    with pytest.raises(ImportError, match=r"no Triton from 3\.3 on can be imported; run `pip install") as error:
        use_tree_kernel("triton")
    assert "\n" not in str(error.value)


def test_a_name_that_is_none() -> None:
    with pytest.raises(ImportError, match='`trition` is no tree-attention kernel; say "auto"'):
        use_tree_kernel("trition")


def test_triton_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not tree_kernel.has_triton()


@pytest.mark.parametrize(("version", "good"), [("3.2.0", False), ("3.3.0", True), ("3.10.0+git1", True)])
def test_triton_that_is_too_old(version: str, good: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__=version))
    assert tree_kernel.has_triton() is good


def test_a_wish_that_failed_leaves_the_choice_as_it_was() -> None:
    kernel = use_tree_kernel("reference")
    with pytest.raises(ImportError):
        use_tree_kernel("nobody")
    assert tree_kernel.tree_kernel() is kernel


# ---------------------------------------------------------------------- from the Hub


@pytest.mark.parametrize(
    ("choice", "which"),
    [
        ("someone/tree", {"revision": "main"}),
        ("someone/tree@v1.2", {"revision": "v1.2"}),
        ("someone/tree@3", {"version": 3}),
    ],
)
def test_from_the_hub(choice: str, which: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    monkeypatch.setenv(tree_kernel.CHOICE_VARIABLE, choice)
    kernel = tree_kernel.tree_kernel()
    assert hub.asked == [("someone/tree", which)]
    assert kernel.tree_attention is tree_attention.tree_attention
    assert not kernel.is_reference


def test_code_of_strangers_is_trusted_only_if_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    use_tree_kernel("someone/tree", trust_remote_code=True)
    assert hub.asked == [("someone/tree", {"revision": "main", "trust_remote_code": True})]


def test_the_hub_is_never_asked_unless_the_user_asks(triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    tree_kernel.tree_kernel()
    use_tree_kernel("reference")
    assert hub.asked == []


@pytest.mark.parametrize("case", ["no package", "no repository", "another kernel"])
def test_what_the_hub_does_not_give(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "no package":
        monkeypatch.setitem(sys.modules, "kernels", None)
    else:
        Hub(monkeypatch, module=types.ModuleType("other"))
    choice = "someone/other" if case == "no repository" else "someone/tree"
    with pytest.raises(ImportError, match=f"{choice}' cannot be loaded from the Hub .*`kernels` package") as error:
        use_tree_kernel(choice)
    assert "\n" not in str(error.value)
    assert f"use_tree_kernel('{choice}', trust_remote_code=True)" in str(error.value)


# ---------------------------------------------------------------------- told, and used


def test_a_wish_that_cannot_be_met_is_told_by_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, and not as a fault of the target."""
    monkeypatch.setitem(sys.modules, "kernels", None)
    monkeypatch.setenv(tree_kernel.CHOICE_VARIABLE, "someone/tree")
    target = tiny_target(attention="eagle3_tree")
    with pytest.raises(ImportError, match="'someone/tree' cannot be loaded from the Hub"):
        target.generate(prompt(), max_new_tokens=4, assistant_model=oracle(target))


@pytest.mark.parametrize("choice", ["reference", "someone/tree"])
def test_generate_with_a_kernel_of_choice(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer of every tree goes through it."""
    calls: list[int] = []

    def counted(q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(q.shape[2])
        return tree_attention.tree_attention_reference(q, *args, **kwargs)

    module = types.SimpleNamespace(tree_attention=counted, pack_ancestors=tree_attention.pack_ancestors)
    Hub(monkeypatch, module)
    monkeypatch.setattr(tree_attention, "tree_attention", counted)
    hf_eagle3.use_tree_kernel(choice)
    target = tiny_target(attention="eagle3_tree", max_position_embeddings=300 + len(choice))
    pair = compare(target, oracle(target), {"max_new_tokens": 24}, least=1.5, input_ids=prompt())
    rounds = len(pair.drafted.acceptance_lengths[0])
    assert len(calls) == (0 if choice == "reference" else 7 * (rounds + 2)), "two more trees are the probe's"


@pytest.mark.parametrize("choice", ["auto", "reference", "someone/tree@3"])
def test_one_line_says_which(choice: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    Hub(monkeypatch)
    monkeypatch.setenv(tree_kernel.CHOICE_VARIABLE, choice)
    with caplog.at_level(logging.INFO, logger="hf_eagle3"):
        kernel = tree_kernel.tree_kernel()
        tree_kernel.tree_kernel()
    [line] = [record.getMessage() for record in caplog.records]
    assert kernel.name in line
    assert {"auto": "tree_attention", "reference": "reference"}.get(choice, choice) in line


@pytest.mark.parametrize(
    ("device", "built_for", "capability", "choice", "pays"),
    [
        ("cuda", "13.0", (9, 0), "auto", True),
        ("cuda", "13.0", (8, 0), "auto", True),
        ("cuda", "13.0", (7, 5), "auto", False),
        ("cuda", "13.0", (9, 0), "reference", False),
        ("cuda", None, (9, 4), "auto", False),  # an AMD GPU goes by the same name
        ("cpu", "13.0", None, "auto", False),
        ("meta", "13.0", None, "auto", False),
    ],
)
def test_where_it_pays(
    device: str,
    built_for: str | None,
    capability: tuple[int, int] | None,
    choice: str,
    pays: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A T4, of 7.5, would let the probe's small tree through and have no room for a whole one."""
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(tree_kernel, "has_triton", lambda: True)
    monkeypatch.setenv(tree_kernel.CHOICE_VARIABLE, choice)
    target: Any = types.SimpleNamespace(device=torch.device(device))
    assert switching.kernel_pays(target) is pays


def test_the_leaf_is_looked_for_by_its_installed_name() -> None:
    assert importlib.import_module(tree_kernel.INSTALLED) is tree_attention
