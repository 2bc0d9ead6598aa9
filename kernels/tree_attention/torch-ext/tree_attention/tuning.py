"""Which tiles, and into how many pieces the prefix is split: a small table, and a file that may overrule it.

Nothing is tried out at run time: the first call of a shape costs one compilation and no search. Starting points are
from ahead-of-time compilation (registers, shared memory, no spills), not from timings.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .ancestors import BITS

TUNING_FILE = "TREE_ATTENTION_TUNING"  # environment: a JSON file written by the benchmark's `tune`
MAX_SPLITS = 64
ROOMY = ("sm_90", "sm_100", "sm_103")  # with 227 KiB of shared memory; the others' entries fit into 99


@dataclass(frozen=True)
class Tiles:
    """
    Args:
        rows: query rows (nodes times query heads of a group) of one program, a power of two of at least 16.
        keys: keys of one step, a power of two of at least 16.
        warps, stages: of Triton's launch.

    Raises:
        ValueError: if Triton would not take them.
    """

    rows: int
    keys: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        numbers = (self.rows, self.keys, self.warps, self.stages)
        whole = all(isinstance(number, int) and number > 0 for number in numbers)
        if not whole or any(number & (number - 1) for number in numbers[:3]) or min(self.rows, self.keys) < 16:
            raise ValueError(
                f"{self}: rows and keys must be powers of two from 16 on, warps one from 1 on, stages at least 1"
            )


@dataclass(frozen=True)
class Plan:
    """
    Args:
        prefix, tree: tiles of the two kernels. Tree keys of one tile share an ancestor word, so they are 32 or 16.
        splits: pieces of the prefix, each a program of its own.
    """

    prefix: Tiles
    tree: Tiles
    splits: int

    def __post_init__(self) -> None:
        _check_tree(self.tree)


@dataclass(frozen=True)
class Choice:
    """What the table holds for one kind of input.

    Args:
        prefix, tree: as in [`Plan`], for many nodes; fewer get tiles as tall as they need.
        resident: programs of the prefix kernel that a multiprocessor holds at a time.
        least_keys: keys that a piece has at least; below that its partial result costs more than it saves.
    """

    prefix: Tiles
    tree: Tiles
    resident: int = 1
    least_keys: int = 256

    def __post_init__(self) -> None:
        _check_tree(self.tree)
        if not all(isinstance(number, int) and number > 0 for number in (self.resident, self.least_keys)):
            raise ValueError(f"resident={self.resident}, least_keys={self.least_keys}: both must be 1 or more")


def _check_tree(tiles: Tiles) -> None:
    if tiles.keys > BITS:
        raise ValueError(f"{tiles} of the tree: its keys must lie within one ancestor word, so 16 or {BITS}")


# By bytes of an element and the head's width in registers; `sm_80` also stands for what is not named. Sixty nodes
# times a group of four make 240 rows: tiles of 128 read each key twice, tiles of 64 four times, for which the cache is
# too slow. In float32 nothing is rounded to TF32, so no tensor cores: small tiles, which fit into registers.
TABLE: dict[str, dict[tuple[int, int], Choice]] = {
    "sm_90": {
        (2, 64): Choice(Tiles(128, 64, 8, 3), Tiles(16, 32, 4, 2)),
        (2, 128): Choice(Tiles(128, 64, 8, 3), Tiles(16, 32, 4, 2)),
        (2, 256): Choice(Tiles(128, 32, 8, 3), Tiles(16, 32, 4, 1)),
        (4, 64): Choice(Tiles(32, 32, 4, 1), Tiles(16, 32, 4, 1), resident=4),
        (4, 128): Choice(Tiles(16, 32, 8, 1), Tiles(16, 16, 4, 1), resident=3),
        (4, 256): Choice(Tiles(16, 16, 8, 1), Tiles(16, 16, 4, 1), resident=2),
    },
    "sm_80": {
        (2, 64): Choice(Tiles(128, 64, 8, 3), Tiles(16, 32, 4, 2)),
        (2, 128): Choice(Tiles(128, 32, 8, 3), Tiles(16, 32, 4, 2)),
        (2, 256): Choice(Tiles(64, 32, 8, 2), Tiles(16, 16, 4, 1)),
        (4, 64): Choice(Tiles(16, 32, 4, 1), Tiles(16, 32, 4, 1), resident=4),
        (4, 128): Choice(Tiles(16, 32, 8, 1), Tiles(16, 16, 4, 1), resident=3),
        (4, 256): Choice(Tiles(16, 16, 8, 1), Tiles(16, 16, 8, 1), resident=2),
    },
}


def plan(arch: str, processors: int, itemsize: int, width: int, rows: int, heads: int, keys: int) -> Plan:
    """Tiles and splits for one call; nothing here reads a device. All layers of a forward ask for the same one.

    Args:
        arch: `"sm_90"` and the like.
        processors: multiprocessors of the device.
        itemsize: bytes of an element.
        width: the wider of the heads of keys and values, rounded up to a power of two.
        rows: query rows that share keys: nodes times group.
        heads: kv heads times batch.
        keys: prefix keys that may be seen, at most.
    """
    return _plan(os.environ.get(TUNING_FILE), arch, processors, itemsize, width, rows, heads, keys)


@functools.lru_cache(maxsize=256)  # the file is read by `choice_for`; here it tells one table's plans from another's
def _plan(
    file: str | None, arch: str, processors: int, itemsize: int, width: int, rows: int, heads: int, keys: int
) -> Plan:
    choice = choice_for(arch, itemsize, width)
    prefix, tree = (_no_taller_than(rows, tiles) for tiles in (choice.prefix, choice.tree))
    # As many pieces as make one full wave: a second wave that is half empty takes as long as a full one.
    slots = processors * choice.resident * choice.prefix.warps // prefix.warps
    programs = -(-rows // prefix.rows) * heads
    splits = min(slots // programs, keys // choice.least_keys, MAX_SPLITS)
    return Plan(prefix, tree, max(splits, 1))


def choice_for(arch: str, itemsize: int, width: int) -> Choice:
    """The entry of the user's file if it has one, else of the table."""
    width = max(64, width)
    for table in (_tuned(os.environ.get(TUNING_FILE)), TABLE):
        found = table.get(arch, {}).get((itemsize, width))
        if found is not None:
            return found
    return TABLE["sm_90" if arch in ROOMY else "sm_80"][(itemsize, width)]


def _no_taller_than(rows: int, tiles: Tiles) -> Tiles:
    """A few nodes need no tall tile, and fewer warps for it; no lower than 32, which cost no more than fewer."""
    tall = min(tiles.rows, max(32, 1 << max(rows - 1, 0).bit_length()))
    warps = max(min(tiles.warps, 4), tiles.warps * tall // tiles.rows)
    return Tiles(tall, tiles.keys, warps, tiles.stages)


@functools.cache
def device_of(index: int) -> tuple[str, int]:
    """Architecture and multiprocessors of a CUDA device."""
    properties = torch.cuda.get_device_properties(index)
    return f"sm_{properties.major}{properties.minor}", properties.multi_processor_count


@functools.cache
def _tuned(path: str | None) -> dict[str, dict[tuple[int, int], Choice]]:
    """The table of a file: a list of entries under each architecture, each with `itemsize`, `width`, `prefix`, `tree`,
    and `resident` and `least_keys` if they are others."""
    if not path:  # not set, or set to nothing
        return {}
    try:
        archs = json.loads(Path(path).read_text(encoding="utf-8"))
        return {arch: dict(_entry(fields) for fields in entries) for arch, entries in archs.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{TUNING_FILE} names {path}, which is no tuning file ({type(error).__name__}: {error}); write one by the "
            "benchmark's `tune`, or unset it."
        ) from error


def _entry(fields: dict[str, Any]) -> tuple[tuple[int, int], Choice]:
    tiles = {name: Tiles(**fields[name]) for name in ("prefix", "tree")}
    more = {name: fields[name] for name in ("resident", "least_keys") if name in fields}
    return (fields["itemsize"], fields["width"]), Choice(**tiles, **more)
