"""The tree of a call that asks for none, and the warning where a dtype is only emulated."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from hf_eagle3 import pairing
from hf_eagle3.default_trees import ACCELERATOR, CPU, CPU_EMULATED, CPU_HALF, DEFAULT_TREES, default_tree, device_kind
from hf_eagle3.pairing import tree_shape

ABLE, UNABLE = {"avx512_bf16": True, "avx512_fp16": True}, {"avx2": True}


@pytest.fixture
def pair(pair_folders) -> tuple[Any, Any]:
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    return target, AutoModel.from_pretrained(pair_folders.head).eval()


def has(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


@pytest.mark.parametrize(
    ("capabilities", "dtype", "kind"),
    [
        (ABLE, torch.float32, CPU), (UNABLE, torch.float32, CPU), (UNABLE, torch.float64, CPU),
        (ABLE, torch.bfloat16, CPU_HALF), (ABLE, torch.float16, CPU_HALF),
        (UNABLE, torch.bfloat16, CPU_EMULATED), (UNABLE, torch.float16, CPU_EMULATED),
        ({"avx512_bf16": True}, torch.float16, CPU_EMULATED),
    ],
)  # fmt: skip
def test_what_decides_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capabilities, dtype: torch.dtype, kind: str) -> None:
    has(monkeypatch, capabilities)
    assert device_kind(torch.device("cpu"), dtype) == kind
    assert default_tree(torch.device("cpu"), dtype) == DEFAULT_TREES[kind]
    for device in ("cuda:1", "mps", "xpu"):
        assert device_kind(torch.device(device), dtype) == ACCELERATOR


def test_a_record_tells_what_its_machine_could() -> None:
    cpu = torch.device("cpu")
    assert device_kind(cpu, torch.bfloat16, native=True) == CPU_HALF
    assert device_kind(cpu, torch.bfloat16, native=False) == CPU_EMULATED
    assert device_kind(cpu, torch.float32, native=False) == CPU


def test_a_call_gets_the_tree_of_what_it_computes_on(monkeypatch: pytest.MonkeyPatch, pair) -> None:
    target, head = pair
    small = pairing.TreeShape(2, 2, 1)
    monkeypatch.setitem(DEFAULT_TREES, CPU_EMULATED, small)
    has(monkeypatch, UNABLE)
    assert tree_shape(target, head, {}, None) == DEFAULT_TREES[CPU]
    assert tree_shape(target.bfloat16(), head, {}, None) == small
    assert tree_shape(target, head, {"tree_top_k": 3}, None) == pairing.TreeShape(2, 2, 3)
    has(monkeypatch, ABLE)
    assert tree_shape(target, head, {}, None) == DEFAULT_TREES[CPU_HALF]


def test_the_threshold_of_a_default_tree_goes_with_its_sizes(monkeypatch: pytest.MonkeyPatch, pair) -> None:
    """A tree whose size somebody asked for is not ended early by what was measured for another one."""
    target, head = pair
    monkeypatch.setitem(DEFAULT_TREES, CPU, pairing.TreeShape(12, 6, 6, 0.4))
    name = "assistant_confidence_threshold"
    assert tree_shape(target, head, {}, None) == pairing.TreeShape(12, 6, 6, 0.4)
    assert tree_shape(target, head, {"tree_depth": 8}, None) == pairing.TreeShape(12, 8, 6)
    assert tree_shape(target, head, {"tree_top_k": 2}, None) == pairing.TreeShape(12, 6, 2, 0.4)
    assert tree_shape(target, head, {name: 0.2}, None) == pairing.TreeShape(12, 6, 6, 0.2)
    assert tree_shape(target, head, {name: 0.0}, None) == pairing.TreeShape(12, 6, 6)
    assert tree_shape(target, head, {"tree_depth": 8, name: 0.1}, None) == pairing.TreeShape(12, 8, 6, 0.1)
    monkeypatch.setattr(head.generation_config, "num_assistant_tokens", 20)
    assert tree_shape(target, head, {}, None) == pairing.TreeShape(20, 6, 6)
    with pytest.raises(ValueError, match=f"`draft_tree` and {name}"):
        tree_shape(target, head, {"draft_tree": "mc_sim_7b_63", name: 0.4}, None)


@pytest.fixture
def unwarned():
    pairing._warn_of_emulation.cache_clear()
    yield
    pairing._warn_of_emulation.cache_clear()


def answer(pair: tuple[Any, Any]) -> None:
    pair[0].generate(torch.tensor([[1, 7, 9]]), assistant_model=pair[1], max_new_tokens=3, do_sample=False)


@pytest.mark.usefixtures("unwarned")
def test_an_emulated_dtype_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, pair, caplog: pytest.LogCaptureFixture
) -> None:
    has(monkeypatch, UNABLE)
    with caplog.at_level(logging.WARNING, logger="hf_eagle3"):
        answer(pair)
        assert not caplog.records
        pair[0].bfloat16(), pair[1].bfloat16()
        answer(pair)
        answer(pair)
    (told,) = caplog.records
    assert told.name.split(".")[0] == "hf_eagle3"
    assert "in bfloat16" in told.getMessage()
    assert "float32 is faster on this machine" in told.getMessage()


@pytest.mark.usefixtures("unwarned")
def test_a_dtype_that_the_cpu_has_is_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, pair, caplog: pytest.LogCaptureFixture
) -> None:
    has(monkeypatch, ABLE)
    pair[0].bfloat16(), pair[1].bfloat16()
    with caplog.at_level(logging.WARNING, logger="hf_eagle3"):
        answer(pair)
    assert not caplog.records


@pytest.mark.usefixtures("unwarned")
def test_what_is_true_of_cpus_is_not_told_of_gpus(
    monkeypatch: pytest.MonkeyPatch, pair, caplog: pytest.LogCaptureFixture
) -> None:
    """One without bfloat16 has float16, and whether float32 is faster there was not measured."""
    monkeypatch.setattr(pairing, "_place", lambda target, head: torch.device("cuda"))
    monkeypatch.setattr(pairing, "multiplies_natively", lambda dtype, device: False)
    with caplog.at_level(logging.WARNING, logger="hf_eagle3"):
        pairing.check_pair(*pair)
        assert not caplog.records
        monkeypatch.setattr(pairing, "_place", lambda target, head: torch.device("cpu"))
        pairing.check_pair(*pair)
    assert len(caplog.records) == 1
