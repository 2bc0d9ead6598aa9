"""The fastest tiles of a device, searched one thing at a time: the prefix's tile, how it is split, the tree's tile.

Writes the table that the kernel reads where TREE_ATTENTION_TUNING names it, after every step that found something
better, and adds to the one that is there. A candidate is tried the way a user's table is: through that variable.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch

from . import oracle
from .cases import DTYPES, Case, Shape
from .inputs import Inputs, make_inputs
from .leaf import submodule
from .measurement import copies_of
from .record import write_whole
from .stopwatch import Stopwatch, first_line
from .ways import kernel_candidate

_WORTH = 0.99  # of the time so far: less is noise
_CONTEXTS, _NODES = (2048, 8192, 32768), 60
_DRY_CONTEXTS, _DRY_NODES = (64, 96), 12


def tune(path: Path, device: torch.device, dim: int, dtype: str, seconds: float) -> dict[str, Any]:
    """Search for one width and dtype on one device, write the best to `path`, and give its entry of the table.

    Args:
        path: of the table; entries for other devices, widths and dtypes stay.
        dim: of the heads.
        seconds: no candidate is begun after them.

    Raises:
        ValueError: if not even the starting point runs and is right.
    """
    tuning = submodule("tuning")
    dry = device.type != "cuda"
    arch = "cpu" if dry else tuning.device_of(device.index or 0)[0]
    itemsize, width = DTYPES[dtype].itemsize, max(64, 1 << (dim - 1).bit_length())
    inputs = _inputs(dim, dtype, device)
    best, deadline = tuning.choice_for(arch, itemsize, width), time.monotonic() + seconds
    score = _score(best, arch, itemsize, width, inputs)
    if isinstance(score, str):
        raise ValueError(
            f"The tiles that are there already do not run on {arch} ({score}), so nothing better was sought."
        )
    print(f"{dtype}, heads of {dim}, {arch}: {score:.1f} us to begin with", flush=True)
    for name, candidates in _steps(tuning, dry).items():
        for candidate in candidates:
            if time.monotonic() > deadline:
                print(f"{seconds:g} s are over, at {name}", flush=True)
                return _write(path, arch, itemsize, width, best)
            choice = replace(best, **candidate)
            found = _score(choice, arch, itemsize, width, inputs)
            if isinstance(found, str):
                print(f"  {_told(candidate)}: {found}", flush=True)
            elif found < score * _WORTH:
                best, score = choice, found
                print(f"  {_told(candidate)}: {score:.1f} us", flush=True)
                _write(path, arch, itemsize, width, best)
    return _write(path, arch, itemsize, width, best)


def _steps(tuning: Any, dry: bool) -> dict[str, list[dict[str, Any]]]:
    """What is tried, in this order."""
    if dry:
        return {"the prefix's tile": [{"prefix": tuning.Tiles(32, 32, 4, 2)}], "pieces": [{"resident": 2}]}
    prefix = [
        {"prefix": tuning.Tiles(rows, keys, warps, stages), "resident": 8 // warps}
        for rows, keys, warps, stages in product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
        if not (rows == 128 and warps == 4)  # spills
    ]
    pieces = [{"resident": r, "least_keys": k} for r, k in product((1, 2, 3, 4), (128, 256, 512, 1024))]
    tree = product((16, 32, 64), (16, 32), (2, 4, 8), (1, 2))
    return {
        "the prefix's tile": prefix,
        "pieces": pieces,
        "the tree's tile": [{"tree": tuning.Tiles(*sizes)} for sizes in tree],
    }


def _inputs(dim: int, dtype: str, device: torch.device) -> list[Inputs]:
    """Llama's heads at the width in question, one for each context."""
    dry = device.type != "cuda"
    shape = Shape("tuned", 4, 2, dim) if dry else Shape("tuned", 32, 8, dim)
    cases = [
        Case(shape, context, _DRY_NODES if dry else _NODES, dtype=dtype)
        for context in (_DRY_CONTEXTS if dry else _CONTEXTS)
    ]
    return [make_inputs(case, device, copies_of(case, device)) for case in cases]


def _score(choice: Any, arch: str, itemsize: int, width: int, inputs: list[Inputs]) -> float | str:
    """Geometric mean of the microseconds at every context; what is wrong, if it does not run or is not right."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "tuning.json"
        table.write_text(json.dumps({arch: [_entry(choice, itemsize, width)]}), encoding="utf-8")
        with _named(table), torch.no_grad():
            for of_context in inputs:
                try:
                    candidate = kernel_candidate(of_context)
                    error = oracle.relative_error(candidate.call(0), oracle.attend(of_context, 0))
                except Exception as refusal:  # a tile may need more than a device has
                    return first_line(refusal)
                if error > oracle.TOLERANCE[of_context.q.dtype]:
                    return f"wrong, {error:.2g} from float64"
                watch = Stopwatch(candidate.call, len(of_context.caches), of_context.q.device)
                times.append(min(watch.lap(watch.clocks[-1]) for _ in range(3)))
    return geometric_mean(times)


@contextmanager
def _named(table: Path) -> Iterator[None]:
    variable = submodule("tuning").TUNING_FILE
    before = os.environ.get(variable)
    os.environ[variable] = str(table)
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _entry(choice: Any, itemsize: int, width: int) -> dict[str, Any]:
    """As the kernel's `tuning` module reads it."""
    return {"itemsize": itemsize, "width": width, **asdict(choice)}


def _write(path: Path, arch: str, itemsize: int, width: int, best: Any) -> dict[str, Any]:
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entry = _entry(best, itemsize, width)
    others = [kept for kept in table.get(arch, []) if (kept["itemsize"], kept["width"]) != (itemsize, width)]
    write_whole(path, json.dumps({**table, arch: [*others, entry]}, indent=1) + "\n")
    return entry


def _told(candidate: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in candidate.items())
