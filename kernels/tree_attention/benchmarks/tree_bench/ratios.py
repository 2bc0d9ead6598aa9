"""What is compared: hardware-free figures of one case, out of what its ways took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ways import AS_MODELS_CALL, EAGER, FLEX, KERNEL, NO_MASK, ONE_NODE, SDPA, SDPA_BEST

BASELINES = (SDPA, SDPA_BEST, EAGER, FLEX)
CLOCKS = ("graph", "launch")


def ratios_of(ways: Mapping[str, Mapping[str, Any]], floor_us: float) -> dict[str, dict[str, Any]]:
    """For each clock that the kernel was timed on:

    - `speedup`: how many times as long each baseline takes;
    - `floor_fraction`: the least possible time over the kernel's;
    - `verify_overhead`: the whole tree's time over one node's, 1 as long as memory is all that counts;
    - `call_tax`: the time with all that models pass over the kernel's own;
    - `tree_tax`: the tree's time over that of attention without a mask on the same shape.

    None where the other figure is missing.
    """
    ratios = {}
    for clock in CLOCKS:
        own = median(ways, KERNEL, clock)
        if own is None:
            continue
        ratios[clock] = {
            "speedup": {name: _over(median(ways, name, clock), own) for name in BASELINES},
            "floor_fraction": floor_us / own,
            "verify_overhead": _over(own, median(ways, ONE_NODE, clock)),
            "tree_tax": _over(own, median(ways, NO_MASK, clock)),
            "call_tax": _over(median(ways, AS_MODELS_CALL, clock), own),
        }
    return ratios


def median(ways: Mapping[str, Mapping[str, Any]], name: str, clock: str) -> float | None:
    """Microseconds; None where that way has not been timed on that clock."""
    times = ways.get(name, {}).get(clock)
    return None if times is None else float(times["median_us"])


def _over(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below
