"""Two clocks: through a CUDA graph, which leaves out what a launch costs, and as a program calls it, which does not.

Each goes through all caches in turns, so that none is still in the device's own cache when its turn comes again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

LAP_SECONDS = 0.02  # long beside the resolution of an event, short beside a change of the clocks
Call = Callable[[int], torch.Tensor]


@dataclass
class Times:
    """Microseconds of one call, one figure a round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def record(self) -> dict[str, Any]:
        return {
            "median_us": self.median,
            "lowest_us": min(self.rounds),
            "highest_us": max(self.rounds),
            "rounds_us": self.rounds,
        }


class Stopwatch:
    """Times one candidate on one device.

    Args:
        copies: caches to go through.
        lap_seconds: how long one figure is measured.
        within: what the calls are made within.
    """

    def __init__(
        self,
        call: Call,
        copies: int,
        device: torch.device,
        lap_seconds: float = LAP_SECONDS,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.call, self.copies, self.device, self.within = call, copies, device, within
        with within():
            for number in range(copies):  # compiles, allocates, chooses kernels
                call(number)
            self.graph, self.graph_refused = self._capture()
            self._tours = {"launch": self._enough(self._launch, lap_seconds)}
            if self.graph is not None:
                self._tours["graph"] = self._enough(self._replay, lap_seconds)

    def lap(self, clock: str) -> float:
        """Microseconds of one call, on the clock "graph" or "launch"."""
        with self.within():
            return self._per_call(self._replay if clock == "graph" else self._launch, self._tours[clock])

    @property
    def clocks(self) -> list[str]:
        return list(self._tours)

    def _launch(self) -> None:
        for number in range(self.copies):
            self.call(number)

    def _replay(self) -> None:
        self.graph.replay()

    def _capture(self) -> tuple[Any, str | None]:
        if self.device.type != "cuda":
            return None, "a CPU has no graphs"
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._launch()
        except Exception as error:  # whatever a baseline's backend may not do while it is recorded
            torch.cuda.synchronize(self.device)
            return None, first_line(error)
        return graph, None

    def _enough(self, tour: Callable[[], None], seconds: float) -> int:
        tour()
        once = self._per_call(tour, 1) * self.copies / 1e6
        return max(1, min(200, round(seconds / max(once, 1e-7))))

    def _per_call(self, tour: Callable[[], None], tours: int) -> float:
        return microseconds(tour, tours, self.device) / self.copies


def microseconds(work: Callable[[], Any], times: int, device: torch.device) -> float:
    """What one of `times` runs of `work` takes, launches and all."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / times
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) * 1e6 / times


def race(stopwatches: Mapping[str, Stopwatch], rounds: int) -> dict[str, dict[str, Times]]:
    """By name and clock; every round goes through all of them, every other round backwards, so that a drift of the
    device's clocks falls on all alike.
    """
    times: dict[str, dict[str, Times]] = {
        name: {clock: Times() for clock in watch.clocks} for name, watch in stopwatches.items()
    }
    for number in range(rounds):
        order = list(stopwatches)[:: -1 if number % 2 else 1]
        for name in order:
            for clock, kept in times[name].items():
                kept.rounds.append(stopwatches[name].lap(clock))
    return times


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a table's footnote."""
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0][:240]}"
