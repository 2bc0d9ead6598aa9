"""Where a figure is from: device, driver, clocks, versions, and the state of the sources."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .leaf import sources_digest, submodule

_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu")
_PACKAGES = ("torch", "triton", "transformers")


def describe(device: torch.device, dry_run: bool) -> dict[str, Any]:
    """Everything that must be the same for figures to stand in one record."""
    described: dict[str, Any] = {
        "dry_run": dry_run,
        "kernel": _what_runs(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda,
        "driver": None,
        "commit": _commit(),
        "sources_sha256": sources_digest(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["arch"] = f"sm_{properties.major}{properties.minor}"
        described["multiprocessors"] = properties.multi_processor_count
        described["driver"] = _asked(device, "driver_version")
    return described


def _what_runs(device: torch.device) -> str:
    """What stands behind `tree_attention` here."""
    if device.type == "cuda":
        return "Triton"
    return "Triton's interpreter" if submodule("op").INTERPRETED else "the plain torch reference"


def clocks(device: torch.device) -> dict[str, str | None]:
    """Clocks, limits and temperature as they are now; empty where there is no CUDA device."""
    return {name: _asked(device, name) for name in _CLOCKS} if device.type == "cuda" else {}


def _asked(device: torch.device, field: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", f"--id={_smi_id(device)}"]
    return _said(command)


def _smi_id(device: torch.device) -> str:
    """nvidia-smi counts all devices, torch those that CUDA_VISIBLE_DEVICES leaves."""
    index = device.index or 0
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return visible[index] if index < len(visible) else str(index)


def _commit() -> str | None:
    folder = Path(__file__).resolve().parent
    return _said(["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])


def _said(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
