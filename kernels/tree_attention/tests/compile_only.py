"""Triton's compiler without a GPU: a launch under `compiling_for` compiles for the chip named, and runs nothing.

What is compiled is what a launch on that chip would compile: the same tiles, the same specialisation on strides and
alignment. Triton is handed a driver that says it is the chip, and whose launcher does nothing.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Chip:
    """A GPU as far as a kernel has to fit into it."""

    name: str
    capability: int
    processors: int
    shared_limit: int  # bytes one block may have, by opting in


A100 = Chip("A100", 80, 108, 163 * 1024)
H100 = Chip("H100", 90, 132, 227 * 1024)
B200 = Chip("B200", 100, 148, 227 * 1024)
RTX_4090 = Chip("RTX 4090", 89, 128, 99 * 1024)
RTX_5090 = Chip("RTX 5090", 120, 170, 99 * 1024)


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes: registers and bytes of stack a thread, bytes of shared memory a block; and its
    binary, which [`loops_of`] reads."""

    kernel: str
    chip: str
    warps: int
    registers: int
    stack: int
    local: int
    shared: int
    binary: bytes = field(repr=False)

    @property
    def spills(self) -> bool:
        return self.stack > 0 or self.local > 0

    def __str__(self) -> str:
        return (
            f"{self.chip}: {self.kernel}, {self.warps} warps, {self.registers} registers, "
            f"{self.stack} bytes of stack, {self.shared / 1024:.0f} KB shared"
        )


class _CompileOnlyDriver:
    """What Triton asks of a driver when it compiles and launches a kernel."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.compiled: list[Usage] = []
        self.utils = self
        self.launcher_cls = self._launcher
        self._metadata: Any = None

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip.capability, 32)

    def get_current_device(self) -> int:
        return self.chip.capability  # a number of its own, for Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.chip.shared_limit, "multiprocessor_count": self.chip.processors}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[None, int, int, int, int]:
        used = _resource_usage(binary)
        sizes = {"registers": used["REG"], "stack": used["STACK"], "local": used["LOCAL"], "shared": shared}
        self.compiled.append(Usage(name, self.chip.name, self._metadata.num_warps, **sizes, binary=binary))
        return None, 1, used["REG"], 0, 1024  # no module: there is nothing to unload

    def _launcher(self, source: Any, metadata: Any) -> Any:
        self._metadata = metadata  # Triton makes the launcher first, and loads the binary next
        return lambda *arguments: None


@contextmanager
def compiling_for(chip: Chip, cache: Path) -> Iterator[list[Usage]]:
    """Launches inside compile for `chip` into the folder `cache`, and do nothing; gives what was compiled, in order.

    A kernel that Triton holds compiled already is not listed again: clear its `device_caches` first.
    """
    compile_only = _CompileOnlyDriver(chip)
    before = driver._active
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache)
        driver.set_active(compile_only)
        try:
            yield compile_only.compiled
        finally:
            driver._active = before


def loops_of(binary: bytes) -> list[list[str]]:
    """The instructions of every loop of a kernel, inner loops within outer ones too."""
    listed = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?) ;", _cuobjdump(binary, "-sass"), re.MULTILINE)
    places = [int(place, 16) for place, _ in listed]
    loops = []
    for number, (_, instruction) in enumerate(listed):
        jump = re.search(r"\bBRA\b.* 0x([0-9a-f]+)$", instruction)
        if jump and int(jump[1], 16) < places[number]:
            loops.append([text for _, text in listed[places.index(int(jump[1], 16)) : number + 1]])
    return loops


def _resource_usage(binary: bytes) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL and the rest, of one kernel."""
    said = _cuobjdump(binary, "-res-usage")
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", said)}


def _cuobjdump(binary: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        return subprocess.run([_CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
