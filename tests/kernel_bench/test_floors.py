"""The least possible time: the arithmetic, against figures worked out by hand for a Llama-3.1-8B layer on an H100."""

from __future__ import annotations

import pytest
import torch
from tree_bench import floors
from tree_bench.cases import LLAMA, SHAPES, Case
from tree_bench.floors import Device, device_of, floor_of

H100 = Device("NVIDIA H100 80GB HBM3", 3.35e12, 989e12, "data sheet")


@pytest.mark.parametrize(
    ("context", "megabytes", "memory_us", "gigaflops", "compute_us"),
    [(2048, 8.39, 2.50, 2.01, 2.04), (8192, 33.6, 10.0, 8.05, 8.14), (32768, 134, 40.1, 32.2, 32.6)],
)
def test_a_llama_layer_on_an_h100(
    context: int, megabytes: float, memory_us: float, gigaflops: float, compute_us: float
) -> None:
    floor = floor_of(Case(LLAMA, context, 60), H100)
    assert floor.bytes / 1e6 == pytest.approx(megabytes, rel=5e-3)
    assert floor.memory_us == pytest.approx(memory_us, rel=5e-3)
    assert floor.flops / 1e9 == pytest.approx(gigaflops, rel=5e-3)
    assert floor.compute_us == pytest.approx(compute_us, rel=5e-3)
    assert floor.microseconds == floor.memory_us


def test_many_nodes_are_bound_by_arithmetic() -> None:
    floor = floor_of(Case(LLAMA, 8192, 128), H100)
    assert floor.microseconds == floor.compute_us > floor.memory_us


def test_a_sliding_layer_reads_its_window_alone() -> None:
    case = Case(SHAPES["gemma-3-4b-sliding"], 32768, 60)
    assert case.keys == 1023 + 60
    assert floor_of(case, H100).bytes == 2 * 4 * (1023 + 60) * 256 * 2
    assert Case(SHAPES["gemma-3-4b-sliding"], 512, 60).keys == 512


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA GH200 480GB", 4.0e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
        ("NVIDIA L40S", 864e9),
        ("NVIDIA L4", 300e9),
    ],
)
def test_a_device_is_known_by_its_name(name: str, bandwidth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    device = device_of(torch.device("cuda"))
    assert device.bandwidth == bandwidth
    assert device.source.startswith("data sheet")


def test_an_unknown_device_is_measured_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "_product_rate", lambda device: 1e9)
    device = device_of(torch.device("cpu"))
    assert device.source.startswith("measured here")
    assert device.bandwidth > 1e8
