"""Which tree is fastest on this device: shapes answer questions in turns with plain `generate`; and the rule by which
one of them becomes the default."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tree import TreeShape
from .cost_curve import CostCurve
from .questions import Question, encode_chat
from .rehearsal import mean_length, rehearse, together
from .speed import quartiles
from .timing import Run, Settings, run_drafted, run_plain, warm_up

# num_assistant_tokens, tree_depth, tree_top_k, and assistant_confidence_threshold where there is one
Shape = tuple[int, int, int] | tuple[int, int, int, float]

CHAINS: tuple[Shape, ...] = ((1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 4, 1))
SMALL_TREES: tuple[Shape, ...] = (
    *((2, 1, 2), (3, 2, 2), (4, 2, 3), (5, 3, 2), (6, 3, 3), (7, 2, 4), (7, 4, 2), (9, 3, 4), (9, 4, 3)),
    *((11, 3, 5), (11, 4, 4), (13, 5, 4), (15, 3, 6), (15, 5, 4)),
)
LARGE_TREES: tuple[Shape, ...] = ((23, 5, 6), (31, 6, 8), (47, 7, 8), (59, 6, 10), (59, 8, 10))
ENDING_EARLY: tuple[Shape, ...] = tuple(
    (*sizes, threshold)
    for sizes in (
        *((6, 4, 3), (7, 5, 4), (7, 7, 4), (9, 5, 4), (9, 6, 4), (9, 8, 4), (12, 6, 4), (12, 8, 4), (9, 6, 6)),
        (12, 6, 6),
    )
    for threshold in (0.2, 0.3, 0.4, 0.5)
)
COMMON_SHAPES = (*CHAINS, *SMALL_TREES, *LARGE_TREES, *ENDING_EARLY)
_AS_FAST = 0.99  # of the best mean ratio


@dataclass(frozen=True)
class Entry:
    """What one shape reached.

    Args:
        acceptance_length: tokens per verification, bonus included.
        mean: of the answers' ratios, tokens per second over plain `generate`'s, the geometric one; what ranks trees.
        ratio: their median.
        low, high: their quartiles.
        predicted: what acceptance length and cost curve let expect; None where the curve was not measured.
    """

    shape: Shape
    acceptance_length: float
    mean: float
    ratio: float
    low: float
    high: float
    predicted: float | None = None

    @property
    def nodes(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class Candidate:
    """What is expected of one shape before it is timed: the acceptance length of a rehearsal, and the ratio to plain
    `generate` by the cost curve (None beyond what that measured)."""

    shape: Shape
    acceptance_length: float
    predicted: float | None


def sweep(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    head: PreTrainedModel,
    questions: Sequence[Question],
    shapes: Sequence[Shape],
    settings: Sequence[Settings],
    done: Callable[[], None] = lambda: None,
    curve: CostCurve | None = None,
) -> list[Entry]:
    """Times every shape on every question in each of the settings, such as two temperatures; the fastest first. `done`
    hears of each finished turn."""
    shapes = list(dict.fromkeys(shapes))
    runs: dict[Shape, list[tuple[Run, Run]]] = {shape: [] for shape in shapes}
    for turn, (question, asked) in enumerate(product(questions, settings)):
        inputs = encode_chat(tokenizer, question.text, model.device)
        if turn == 0:
            for shape in shapes:
                warm_up(model, head, inputs, _with(asked, shape))
        first = turn % len(shapes)
        plain = run_plain(model, inputs, asked)
        for shape in [*shapes[first:], *shapes[:first]]:
            runs[shape].append((plain, run_drafted(model, head, inputs, _with(asked, shape))))
        done()
    return sorted((_entry(shape, pairs, curve) for shape, pairs in runs.items()), key=lambda entry: -entry.mean)


def rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    head: PreTrainedModel,
    questions: Sequence[Question],
    shapes: Sequence[Shape],
    settings: Sequence[Settings],
    curve: CostCurve,
    done: Callable[[], None] = lambda: None,
) -> list[Candidate]:
    """What to expect of every shape, the most promising first; nothing but the curve was timed.

    Raises:
        ValueError: if there is no question.
    """
    if not questions:
        raise ValueError("Trees are ranked on answers, and there is no question: give some.")
    rehearsed = []
    for question, asked in product(questions, settings):
        inputs = encode_chat(tokenizer, question.text, model.device)
        answer = run_plain(model, inputs, asked).tokens
        rehearsed.append(rehearse(model, head, inputs["input_ids"], answer, [TreeShape(*shape) for shape in shapes]))
        done()
    rounds = together(rehearsed)
    found = []
    for shape in dict.fromkeys(shapes):
        own = rounds[TreeShape(*shape)]
        found.append(Candidate(shape, mean_length(own), curve.ratio_of(own, shape[2])))
    return sorted(found, key=lambda candidate: -(candidate.predicted or 0.0))


def chosen(trees: Sequence[Any]) -> Any:
    """The tree that becomes the default: of those whose mean ratio is within a hundredth of the best, which is less
    than such means tell apart, the one of fewest nodes, and of these the fastest. It loses least where fewer drafts
    are accepted than of these answers.

    Args:
        trees: with `nodes` and `mean`, such as [`Entry`].
    """
    best = max(tree.mean for tree in trees)
    return min((tree for tree in trees if tree.mean >= _AS_FAST * best), key=lambda tree: (tree.nodes, -tree.mean))


def _with(settings: Settings, shape: Shape) -> Settings:
    tree: Mapping[str, Any] = vars(TreeShape(*shape))
    return replace(settings, tree=tree)


def _entry(shape: Shape, pairs: Sequence[tuple[Run, Run]], curve: CostCurve | None) -> Entry:
    ratios = [drafted.tokens_per_second / plain.tokens_per_second for plain, drafted in pairs]
    lengths = [length for _, drafted in pairs for length in drafted.acceptance_lengths]
    length, mean = statistics.mean(lengths), statistics.geometric_mean(ratios)
    predicted = None if curve is None else curve.predicted_ratio(TreeShape(*shape), length)
    return Entry(shape, length, mean, statistics.median(ratios), *quartiles(ratios), predicted)
