"""What is timed and what is not: a wrong output never, a missing one never, and ratios are of what was timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend
from tree_bench import flex, oracle, ways
from tree_bench.cases import DTYPES, LLAMA, SHAPES, Case, cross, sheet
from tree_bench.floors import Device
from tree_bench.inputs import Inputs, grow_tree, make_inputs, see
from tree_bench.measurement import Protocol, measure, try_way
from tree_bench.ratios import ratios_of
from tree_bench.stopwatch import Stopwatch, race
from tree_bench.ways import (
    AS_MODELS_CALL,
    EAGER,
    FLEX,
    KERNEL,
    NO_MASK,
    ONE_NODE,
    SDPA,
    SDPA_BEST,
    Candidate,
    Way,
    as_models_call_way,
    eager_way,
    kernel_way,
    no_mask_way,
    one_node_way,
    sdpa_best_way,
    sdpa_way,
)

CPU = torch.device("cpu")
BRIEF = Protocol(rounds=2, patience=100.0, lap_seconds=0.0)
CASES = [
    Case(SHAPES["tiny"], 80, 12, dtype="fp32"),
    Case(SHAPES["tiny"], 70, 33, batch=2, dtype="bf16"),
    Case(SHAPES["tiny-sliding"], 96, 12, dtype="fp16"),
]


def only(name: str, build: Callable[[Inputs], Candidate], exact: bool = True) -> Way:
    def candidates(inputs: Inputs) -> Iterator[tuple[str, Callable[[], Candidate]]]:
        yield "by itself", lambda: build(inputs)

    return Way(name, candidates, exact)


def seeing(visible: Callable[[Inputs], torch.Tensor]) -> Callable[[Inputs], Candidate]:
    """sdpa on another mask than the case's."""

    def build(inputs: Inputs) -> Candidate:
        other = dataclasses.replace(inputs, visible=visible(inputs))
        return next(iter(sdpa_way().candidates(other)))[1]()

    return build


def one_key_more(inputs: Inputs) -> torch.Tensor:
    visible = inputs.visible.clone()
    hidden = (~visible[0, :, inputs.prefix_len :]).nonzero()[0]
    visible[0, hidden[0], inputs.prefix_len + hidden[1]] = True
    return visible


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_every_way_is_right_and_timed(case: Case) -> None:
    ways = [kernel_way, as_models_call_way, one_node_way, sdpa_way, sdpa_best_way, eager_way, no_mask_way]
    result = measure(case, Device("", 1e9, 1e9, ""), CPU, BRIEF, ways)
    assert {name: row["status"] for name, row in result["ways"].items()} == dict.fromkeys(
        (KERNEL, AS_MODELS_CALL, ONE_NODE, SDPA, SDPA_BEST, EAGER, NO_MASK), "timed"
    )
    for name, row in result["ways"].items():
        assert len(row["launch"]["rounds_us"]) == BRIEF.rounds
        assert row["graph_refused"]
        assert name == NO_MASK or row["error"] <= oracle.TOLERANCE[DTYPES[case.dtype]]
    assert set(result["ratios"]) == {"launch"}
    assert result["ratios"]["launch"]["speedup"][FLEX] is None
    assert result["ratios"]["launch"]["speedup"][SDPA] > 0
    assert all(
        result["ratios"]["launch"][name] > 0 for name in ("floor_fraction", "verify_overhead", "tree_tax", "call_tax")
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_flex_attention_sees_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compile", lambda function: function)
    tried = try_way(flex.flex_way(), make_inputs(case, CPU, 2), BRIEF)
    assert tried.status == "timed", tried.notes
    assert len(tried.notes) == 5
    assert all(note.endswith(" us") for note in tried.notes.values())


@pytest.mark.slow
def test_flex_attention_compiled_runs_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_ATTEMPTS", flex._ATTEMPTS[:1])
    tried = try_way(flex.flex_way(), make_inputs(CASES[0], CPU, 2), BRIEF)
    assert tried.status in ("timed", "unavailable")
    if tried.status == "unavailable":  # no C++ compiler for torch.compile
        assert "Error" in tried.notes["as it comes"] or "Exception" in tried.notes["as it comes"]


@pytest.mark.parametrize(
    "visible", [one_key_more, lambda inputs: torch.ones_like(inputs.visible)], ids=["one key too many", "no mask"]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_a_wrong_baseline_is_told_and_not_timed(case: Case, visible: Callable[[Inputs], torch.Tensor]) -> None:
    result = measure(case, Device("", 1, 1, ""), CPU, BRIEF, [kernel_way, lambda: only(SDPA, seeing(visible))])
    row = result["ways"][SDPA]
    assert row["status"] == "wrong"
    assert row["error"] > 0.1
    assert row["candidates"]["by itself"].startswith("wrong: ")
    assert "launch" not in row
    assert result["ratios"]["launch"]["speedup"][SDPA] is None


def test_the_tree_weighs_enough_for_one_wrong_key_to_be_seen_at_32k() -> None:
    shape = dataclasses.replace(LLAMA, q_heads=4, kv_heads=1)
    inputs = make_inputs(Case(shape, 32768, 60, dtype="bf16"), CPU, 1)
    truth = oracle.attend(inputs, 0)
    right = next(iter(sdpa_way().candidates(inputs)))[1]().call(0)
    wrong = seeing(one_key_more)(inputs).call(0)
    assert oracle.relative_error(right, truth) < oracle.TOLERANCE[torch.bfloat16] / 4
    assert oracle.relative_error(wrong, truth) > 2 * oracle.TOLERANCE[torch.bfloat16]


def test_what_is_not_finite_is_wrong() -> None:
    truth = torch.ones(1, 2, 1, 4, dtype=torch.float64)
    assert oracle.relative_error(torch.full_like(truth, torch.nan), truth) == float("inf")


def test_a_way_that_does_not_run_says_why() -> None:
    def refuse(inputs: Inputs) -> Candidate:
        raise RuntimeError("no such kernel\nand more")

    result = measure(CASES[0], Device("", 1, 1, ""), CPU, BRIEF, [kernel_way, lambda: only(FLEX, refuse)])
    row = result["ways"][FLEX]
    assert (row["status"], row["candidates"]) == ("unavailable", {"by itself": "RuntimeError: no such kernel"})


def test_the_fastest_candidate_that_is_right_stands_for_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    right = next(iter(sdpa_way().candidates(inputs := make_inputs(CASES[0], CPU, 2))))[1]()
    wrong = seeing(one_key_more)(inputs)
    builds = {"slow": lambda: right, "wrong": lambda: wrong, "fast": lambda: right, "late": lambda: right}
    laps = iter([30.0, 10.0, 20.0])
    monkeypatch.setattr(Stopwatch, "lap", lambda self, clock: next(laps))
    tried = try_way(Way("several", lambda _: iter(builds.items())), inputs, BRIEF)
    assert tried.label == "fast"
    assert list(tried.notes) == ["slow", "wrong", "fast", "late"]


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = try_way(sdpa_best_way(), make_inputs(CASES[0], CPU, 2), Protocol(1, -1.0, 0.0))
    notes = list(tried.notes.values())
    assert tried.status == "timed"
    assert all(note.startswith("not tried") for note in notes[1:])


def test_rounds_go_there_and_back() -> None:
    laps: list[str] = []

    class Watch:
        clocks = ("launch",)

        def __init__(self, name: str) -> None:
            self.name = name

        def lap(self, clock: str) -> float:
            laps.append(self.name)
            return float(len(laps))

    times = race({"a": Watch("a"), "b": Watch("b")}, 3)  # type: ignore[dict-item]
    assert "".join(laps) == "abbaab"
    assert times["a"]["launch"].record() == {
        "median_us": 4.0,
        "lowest_us": 1.0,
        "highest_us": 5.0,
        "rounds_us": [1.0, 4.0, 5.0],
    }


def test_ratios() -> None:
    def timed(graph: float) -> dict[str, dict[str, float]]:
        return {"graph": {"median_us": graph}}

    ways = {
        KERNEL: timed(16.0),
        ONE_NODE: timed(12.8),
        NO_MASK: timed(10.0),
        SDPA: timed(80.0),
        AS_MODELS_CALL: timed(20.0),
    }
    ratios = ratios_of(ways, floor_us=10.0)["graph"]
    assert ratios["floor_fraction"] == 0.625
    assert ratios["speedup"] == {SDPA: 5.0, SDPA_BEST: None, EAGER: None, FLEX: None}
    assert ratios["verify_overhead"] == 1.25
    assert ratios["tree_tax"] == 1.6
    assert ratios["call_tax"] == 1.25


def test_trees_and_what_their_nodes_see() -> None:
    parents = grow_tree(60, seed=3)
    assert parents[0] == -1
    assert all(parent < node for node, parent in enumerate(parents))
    visible = see(torch.tensor([[-1, 0, 0, 1]]), 3, window=None)[0].int().tolist()
    assert visible == [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 0, 1]]
    narrow = see(torch.tensor([[-1, 0, 0, 1]]), 3, window=3)[0].int().tolist()
    assert narrow == [[0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 1, 0, 1]]


def test_the_sheet_holds_no_case_twice() -> None:
    keys = [case.key for case in sheet()]
    assert len(keys) == len(set(keys))
    sliding = cross([SHAPES["gemma-3-4b-sliding"]], [512, 2048, 8192], [60])
    assert [case.context for case in sliding] == [512, 2048]
    with pytest.raises(ValueError, match="cannot end in a tree of 60 nodes"):
        Case(LLAMA, 32, 60)


@pytest.mark.parametrize(("shape", "times"), [("tiny", 0), ("tiny-sliding", 1)])
def test_the_kernel_as_models_call_it_pays_for_the_bridge_s_own_work(
    shape: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sliding layer counts its padding anew in every call: small launches that belong to its time."""
    clamped: list[torch.Tensor] = []
    clamp = torch.Tensor.clamp
    ((_, build),) = as_models_call_way().candidates(make_inputs(Case(SHAPES[shape], 96, 12, dtype="fp32"), CPU, 1))
    candidate = build()
    monkeypatch.setattr(torch.Tensor, "clamp", lambda self, **limits: clamped.append(self) or clamp(self, **limits))
    candidate.call(0)
    assert len(clamped) == times


def test_choosing_a_backend_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs as much as a launch, and programs do it once: entered for a lap, and not for each of its calls."""
    entered: list[object] = []
    choose = ways.sdpa_kernel
    monkeypatch.setattr(ways, "sdpa_kernel", lambda backend: entered.append(backend) or choose(backend))
    candidates = sdpa_best_way().candidates(make_inputs(CASES[0], CPU, 3))
    candidate = next(build() for label, build in candidates if label == "math, repeated heads")
    watch = Stopwatch(candidate.call, 3, CPU, 0.0, candidate.within)
    entered.clear()
    watch.lap("launch")
    assert entered == [SDPBackend.MATH]
