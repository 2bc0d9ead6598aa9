"""Lossless: in float32 the greedy tokens are plain `generate`'s, at acceptances where a mistake would show."""

from __future__ import annotations

import pytest
import torch
from helpers.agreement import branches_taken, compare, learn_text, mean_acceptance
from helpers.oracle import oracle
from helpers.targets import FAMILIES, prompt, tiny_target

from hf_eagle3 import DraftTree, drafting_with

NEW = 48
PROMPTS = (9, 4, 1)  # lengths


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_fit_for_a_comparison(family: str) -> None:
    """They are varied, and no choice in them is so close that rounding could turn it."""
    target = tiny_target(family)
    for length in PROMPTS:
        out = target.generate(prompt(length), max_new_tokens=NEW, output_logits=True, return_dict_in_generate=True)
        logits = torch.cat(out.logits)
        best, second = logits.topk(2, dim=-1).values.unbind(-1)
        gap = float(((best - second) / logits.abs().amax(-1)).min())
        kinds = len(set(out.sequences[0, length:].tolist()))
        print(f"{family}: {kinds} different tokens of {NEW}, smallest gap {gap:.1e}")
        assert kinds >= 12
        assert gap > 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_oracle(family: str, attention: str) -> None:
    target = tiny_target(family, attention=attention)
    assert target.config._attn_implementation == attention
    head = oracle(target)
    for length in PROMPTS:
        pair = compare(target, head, {"max_new_tokens": NEW}, least=1.5, input_ids=prompt(length))
        accepted, later = branches_taken(head, pair.drafted.sequences)
        print(f"{accepted} drafts accepted, {later} of them no first children")
        assert later >= accepted / 4
        lengths = pair.drafted.acceptance_lengths[0]
        assert max(lengths) >= 4
        assert min(lengths) < 1 + head.generation_config.tree_depth


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 1), (6, 1, 6), (40, 6, 5)])
def test_every_shape_of_tree(target, head, shape: tuple[int, int, int]) -> None:
    knobs = dict(zip(("num_assistant_tokens", "tree_depth", "tree_top_k"), shape, strict=True))
    learn_text(target, head, {"max_new_tokens": NEW}, input_ids=prompt())
    plain = target.generate(prompt(), max_new_tokens=NEW)
    out = target.generate(prompt(), max_new_tokens=NEW, assistant_model=head, return_dict_in_generate=True, **knobs)
    assert out.sequences.tolist() == plain.tolist()
    assert mean_acceptance(out) > 1.0
    assert max(out.acceptance_lengths[0]) == 1 + shape[1]


def test_trained_head(golden_target, golden_head) -> None:
    """The golden pair, whose trees are a real head's; other prompts than those of the golden runs."""
    for seed in range(3):
        ids = prompt(12, seed=seed, vocabulary=500)
        compare(golden_target, golden_head, {"max_new_tokens": NEW, "eos_token_id": None}, least=1.2, input_ids=ids)


def test_trees_that_end_early(golden_target, golden_head) -> None:
    """Higher thresholds draft fewer levels, down to one, and the tokens stay the same."""
    ids, options = prompt(12, vocabulary=500), {"max_new_tokens": NEW, "eos_token_id": None}
    plain = golden_target.generate(ids, **options).tolist()
    sizes = {"num_assistant_tokens": 12, "tree_depth": 5, "tree_top_k": 4}
    drafted = []
    for threshold in (0.0, 0.3, 0.7, 1.0):
        trees: list[DraftTree] = []
        door = drafting_with(
            golden_head, on_round=lambda tree, _, trees=trees: trees.append(tree),
            assistant_confidence_threshold=threshold, **sizes,
        )  # fmt: skip
        assert golden_target.generate(ids, custom_generate=door, **options).tolist() == plain
        drafted.append([int(tree.depths.max()) for tree in trees])
    assert min(drafted[0][:-1]) >= 2
    assert len({*drafted[1], *drafted[2]}) > 1
    assert sum(drafted[1]) / len(drafted[1]) > sum(drafted[2]) / len(drafted[2])
    assert set(drafted[3]) == {1}


def test_trained_head_on_a_prompt_of_one_token(golden_target, golden_head) -> None:
    options = {"max_new_tokens": NEW, "eos_token_id": None}
    compare(golden_target, golden_head, options, least=1.2, input_ids=torch.tensor([[17]]))


def test_drafts_nothing_but_nonsense(target) -> None:
    """An oracle that never tells the truth: nothing accepted, and still the same tokens."""
    head = oracle(target, corruption=1.0)
    plain = target.generate(prompt(), max_new_tokens=24)
    out = target.generate(prompt(), max_new_tokens=24, assistant_model=head, return_dict_in_generate=True)
    assert out.sequences.tolist() == plain.tolist()
    assert len(out.acceptance_lengths[0]) >= 20


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_drafter_sees_the_targets_own_states(attention: str) -> None:
    """What `observe` got over a whole run, put together, are the states of one plain forward over the final text."""
    target = tiny_target(attention=attention)
    boundaries = [0, 3, 6]
    head = oracle(target, boundaries)
    pair = compare(target, head, {"max_new_tokens": 30}, input_ids=prompt())
    seen = head.records[-1].observed
    ends = [end for end, _ in seen]
    rows = [states[0].shape[1] for _, states in seen]
    assert ends == [sum(rows[: index + 1]) for index in range(len(rows))]
    with torch.no_grad():
        hidden = target(pair.plain.sequences, output_hidden_states=True).hidden_states
    for index, boundary in enumerate(boundaries):
        observed = torch.cat([states[index] for _, states in seen], dim=1)
        torch.testing.assert_close(observed, hidden[boundary][:, : observed.shape[1]], rtol=1e-3, atol=1e-3)
