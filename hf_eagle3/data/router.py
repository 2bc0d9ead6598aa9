"""Several slot decoders, each for rows of its own lengths, behind the interface of one.

A step of a slot decoder attends over the columns of its longest row. Where most rows are short and some are long, the
short ones pay for the long ones; here they do not meet. Knows nothing of what the rows are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from transformers import PreTrainedModel

from .slots import Completion, Request, SlotDecoder

_WAITING = 1.0  # requests that may wait for a decoder, for each of its slots, before no more are taken up
# Slots that are split. Counted on lengths as self-prompting has them, 48 slots of SmolLM2-135M save about as much of
# the cache by it as the weights take, which are read once more.
_FEWEST = 64


class Router:
    """Run `Request`s through `model`, each in the first of several `SlotDecoder`s that has room for its length.

    Args:
        model, eos_ids, stop_early: see [`SlotDecoder`].
        lanes: longest row and slots of each decoder, from the shortest rows to the longest.

    Raises:
        ValueError: there are no lanes, they do not grow, one has no slot; or what a [`SlotDecoder`] raises.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Iterable[int],
        lanes: Sequence[tuple[int, int]],
        stop_early: Callable[[Request, list[int]], bool] | None = None,
    ) -> None:
        lengths = [length for length, _ in lanes]
        if not lanes or any(slots < 1 for _, slots in lanes) or lengths != sorted(set(lengths)):
            raise ValueError(
                f"{list(lanes)} was given as the lanes of a router: give (longest row, slots) from the shortest rows "
                "to the longest, each with at least one slot."
            )
        eos = list(eos_ids)
        self.decoders = [
            SlotDecoder(model, eos, slots, length, refill=max(1, slots // 16), stop_early=stop_early)
            for length, slots in lanes
        ]
        self._waiting: list[deque[Request]] = [deque() for _ in lanes]

    @property
    def max_length(self) -> int:
        """The longest row, prompt and new tokens together."""
        return self.decoders[-1].max_length

    def run(self, requests: Iterator[Request | None]) -> Iterator[Completion]:
        """Yield completions until no row runs and `requests` gives nothing; `None` means "nothing now, ask again"."""
        while True:
            self._take_up(requests)
            idle = True
            for number, decoder in enumerate(self.decoders):
                ended = decoder.advance(self._for(number))
                if ended is not None:
                    idle = False
                    yield from ended
            if idle:
                return

    def _take_up(self, requests: Iterator[Request | None]) -> None:
        """Ask for requests until all decoders have what they can take, or one has enough that wait for it."""
        while any(
            len(waiting) < decoder.free for waiting, decoder in zip(self._waiting, self.decoders, strict=True)
        ) and not any(map(self._is_full, range(len(self.decoders)))):
            request = next(requests, None)
            if request is None:
                return
            self._waiting[self._lane_of(request)].append(request)

    def _is_full(self, number: int) -> bool:
        decoder, waiting = self.decoders[number], len(self._waiting[number])
        return waiting - decoder.free >= _WAITING * len(decoder.rows)

    def _lane_of(self, request: Request) -> int:
        """The first lane that is long enough; the last one tells of a request that fits nowhere."""
        needed = len(request.ids) + request.max_new_tokens
        fitting = (number for number, decoder in enumerate(self.decoders) if needed <= decoder.max_length)
        return next(fitting, len(self.decoders) - 1)

    def _for(self, number: int) -> Iterator[Request | None]:
        """What waits for a decoder, and what it can take off the hands of those for shorter rows: its free rows are
        computed anyhow."""
        while self._waiting[number]:
            yield self._waiting[number].popleft()
        for shorter in range(number):
            while self._is_full(shorter):
                yield self._waiting[shorter].popleft()


def lanes_for(slots: int, short: int, longest: int) -> list[tuple[int, int]]:
    """Lanes for rows of mostly up to `short` tokens, and of up to `longest`: a fifth of the slots for the long ones.

    One lane where there is little between the lengths, or where there are few slots: two decoders read the weights
    twice, and few rows have not enough columns to make up for that.
    """
    if slots < _FEWEST or 2 * short > longest:
        return [(longest, slots)]
    long = round(slots / 5)
    return [(short, slots - long), (longest, long)]
