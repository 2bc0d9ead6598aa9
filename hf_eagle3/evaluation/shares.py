"""Where the time of drafted decoding goes: the target's forwards, drafting, and the rest.

Measured in runs of their own, in which the device is waited for at every border: such a run is slower than it should
be and is never one that a ratio is made of.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from .timing import Settings, run_drafted, warm_up


@dataclass(frozen=True)
class Shares:
    """Parts of the time of `generate`, which sum to 1.

    Args:
        target: in forwards of the target, the prefill included.
        draft: from the first to the last forward of the head between two of the target's, the growing of the tree
            between them included.
        rest: acceptance, caches, logits processors, and what `generate` does by itself.
    """

    target: float
    draft: float
    rest: float


def measure_shares(
    model: PreTrainedModel, head: PreTrainedModel, prompts: Sequence[Mapping[str, Any]], settings: Settings
) -> Shares:
    """The shares over answers to `prompts`, each the inputs of one `generate`.

    Raises:
        ValueError: if there is no prompt.
    """
    if not prompts:
        raise ValueError("There is no prompt to measure the shares of time on: at least one is needed.")
    warm_up(model, head, prompts[0], settings)
    watch = _Watch(model.device)
    with watch.over(model, head):
        for inputs in prompts:
            watch.begin()
            run_drafted(model, head, inputs, settings)
            watch.end()
    rest = watch.whole - watch.target - watch.draft
    return Shares(watch.target / watch.whole, watch.draft / watch.whole, rest / watch.whole)


class _Watch:
    """Adds up seconds: of whole runs, of the target's forwards, and of the drafting between them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.whole = self.target = self.draft = 0.0
        self._began = self._target_began = 0.0
        self._draft_began: float | None = None
        self._draft_ended = 0.0

    def begin(self) -> None:
        self._began = self._now()

    def end(self) -> None:
        self._close_draft()
        self.whole += self._now() - self._began

    @contextmanager
    def over(self, model: PreTrainedModel, head: PreTrainedModel) -> Iterator[None]:
        """Hears of every forward of target and head."""
        hooks = [
            model.register_forward_pre_hook(lambda *_: self._before_target()),
            model.register_forward_hook(lambda *_: self._after_target()),
            head.register_forward_pre_hook(lambda *_: self._before_head()),
            head.register_forward_hook(lambda *_: self._after_head()),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before_target(self) -> None:
        self._close_draft()
        self._target_began = self._now()

    def _after_target(self) -> None:
        self.target += self._now() - self._target_began

    def _before_head(self) -> None:
        if self._draft_began is None:
            self._draft_began = self._now()

    def _after_head(self) -> None:
        self._draft_ended = self._now()

    def _close_draft(self) -> None:
        if self._draft_began is not None:
            self.draft += self._draft_ended - self._draft_began
            self._draft_began = None

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
