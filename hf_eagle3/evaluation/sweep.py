"""Which tree is fastest on this device: every shape on every question, in turns with plain `generate`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .questions import Question, encode_chat
from .speed import quartiles
from .timing import Run, Settings, run_drafted, run_plain, warm_up

Shape = tuple[int, int, int]  # num_assistant_tokens, tree_depth, tree_top_k

COMMON_SHAPES: tuple[Shape, ...] = (
    *((3, 3, 1), (4, 4, 1), (5, 3, 2), (7, 4, 2), (7, 5, 2), (9, 4, 3), (11, 5, 4), (13, 5, 4), (15, 4, 4)),
    *((15, 5, 4), (15, 6, 4), (15, 5, 8), (19, 6, 6), (23, 6, 6), (31, 6, 8), (47, 7, 8), (59, 8, 10)),
)


@dataclass(frozen=True)
class Entry:
    """What one shape reached.

    Args:
        acceptance_length: tokens per verification, bonus included.
        mean: of the questions' ratios, tokens per second over plain `generate`'s; what ranks the trees.
        ratio: their median.
        low, high: their quartiles.
    """

    shape: Shape
    acceptance_length: float
    mean: float
    ratio: float
    low: float
    high: float


def sweep(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    head: PreTrainedModel,
    questions: Sequence[Question],
    shapes: Sequence[Shape],
    settings: Settings,
    done: Callable[[], None] = lambda: None,
) -> list[Entry]:
    """Times every shape; the fastest first. `done` hears of each finished question."""
    runs: dict[Shape, list[tuple[Run, Run]]] = {shape: [] for shape in shapes}
    for turn, question in enumerate(questions):
        inputs = encode_chat(tokenizer, question.text, model.device)
        if turn == 0:
            for shape in shapes:
                warm_up(model, head, inputs, _with(settings, shape))
        first = turn % len(shapes)
        plain = run_plain(model, inputs, settings)
        for shape in [*shapes[first:], *shapes[:first]]:
            runs[shape].append((plain, run_drafted(model, head, inputs, _with(settings, shape))))
        done()
    return sorted((_entry(shape, pairs) for shape, pairs in runs.items()), key=lambda entry: -entry.mean)


def _with(settings: Settings, shape: Shape) -> Settings:
    names = ("num_assistant_tokens", "tree_depth", "tree_top_k")
    tree: Mapping[str, Any] = dict(zip(names, shape, strict=True))
    return replace(settings, tree=tree)


def _entry(shape: Shape, pairs: Sequence[tuple[Run, Run]]) -> Entry:
    ratios = [drafted.tokens_per_second / plain.tokens_per_second for plain, drafted in pairs]
    lengths = [length for _, drafted in pairs for length in drafted.acceptance_lengths]
    length, mean = statistics.mean(lengths), statistics.mean(ratios)
    return Entry(shape, length, mean, statistics.median(ratios), *quartiles(ratios))
