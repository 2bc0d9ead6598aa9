"""From conversations to batches: which go together, padded or packed, and the tensors a training step reads.

Everything random comes from `(seed, epoch, index)`, so a batch is the same whoever makes it: a resumed run, another
number of processes, another worker.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from ..data.features import Example, TargetStates

Batch = dict[str, torch.Tensor]
Item = tuple[Any, int]  # an Example, or (ids, mask) whose states are still to be computed; and the seed of its draws
GRAIN = 16  # lengths are rounded up to this many tokens when batches are planned
_PRIME = 1_000_003


class Items(Dataset):
    """The examples of `source`, a `FeatureStore` or a split with `input_ids` and `loss_mask`, by `(index, seed)`."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        index, seed = key
        row = self.source[index]
        return (row if isinstance(row, Example) else (row["input_ids"], row["loss_mask"])), seed


class TokenBatches(Sampler[list[tuple[int, int]]]):
    """Batches of `(index, seed of its draws)` that hold about `max_tokens` tokens each.

    Padded batches put conversations of like lengths together; packed ones fill one long row. Lengths are rounded up
    to `GRAIN` tokens, and conversations of the same rounded length trade places from epoch to epoch: so the batches
    differ, while their number and shapes stay the same. One that is longer than `max_tokens` goes alone.

    Process `rank` of `processes` takes every `processes`-th batch; where they do not come out even, the first ones of
    the epoch are taken again.
    """

    def __init__(
        self, lengths: Sequence[int], max_tokens: int, packed: bool, seed: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        self.seed, self.epoch, self.rank, self.processes = seed, 0, rank, processes
        self.alike: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths):
            self.alike[-(-length // GRAIN) * GRAIN].append(index)
        rounded = sorted((size for size, members in self.alike.items() for _ in members), reverse=True)
        self.plan = _packed_plan(rounded, max_tokens) if packed else _padded_plan(rounded, max_tokens)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.plan) // self.processes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch_seed = self.seed * _PRIME + self.epoch
        rng = random.Random(epoch_seed)
        dealt = {size: rng.sample(members, len(members)) for size, members in sorted(self.alike.items())}
        batches = [[dealt[size].pop() for size in sizes] for sizes in self.plan]
        rng.shuffle(batches)
        for turn in range(len(self)):
            batch = batches[(turn * self.processes + self.rank) % len(batches)]
            yield [(index, (epoch_seed * _PRIME + index) % (1 << 62)) for index in batch]


def _padded_plan(sizes: list[int], max_tokens: int) -> list[list[int]]:
    """Descending `sizes` cut where one more row, as long as the first, would be too much."""
    plan: list[list[int]] = []
    for size in sizes:
        if plan and plan[-1][0] * (len(plan[-1]) + 1) <= max_tokens:
            plan[-1].append(size)
        else:
            plan.append([size])
    return plan


def _packed_plan(sizes: list[int], max_tokens: int) -> list[list[int]]:
    """Best fit, longest first: each goes where it leaves the least room, or opens a new row."""
    plan: list[list[int]] = []
    room: dict[int, list[list[int]]] = defaultdict(list)  # free tokens -> rows; at most max_tokens / GRAIN keys
    for size in sizes:
        fitting = min((free for free, rows in room.items() if rows and free >= size), default=None)
        if fitting is None:
            row: list[int] = []
            fitting = max(max_tokens, size)
            plan.append(row)
        else:
            row = room[fitting].pop()
        row.append(size)
        room[fitting - size].append(row)
    return plan


class Collator:
    """Makes a `Batch` of items; with `states` it runs the target over those that bring only their ids.

    A batch holds, `[batch, tokens]` each: `ids` int64; `answers` bool; `documents` int32, which conversation a token
    belongs to (-1 is padding); `positions` int64 within it; `best` int64; `anchors` float32, uniform draws that choose
    the rows which go on after step 0; and `features [batch, tokens, boundaries * hidden]`, `last_hidden [batch,
    tokens, hidden]`. Packed, `batch` is 1.
    """

    def __init__(self, packed: bool, states: TargetStates | None = None) -> None:
        self.packed, self.states = packed, states

    def __call__(self, items: Sequence[Item]) -> Batch:
        examples = self._examples([content for content, _ in items])
        rows = [
            {
                "ids": example.ids,
                "answers": example.answers,
                "documents": torch.full(example.ids.shape, number, dtype=torch.int32),
                "positions": torch.arange(len(example.ids)),
                "best": example.best,
                "anchors": torch.rand(len(example.ids), generator=torch.Generator().manual_seed(seed)),
                "features": example.features,
                "last_hidden": example.last_hidden,
            }
            for number, (example, (_, seed)) in enumerate(zip(examples, items, strict=True))
        ]
        device = examples[0].features.device
        together = {name: [row[name].to(device) for row in rows] for name in rows[0]}
        if self.packed:
            return {name: torch.cat(parts)[None] for name, parts in together.items()}
        padding = {"documents": -1.0, "best": -1.0}
        return {
            name: pad_sequence(parts, batch_first=True, padding_value=padding.get(name, 0.0))
            for name, parts in together.items()
        }

    def _examples(self, contents: list[Any]) -> list[Example]:
        missing = [content for content in contents if not isinstance(content, Example)]
        if missing and self.states is None:
            raise ValueError(
                "The data set holds token ids only and no target was given to compute their features: give the "
                "target, or a FeatureStore."
            )
        made = iter(self.states.examples(missing) if missing and self.states is not None else [])
        return [content if isinstance(content, Example) else next(made) for content in contents]
