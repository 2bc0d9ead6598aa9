"""Whole greedy runs: every draft tree, every acceptance and every token as in the official program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import ATTENTIONS, BOUNDARY_GAP, ORDER_GAP, PAIRS, dump, golden_paths, pair, tree_paths

from hf_eagle3 import DraftTree, TreeShape
from hf_eagle3 import generation as doors
from hf_eagle3.drafters.base import TreeDrafter

SHAPE = TreeShape(num_assistant_tokens=59, tree_depth=6, tree_top_k=10)  # total_token=60, depth=5, top_k=10
RUNS = [(name, number) for name in PAIRS for number in range(9)]


def recording(make: Callable[..., TreeDrafter], trees: list[DraftTree]) -> Callable[..., TreeDrafter]:
    """Makes the drafter itself, whose trees go into a list."""

    def made(*args: Any, **kwargs: Any) -> TreeDrafter:
        drafter = make(*args, **kwargs)
        draft = drafter.draft

        def recorded(*args: Any, **kwargs: Any) -> DraftTree:
            trees.append(draft(*args, **kwargs))
            return trees[-1]

        drafter.draft = recorded  # type: ignore[method-assign]
        return drafter

    return made


def run(
    name: str, golden: dict[str, Any], attention: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[DraftTree]]:
    target, head = pair(name, attention)
    trees: list[DraftTree] = []
    monkeypatch.setitem(doors.DRAFTERS, type(head), recording(doors.DRAFTERS[type(head)], trees))
    out = target.generate(
        torch.tensor([golden["prompt_ids"]]),
        assistant_model=head,
        do_sample=False,
        # The official program commits whole steps and stops after them; so many tokens let us see each of its steps.
        max_new_tokens=len(golden["eagle_ids"]),
        return_dict_in_generate=True,
        **vars(SHAPE),
    )
    return out, trees


def assert_same_tree(tree: DraftTree, step: dict[str, Any]) -> None:
    ours, official = tree_paths(tree), golden_paths(step)
    if step["min_boundary_gap"] < BOUNDARY_GAP:
        return
    assert ours.keys() == official.keys()
    for path, score in official.items():
        assert ours[path] == pytest.approx(score, abs=1e-4)
    if step["min_order_gap"] >= ORDER_GAP:
        assert tree.tokens[0].tolist() == step["draft_tokens"]
        assert tree.parents[0].tolist() == step["parents"]
        assert tree.depths[0].tolist() == step["tree_position_ids"]
        rows = [int(word, 16) for word in step["tree_mask_hex"]]
        seen = [sum(1 << j for j, bit in enumerate(row) if bit) for row in tree.ancestors[0].tolist()]
        assert seen == rows


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("name", "number"), RUNS)
def test_run_equals_the_official_one(name: str, number: int, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = dump(f"greedy__{name}__t60_d5_k10")["runs"][number]
    out, trees = run(name, golden, attention, monkeypatch)
    new_ids = out.sequences[0, len(golden["prompt_ids"]) :].tolist()
    assert new_ids == golden["eagle_ids"][: len(new_ids)]
    steps = golden["steps"][: len(trees)]
    assert len(trees) >= golden["n_steps"] - 1
    position = 0
    for tree, step, accepted in zip(trees, steps, out.acceptance_lengths[0], strict=False):
        assert_same_tree(tree, step)
        assert accepted == step["accept_length"] + 1
        committed = new_ids[position : position + accepted]
        assert committed == step["committed_tokens"][: len(committed)]
        position += accepted


def test_every_golden_tree_is_compared() -> None:
    """The gaps below which a tree may differ are rare: the comparison above is not an empty one."""
    steps = [step for name in PAIRS for run in dump(f"greedy__{name}__t60_d5_k10")["runs"] for step in run["steps"]]
    compared = [step for step in steps if step["min_boundary_gap"] >= BOUNDARY_GAP]
    assert len(compared) > 0.9 * len(steps) > 200
