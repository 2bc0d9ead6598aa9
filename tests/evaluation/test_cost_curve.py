"""The cost curve: figures from made-up points, and the measuring itself on a tiny pair, of which no time is judged."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from helpers.sentences import sentence
from transformers import AutoModel, AutoModelForCausalLM

from hf_eagle3.evaluation import cost_curve
from hf_eagle3.evaluation.cost_curve import CostCurve, Point, at_size, check_context, measure_costs
from hf_eagle3.evaluation.rehearsal import Round
from hf_eagle3.tree import TreeShape


def points(**costs: float) -> list[Point]:
    return [Point(int(size[1:]), cost, cost, cost) for size, cost in costs.items()]


CURVE = CostCurve(
    context=100, repeats=3, verification=points(n1=1.0, n2=1.5, n4=2.0, n8=4.0),
    first=points(n1=0.1, n2=0.2, n4=0.4), level=points(n1=0.05, n2=0.1, n4=0.3),
)  # fmt: skip


@pytest.fixture(scope="module")
def pair(pair_folders) -> tuple[Any, Any]:
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    return target, AutoModel.from_pretrained(pair_folders.head).eval()


@pytest.mark.parametrize(
    ("size", "cost"), [(1, 1.0), (2, 1.5), (3, 1.75), (4, 2.0), (5, 2.5), (7, 3.5), (8, 4.0), (9, None), (0, None)]
)
def test_between_two_points_the_cost_lies_on_a_line(size: int, cost: float | None) -> None:
    assert at_size(CURVE.verification, size) == cost


@pytest.mark.parametrize(
    ("shape", "cost"),
    [
        (TreeShape(3, 3, 1), 2.0 + 0.1 + 2 * 0.05),
        (TreeShape(9, 3, 1), 2.0 + 0.1 + 2 * 0.05),  # a chain of three has no more nodes
        (TreeShape(7, 1, 4), 2.5 + 0.4),  # nor has one level of four
        (TreeShape(7, 2, 4), 4.0 + 0.4 + 0.3),
        (TreeShape(3, 2, 3), 2.0 + 0.3 + 0.2),
        (TreeShape(8, 2, 4), None),  # nine nodes were not measured
        (TreeShape(3, 1, 5), None),
    ],
)
def test_a_round_is_one_verification_and_its_levels(shape: TreeShape, cost: float | None) -> None:
    found = CURVE.round_cost(shape)
    assert found == (cost if cost is None else pytest.approx(cost))
    ratio = CURVE.predicted_ratio(shape, 2.2)
    assert ratio == (cost if cost is None else pytest.approx(2.2 / cost))


def test_rounds_of_many_sizes_are_priced_one_by_one() -> None:
    """As trees that end early have them: of such a tree's shape alone nothing can be predicted."""
    rounds = [Round(3, 4, 2), Round(1, 2, 1)]
    assert CURVE.ratio_of(rounds, 2) == pytest.approx(4 / ((2.0 + 0.2 + 0.1) + (1.5 + 0.2)))
    fixed = TreeShape(7, 2, 4)
    assert CURVE.ratio_of([Round(2, 8, 2)] * 3, 4) == pytest.approx(CURVE.predicted_ratio(fixed, 2.0))
    assert CURVE.ratio_of([Round(2, 8, 2), Round(2, 9, 2)], 4) is None  # nine nodes were not measured
    assert CURVE.ratio_of([], 4) is None
    assert CURVE.predicted_ratio(TreeShape(7, 2, 4, 0.3), 2.0) is None


def test_measuring_a_tiny_pair(pair) -> None:
    heard: list[int] = []
    ids = torch.tensor([[1, 7, 9, 11, 3]])
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    curve = measure_costs(
        *pair, ids, context=12, repeats=2, nodes=(1, 5, 64), widths=(1, 3), done=lambda: heard.append(1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (curve.context, curve.repeats, len(heard)) == (12, 2, 3)
    assert [point.size for point in curve.verification] == [1, 5, 64]
    assert [point.size for point in curve.first] == [point.size for point in curve.level] == [1, 3]
    for point in [*curve.verification, *curve.first]:
        assert 0 < point.low <= point.cost <= point.high
    assert all(math.isfinite(point.cost) for point in curve.level)
    assert json.loads(json.dumps(asdict(curve)))["verification"][2]["size"] == 64


def test_every_way_runs_on_the_same_cache_and_in_turns(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    target, head = pair
    seen: list[tuple[int, int]] = []
    hook = target.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(
            (kwargs["input_ids"].shape[1], kwargs["past_key_values"].get_seq_length())
        ),
        with_kwargs=True,
    )
    monkeypatch.setattr(cost_curve, "check_pair", lambda *_: None)  # its probe would be seen
    monkeypatch.setattr(cost_curve._Bench, "__init__", _unseen(cost_curve._Bench.__init__, seen))
    try:
        measure_costs(target, head, torch.tensor([[1, 7, 9]]), context=10, repeats=1, nodes=(2, 4), widths=(1,))
    finally:
        hook.remove()
    assert {cached for _, cached in seen} == {10}
    # Plain before each way; the third, drafting, takes no forward of the target. The second turn begins by the second.
    assert [rows for rows, _ in seen] == [1, 2, 1, 4, 1, 1, 4, 1, 1, 2]


def _unseen(init: Any, seen: list[Any]) -> Any:
    def quiet(*args: Any) -> None:
        init(*args)
        seen.clear()

    return quiet


def test_the_bench_leaves_head_and_target_as_they_were(pair) -> None:
    """Each way computes the same each time: what a verification or a drafter adds is taken back."""
    target, head = pair
    with torch.no_grad():
        bench = cost_curve._Bench(target, head, torch.tensor([[1, 7, 9, 4]]), 9)
        keys = [layer.keys.clone() for layer in bench.cache.layers]
        end, rows = bench.state.end, bench.state.cache.get_seq_length()
        for _ in range(2):
            assert min(bench.plain(), *bench.verification(5), *bench.drafting(2)) > 0
    assert (end, rows) == (bench.state.end, bench.state.cache.get_seq_length()) == (7, 7)
    assert all(torch.equal(old, layer.keys) for old, layer in zip(keys, bench.cache.layers, strict=True))


@pytest.mark.parametrize("context", [2, 0, 250, 5000])
def test_a_context_that_trees_do_not_fit_behind_is_refused(pair, context: int) -> None:
    said = sentence(ValueError, lambda: check_context(pair[0], context))
    assert f"over {context} cached positions: give 3 to 249" in said
    for fits in (3, 249):
        check_context(pair[0], fits)
