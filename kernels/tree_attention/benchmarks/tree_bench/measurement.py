"""One case measured: candidates tried and checked, the right ones raced, ratios taken."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import oracle
from .cases import Case
from .flex import flex_way
from .floors import Device, floor_of
from .inputs import Inputs, make_inputs
from .ratios import ratios_of
from .stopwatch import Stopwatch, first_line, microseconds, race
from .ways import (
    ONE_NODE,
    Candidate,
    Way,
    as_models_call_way,
    eager_way,
    kernel_way,
    no_mask_way,
    one_node_way,
    sdpa_best_way,
    sdpa_way,
)

_LEAST_CACHES = 100 * 2**20  # bytes that a tour goes through, twice what a large device keeps near
WAYS = (kernel_way, as_models_call_way, one_node_way, sdpa_way, sdpa_best_way, eager_way, flex_way, no_mask_way)


@dataclass(frozen=True)
class Protocol:
    """
    Args:
        rounds: figures of each way, one after the other's.
        patience: seconds after which a way's further candidates are left out.
        lap_seconds: how long one figure is measured.
    """

    rounds: int = 5
    patience: float = 60.0
    lap_seconds: float = 0.02


@dataclass
class Tried:
    """What became of a way: the candidate that stands for it, if one is right, and what each did."""

    candidate: Candidate | None = None
    stopwatch: Stopwatch | None = None
    label: str | None = None
    best_us: float = float("inf")
    error: float | None = None
    right: bool = False
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """ "timed", "wrong" (it ran, and no candidate was right) or "unavailable" (none ran)."""
        if self.stopwatch is not None:
            return "timed"
        return "unavailable" if self.error is None else "wrong"


def measure(
    case: Case,
    hardware: Device,
    device: torch.device,
    protocol: Protocol,
    ways: Sequence[Callable[[], Way]] | None = None,
) -> dict[str, Any]:
    """The record of a case.

    Args:
        hardware: what the floor is computed from.
        ways: which to try; all of WAYS if none are given.
    """
    inputs = make_inputs(case, device, copies_of(case, device))
    tried = {}
    for make in ways or WAYS:
        way = make()
        own = inputs.one_node() if way.name == ONE_NODE else inputs
        tried[way.name] = try_way(way, own, protocol)
    running = {name: result.stopwatch for name, result in tried.items() if result.stopwatch is not None}
    times = race(running, protocol.rounds)
    rows = {name: _row(result, times.get(name, {}), device) for name, result in tried.items()}
    floor = floor_of(case, hardware)
    return {
        "case": {**dataclasses.asdict(case), "keys": case.keys, "copies": len(inputs.caches)},
        "floor": {**dataclasses.asdict(floor), "microseconds": floor.microseconds},
        "ways": rows,
        "ratios": ratios_of(rows, floor.microseconds),
    }


def copies_of(case: Case, device: torch.device) -> int:
    """Caches to go through, so that none stays in the device's own; on a CPU two, nothing being told of its speed."""
    if device.type != "cuda":
        return 2
    keep = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, -(-max(_LEAST_CACHES, 2 * keep) // floor_of(case, Device("", 1, 1, "")).bytes) + 1)


def try_way(way: Way, inputs: Inputs, protocol: Protocol) -> Tried:
    """Build, check and try every candidate; keep the fastest that is right."""
    result, began = Tried(), time.monotonic()
    for label, build in way.candidates(inputs):
        if time.monotonic() - began > protocol.patience and result.notes:
            result.notes[label] = f"not tried: {protocol.patience:g} s were over"
            continue
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")  # sdpa tells in warnings why no backend will do
                candidate = build()
                with candidate.within():
                    candidate.call(0)
                    error = _error(candidate, inputs) if way.exact else None
        except Exception as refusal:  # a baseline refuses as it likes; the record says how
            result.notes[label] = " / ".join([first_line(refusal), *_reasons(heard)])
            continue
        _consider(result, label, candidate, error, inputs, protocol)
    return result


def _reasons(heard: Sequence[warnings.WarningMessage]) -> list[str]:
    """What was warned of, each line once, without torch's own places in its sources."""
    lines = [str(warning.message).strip().splitlines()[0].split(" (Triggered")[0] for warning in heard]
    return [line for line in dict.fromkeys(lines) if line and not line.endswith("kernel not used because:")][:4]


def _consider(
    result: Tried, label: str, candidate: Candidate, error: float | None, inputs: Inputs, protocol: Protocol
) -> None:
    tolerance = oracle.TOLERANCE[inputs.q.dtype]
    if error is not None and error > tolerance:
        result.notes[label] = f"wrong: {error:.2g} from float64, where {tolerance:g} is allowed"
        if not result.right:
            result.error = error
        return
    watch = Stopwatch(candidate.call, len(inputs.caches), inputs.q.device, protocol.lap_seconds, candidate.within)
    took = watch.lap(watch.clocks[-1])  # the graph's, where there is one
    result.notes[label] = f"{took:.1f} us"
    if took < result.best_us:
        result.candidate, result.stopwatch, result.label = candidate, watch, label
        result.best_us, result.error, result.right = took, error, True


def _error(candidate: Candidate, inputs: Inputs) -> float:
    """The largest error on the first and the last cache."""
    caches = {0, len(inputs.caches) - 1}
    return max(oracle.relative_error(candidate.call(cache), oracle.attend(inputs, cache)) for cache in caches)


def _row(result: Tried, times: dict[str, Any], device: torch.device) -> dict[str, Any]:
    row: dict[str, Any] = {
        "status": result.status,
        "candidate": result.label,
        "error": result.error,
        "candidates": result.notes,
    }
    if result.stopwatch is None or result.candidate is None:
        return row
    row |= {clock: kept.record() for clock, kept in times.items()}
    if result.stopwatch.graph_refused is not None:
        row["graph_refused"] = result.stopwatch.graph_refused
    result.candidate.prepare()  # compiles
    row["prepare_us"] = microseconds(result.candidate.prepare, 3, device)
    return row
