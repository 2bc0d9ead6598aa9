"""The least time that a case can take on a device: its keys and values read once, its products on the tensor cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .cases import DTYPES, Case


@dataclass(frozen=True)
class Device:
    """
    Args:
        bandwidth: bytes per second.
        peak: dense half-precision floating-point operations per second.
        source: where the two figures are from.
    """

    name: str
    bandwidth: float
    peak: float
    source: str


# Makers' figures, dense, half precision with float32 accumulation. The first name found in the device's own counts.
_DATA_SHEETS = (
    ("B200", 8.0e12, 2250e12),
    ("GH200", 4.0e12, 989e12),
    ("H200", 4.8e12, 989e12),
    ("H100 NVL", 3.9e12, 835e12),
    ("H100 PCIe", 2.0e12, 756e12),
    ("H100", 3.35e12, 989e12),
    ("A100-SXM4-80GB", 2.039e12, 312e12),
    ("A100 80GB PCIe", 1.935e12, 312e12),
    ("A100", 1.555e12, 312e12),
    ("L40S", 864e9, 362e12),
    ("L40", 864e9, 181e12),
    ("L4", 300e9, 121e12),
    ("A10G", 600e9, 70e12),
    ("RTX 4090", 1008e9, 165e12),
)


@dataclass(frozen=True)
class Floor:
    """
    Args:
        bytes: keys and values, each read once.
        flops: both products, over every key that a node of the case may see.
        microseconds: the longer of the two times.
    """

    bytes: int
    flops: int
    memory_us: float
    compute_us: float

    @property
    def microseconds(self) -> float:
        return max(self.memory_us, self.compute_us)


def floor_of(case: Case, device: Device) -> Floor:
    """Queries, results and masks are left out: they are small, and a floor errs on the low side."""
    shape = case.shape
    size = DTYPES[case.dtype].itemsize
    moved = 2 * case.batch * shape.kv_heads * case.keys * shape.head_dim * size
    flops = 4 * case.batch * shape.q_heads * case.nodes * case.keys * shape.head_dim
    return Floor(moved, flops, moved / device.bandwidth * 1e6, flops / device.peak * 1e6)


def device_of(device: torch.device) -> Device:
    """From the makers' figures, else measured: a copy and a square product tell what the device really reaches."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for part, bandwidth, peak in _DATA_SHEETS:
        if part in name:
            return Device(name, bandwidth, peak, f"data sheet of {part}")
    return Device(name, _copy_bandwidth(device), _product_rate(device), "measured here: a copy, a square product")


def _copy_bandwidth(device: torch.device) -> float:
    source = torch.empty((256 if device.type == "cuda" else 16) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _best_seconds(lambda: target.copy_(source), device)


def _product_rate(device: torch.device) -> float:
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (256, torch.float32)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _best_seconds(lambda: matrix @ matrix, device)


def _best_seconds(work: Callable[[], object], device: torch.device, times: int = 5) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return min(once() for _ in range(times))
