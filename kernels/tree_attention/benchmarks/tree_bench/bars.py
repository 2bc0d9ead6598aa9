"""What the kernel must reach on an H100-class device, and whether a record shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cases import LLAMA, Case
from .ways import KERNEL, SDPA

_ALLOWED_ERROR = 2.0  # times sdpa's own error


@dataclass(frozen=True)
class Bar:
    """
    Args:
        value: what was measured; None if it was not.
        least: what is needed.
    """

    name: str
    value: float | None
    least: float

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "reached" if self.value >= self.least else "MISSED"


def bars(cases: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Every bar, measured or not; on the graph's clock, and at 2k with the launches too, which weigh most there."""
    found = []
    for context in (8192, 32768):
        found.append(Bar(f"{_short(context)}: share of the floor", _ratio(cases, context, "floor_fraction"), 0.6))
    found.append(Bar(f"8k: times as fast as {SDPA}", _speedup(cases, 8192), 2.0))
    for clock, told in (("graph", ""), ("launch", ", launches included")):
        found.append(Bar(f"2k: times as fast as {SDPA}{told}", _speedup(cases, 2048, clock), 1.0))
    for context in (2048, 8192, 32768):
        found.append(
            Bar(
                f"{_short(context)}: what is allowed of error ({_ALLOWED_ERROR:g} x sdpa's) over ours",
                _accuracy(cases, context),
                1.0,
            )
        )
    return found


def _result(cases: Mapping[str, Mapping[str, Any]], context: int) -> Mapping[str, Any]:
    return cases.get(Case(LLAMA, context, 60).key, {})


def _ratio(cases: Mapping[str, Mapping[str, Any]], context: int, name: str, clock: str = "graph") -> Any:
    return _result(cases, context).get("ratios", {}).get(clock, {}).get(name)


def _speedup(cases: Mapping[str, Mapping[str, Any]], context: int, clock: str = "graph") -> float | None:
    return (_ratio(cases, context, "speedup", clock) or {}).get(SDPA)


def _accuracy(cases: Mapping[str, Mapping[str, Any]], context: int) -> float | None:
    ways = _result(cases, context).get("ways", {})
    ours, theirs = (ways.get(name, {}).get("error") for name in (KERNEL, SDPA))
    return None if ours is None or theirs is None else _ALLOWED_ERROR * theirs / max(ours, 1e-30)


def _short(context: int) -> str:
    return f"{context // 1024}k" if context % 1024 == 0 else str(context)
