"""What the parts of a round cost on this device, in plain decode steps of one token: the target's forward over a tree,
by nodes; the head's work, by levels and the nodes expanded in each.

Every figure is a pair of times taken one right after the other, in turns with all others, after a warm-up, without
gradients as in `generate`. What a round does besides (acceptance, keeping the path) is not in it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ..cache import keep_path, recording
from ..drafters.base import TreeDrafter
from ..pairing import as_head, check_pair, drafter_for
from ..states import capturing
from ..tree import DraftTree, TreeShape
from ..verification import verify
from .rehearsal import Round
from .speed import quartiles
from .timing import finish_device_work

NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 60, 64)  # of a tree, root included
WIDTHS = (1, 2, 3, 4, 6, 8, 10)  # nodes expanded in a level: top-k
_LEVELS = 4  # of the deeper of the two trees whose difference is the price of a level
_NEW_ROWS = 2  # states that a drafter has not seen yet: about what a round accepts
_DEEPEST = 6  # of a binary tree of 64 nodes


@dataclass(frozen=True)
class Point:
    """The cost of one size: median and quartiles, in plain steps."""

    size: int
    cost: float
    low: float
    high: float


@dataclass(frozen=True)
class CostCurve:
    """
    Args:
        context: cached positions under every forward.
        repeats: pairs of times behind each point.
        verification: the target over a tree, by its nodes, root included.
        first: taking in new states and drafting one level, by top-k.
        level: each further level, by nodes expanded.
    """

    context: int
    repeats: int
    verification: list[Point]
    first: list[Point]
    level: list[Point]

    def cost(self, nodes: int, levels: int, top_k: int) -> float | None:
        """Of drafting so many levels and verifying so many nodes, root included; None beyond what was measured."""
        verified = at_size(self.verification, nodes)
        first, level = at_size(self.first, top_k), at_size(self.level, top_k)
        if verified is None or first is None or level is None:
            return None
        return verified + first + (levels - 1) * level

    def round_cost(self, shape: TreeShape) -> float | None:
        """Of drafting and verifying one tree; None for a size beyond those that were measured, and for a tree whose
        levels end early: its size is another in every round."""
        if shape.assistant_confidence_threshold:
            return None
        top_k, depth = shape.tree_top_k, shape.tree_depth
        scored = top_k + (depth - 1) * top_k**2
        return self.cost(min(shape.num_assistant_tokens, scored) + 1, depth, top_k)

    def predicted_ratio(self, shape: TreeShape, acceptance_length: float) -> float | None:
        """Tokens a second over plain decoding's, for a tree of this acceptance length (bonus included)."""
        cost = self.round_cost(shape)
        return None if cost is None else acceptance_length / cost

    def ratio_of(self, rounds: Sequence[Round], top_k: int) -> float | None:
        """The same for rounds of known sizes; None if there are none, or one is beyond what was measured."""
        costs = [self.cost(one.nodes, one.levels, top_k) for one in rounds]
        known = [cost for cost in costs if cost is not None]
        if not known or len(known) < len(costs):
            return None
        return sum(one.length for one in rounds) / sum(known)


def at_size(points: Sequence[Point], size: int) -> float | None:
    """The cost at `size`, on a straight line between its neighbours; None outside of what was measured."""
    for left, right in zip(points, [*points[1:], points[-1]], strict=True):
        if left.size == size:
            return left.cost
        if left.size < size < right.size:
            return left.cost + (right.cost - left.cost) * (size - left.size) / (right.size - left.size)
    return None


def check_context(model: PreTrainedModel, context: int) -> None:
    """Refuse a number of cached positions that trees do not fit behind.

    Raises:
        ValueError: saying what fits.
    """
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    fits = None if most is None else most - _DEEPEST - 1
    if context <= _NEW_ROWS or (fits is not None and context > fits):
        told = f"{_NEW_ROWS + 1} or more" if fits is None else f"{_NEW_ROWS + 1} to {fits}"
        raise ValueError(f"The cost of trees was to be measured over {context} cached positions: give {told}.")


@torch.no_grad()
def measure_costs(
    model: PreTrainedModel,
    head: PreTrainedModel,
    input_ids: torch.Tensor,
    context: int = 256,
    repeats: int = 15,
    nodes: Sequence[int] = NODES,
    widths: Sequence[int] = WIDTHS,
    done: Callable[[], None] = lambda: None,
) -> CostCurve:
    """Measures the curve; `done` hears of each finished turn, of which there are `repeats` and the warm-up.

    Args:
        input_ids: int64 `[1, length]`, a text, taken over and over until it fills the cache.
        nodes, widths: ascending.

    Raises:
        ValueError: if the two do not belong together, or trees do not fit behind `context` positions.
    """
    check_context(model, context)
    check_pair(model, head)
    bench = _Bench(model, head, input_ids, context)
    ways = {("verification", size): partial(bench.verification, size) for size in nodes}
    ways |= {("drafting", width): partial(bench.drafting, width) for width in widths}
    pairs: dict[tuple[str, int], list[list[float]]] = {way: [] for way in ways}
    names = list(ways)
    with recording(bench.cache):
        for turn in range(repeats + 1):
            first = turn % len(names)
            for way in [*names[first:], *names[:first]]:
                plain = bench.plain()
                costs = [seconds / plain for seconds in ways[way]()]
                if turn:  # in the first one kernels are chosen and memory is taken
                    pairs[way].append(costs)
            done()
    drafting = {width: pairs["drafting", width] for width in widths}
    return CostCurve(
        context=context,
        repeats=repeats,
        verification=[_point(size, [cost for (cost,) in pairs["verification", size]]) for size in nodes],
        first=[_point(width, [one for one, _ in drafting[width]]) for width in widths],
        level=[_point(width, [(all_ - one) / (_LEVELS - 1) for one, all_ in drafting[width]]) for width in widths],
    )


def _point(size: int, costs: Sequence[float]) -> Point:
    return Point(size, statistics.median(costs), *quartiles(costs))


class _Bench:
    """A target and a head in the middle of a text, each as it is between two rounds; every call is timed, in seconds,
    and leaves both as they were."""

    def __init__(self, model: Any, head: Any, input_ids: torch.Tensor, context: int) -> None:
        self.model, self.head, self.context = model, as_head(head), context
        self.ids = input_ids.repeat(1, context // input_ids.shape[1] + 1)[:, : context + 1]
        self.committed = torch.ones(1, context, dtype=torch.bool, device=self.ids.device)
        self.position = torch.tensor([[context]], device=self.ids.device)
        drafter = self._drafter(TreeShape(1, 1, 1), None)
        self.boundaries = drafter.boundaries
        self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        with recording(self.cache), capturing(model, self.boundaries) as capture:
            out = model(input_ids=self.ids[:, :context], past_key_values=self.cache, use_cache=True, **capture.asked)
        self.states = capture.states(out.get("hidden_states"))
        seen = context - _NEW_ROWS
        drafter.observe([state[:, :seen] for state in self.states], seen)
        drafter.draft(self.ids[:, : seen + 1])
        self.state = getattr(drafter, "state", None)

    def plain(self) -> float:
        """One decode step of plain `generate`."""
        mask = torch.ones(1, self.context + 1, dtype=torch.long, device=self.ids.device)

        def step() -> None:
            inputs = self.model.prepare_inputs_for_generation(
                self.ids[:, -1:], next_sequence_length=1, past_key_values=self.cache, attention_mask=mask,
                position_ids=self.position, use_cache=True,
            )  # fmt: skip
            self.model(**inputs, return_dict=True)

        return self._seconds(step)

    def verification(self, nodes: int) -> list[float]:
        """One verification of a binary tree of so many nodes; how it branches changes nothing of the work."""
        places = torch.arange(nodes, device=self.ids.device)
        tokens = self.ids[:, places % self.ids.shape[1]]
        tree = DraftTree(tokens, ((places + 1) // 2 - 1)[None], torch.zeros(tokens.shape, device=self.ids.device))

        def step() -> None:
            verify(self.model, tree, self.cache, self.committed, self.position, self.boundaries, use_cache=True)

        return [self._seconds(step)]

    def drafting(self, width: int) -> list[float]:
        """Taking in a round's states and drafting a tree of one level, and the same of a deeper tree."""
        return [self._draft(levels, width) for levels in (1, _LEVELS)]

    def _draft(self, levels: int, width: int) -> float:
        shape = TreeShape(NODES[-1], levels, width)
        drafter = self._drafter(shape, copy.deepcopy(self.state))
        new = [state[:, -_NEW_ROWS:] for state in self.states]

        def step() -> None:
            drafter.observe(new, self.context)
            drafter.draft(self.ids)

        return self._seconds(step)

    def _drafter(self, shape: TreeShape, state: Any) -> TreeDrafter:
        return drafter_for(self.head, self.model, shape, state)

    def _seconds(self, step: Callable[[], Any]) -> float:
        finish_device_work(self.model)
        start = time.perf_counter()
        step()
        finish_device_work(self.model)
        seconds = time.perf_counter() - start
        keep_path(self.cache, self.context, [])
        return seconds
