"""Where the time of drafted decoding goes: the target's forwards, drafting, and the rest.

Measured in runs of their own, in which the devices are waited for at every border: such a run is slower than it should
be and is never one that a ratio is made of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..pairing import DRAFTERS, as_head
from .timing import Settings, run_drafted, warm_up


@dataclass(frozen=True)
class Shares:
    """Parts of the time of `generate`, which sum to 1.

    Args:
        target: in forwards of the target, the prefill included.
        draft: in the drafter: taking in the target's states, the head's forwards, growing and pruning the tree.
        rest: tree masks, acceptance, caches, logits processors, and what `generate` does by itself.
    """

    target: float
    draft: float
    rest: float


@dataclass(frozen=True)
class Spent:
    """Seconds of some runs, whole and in parts, to be added up before they become [`Shares`]."""

    whole: float = 0.0
    target: float = 0.0
    draft: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.whole + other.whole, self.target + other.target, self.draft + other.draft)

    @property
    def shares(self) -> Shares:
        rest = self.whole - self.target - self.draft
        return Shares(self.target / self.whole, self.draft / self.whole, rest / self.whole)


def measure_time(
    model: PreTrainedModel, head: PreTrainedModel, prompts: Sequence[Mapping[str, Any]], settings: Settings
) -> Spent:
    """The time that answers to `prompts` take, each the inputs of one `generate`, after a warm-up on the first one.

    For as long as it runs, the head's entry among the drafters makes drafters that are watched.

    Raises:
        ValueError: if there is no prompt.
    """
    if not prompts:
        raise ValueError("There is no prompt to measure the shares of time on: at least one is needed.")
    warm_up(model, head, prompts[0], settings)
    clock = _Clock({model.device, head.device})
    target, draft = _Watch(clock), _Watch(clock)
    whole = 0.0
    with _watched_target(model, target), _watched_drafters(head, draft):
        for inputs in prompts:
            whole += run_drafted(model, head, inputs, settings).seconds
    return Spent(whole, target.seconds, draft.seconds)


class _Clock:
    """Seconds, told when all devices have done their work."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._devices = [device for device in devices if device.type == "cuda"]

    def __call__(self) -> float:
        for device in self._devices:
            torch.cuda.synchronize(device)
        return time.perf_counter()


class _Watch:
    """Adds up the seconds between `start` and `stop`."""

    def __init__(self, clock: _Clock) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._began = 0.0

    def start(self) -> None:
        self._began = self._clock()

    def stop(self) -> None:
        self.seconds += self._clock() - self._began

    def over(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, watched."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.start()
            try:
                return function(*args, **kwargs)
            finally:
                self.stop()

        return watched


@contextmanager
def _watched_target(model: PreTrainedModel, watch: _Watch) -> Iterator[None]:
    hooks = [
        model.register_forward_pre_hook(lambda *_: watch.start()),
        model.register_forward_hook(lambda *_: watch.stop()),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _watched_drafters(head: PreTrainedModel, watch: _Watch) -> Iterator[None]:
    """Drafters made for such heads are watched while they observe and while they draft."""
    known = next(known for known in DRAFTERS if isinstance(as_head(head), known))
    make = DRAFTERS[known]

    def make_watched(*args: Any, **kwargs: Any) -> Any:
        drafter: Any = make(*args, **kwargs)
        drafter.observe, drafter.draft = watch.over(drafter.observe), watch.over(drafter.draft)
        return drafter

    DRAFTERS[known] = make_watched
    try:
        yield
    finally:
        DRAFTERS[known] = make
