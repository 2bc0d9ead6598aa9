"""Two answers to one prompt, with the head and without, that take turns on one device.

Run at once they would slow each other down, and no ratio of theirs would mean anything; run one after the other, the
second would keep its reader waiting. So each is an ordinary `generate` on a thread of its own that works only while it
has the turn, on a clock that runs only then, and the turn goes to the one with less time on its clock: at every moment
both have had the same time. Nothing is kept on head or target.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from rounds import Trace
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from hf_eagle3 import drafting_with
from hf_eagle3.evaluation.timing import Settings
from hf_eagle3.tree import DraftTree

TURN = 0.2  # seconds; the threads that a matrix product leaves spinning for a moment are lost in it


class Runner(BaseStreamer, StoppingCriteria):
    """One `generate` that waits for its turn. It is the streamer and the stopping criterion of its own call.

    Args:
        generate: called with the runner, on the runner's thread; calls `pause` between two forwards.
    """

    def __init__(self, generate: Callable[[Runner], Any]) -> None:
        self.tokens: list[int] = []
        self.seconds = 0.0  # on its clock: from the call of `generate` on, prompt included
        self.done = False
        self.error: Exception | None = None
        self._generate = generate
        self._stopped = threading.Event()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._began = 0.0
        self._prompt_seen = False
        threading.Thread(target=self._live, daemon=True).start()

    # ------------------------------------------------------------------ for whoever gives the turns

    def turn(self) -> None:
        """Let it work for one turn; returns when the turn is over, or the answer is."""
        if not self.done:
            self._go.release()
            self._back.acquire()

    def stop(self) -> None:
        """From any thread: end after the forward that is running, if it has not ended by itself."""
        if not self.done:
            self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    # ------------------------------------------------------------------ on its own thread

    def _live(self) -> None:
        self._go.acquire()
        self._began = time.perf_counter()
        try:
            if not self.stopped:
                self._generate(self)
        except Exception as error:  # raised again by whoever gives the turns
            self.error = error
        finally:
            self.seconds += time.perf_counter() - self._began
            self.done = True
            self._back.release()

    def pause(self) -> None:
        """Give the turn back if its time is up, and wait for the next."""
        used = time.perf_counter() - self._began
        if used < TURN or self.stopped:
            return
        self.seconds += used
        self._back.release()
        self._go.acquire()
        self._began = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        pass

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.stopped, dtype=torch.bool, device=input_ids.device)


class _PlainRunner(Runner):
    """Each token is a forward, so its turn may end after any."""

    def put(self, value: torch.Tensor) -> None:
        super().put(value)
        if self.tokens:
            self.pause()


class _DraftedRunner(Runner):
    """Its turn may end after any round; `trace` tells the rounds."""

    def __init__(self, generate: Callable[[Runner], Any]) -> None:
        self.trace = Trace()
        super().__init__(generate)

    def put(self, value: torch.Tensor) -> None:
        known = len(self.tokens)
        super().put(value)
        for token in self.tokens[known:]:
            self.trace.emit(token)

    def on_round(self, tree: DraftTree, path: list[int]) -> None:
        self.trace.close_round(tree, path)
        self.pause()


class Race:
    """The two answers. Nothing happens but in `advance`.

    Args:
        model: the target.
        head: drafts for it.
        inputs: `input_ids` and `attention_mask`, int64 `[1, length]`, on the target's device.
        settings: length, temperature, tree.
    """

    def __init__(self, model: Any, head: Any, inputs: dict[str, torch.Tensor], settings: Settings) -> None:
        def plain(runner: Runner) -> None:
            model.generate(**inputs, **settings.keywords(), streamer=runner, stopping_criteria=_only(runner))

        tree: dict[str, Any] = dict(settings.tree)

        def drafted(runner: Any) -> None:
            door = drafting_with(head, streamer=runner, on_round=runner.on_round, **tree)
            model.generate(**inputs, **settings.keywords(), custom_generate=door, stopping_criteria=_only(runner))

        self.drafted, self.plain = _DraftedRunner(drafted), _PlainRunner(plain)
        self._turns = threading.Lock()

    @property
    def done(self) -> bool:
        return self.drafted.done and self.plain.done

    @property
    def stopped(self) -> bool:
        """Whether an answer was ended before it ended by itself."""
        return self.drafted.stopped or self.plain.stopped

    def advance(self) -> bool:
        """Give one turn to the answer that has had less time; False when both are done.

        Raises:
            Exception: what `generate` raised.
        """
        with self._turns:
            waiting = [runner for runner in (self.drafted, self.plain) if not runner.done]
            if not waiting:
                return False
            runner = min(waiting, key=lambda runner: runner.seconds)
            runner.turn()
        if runner.error is not None:
            raise runner.error
        return True

    def stop(self) -> None:
        """From any thread: both end after the forward that is running."""
        self.drafted.stop()
        self.plain.stop()

    def close(self) -> None:
        """End both, and wait until they have; their threads are gone then."""
        self.stop()
        with self._turns:
            for runner in (self.drafted, self.plain):
                while not runner.done:
                    runner.turn()


def _only(runner: Runner) -> StoppingCriteriaList:
    return StoppingCriteriaList([runner])
