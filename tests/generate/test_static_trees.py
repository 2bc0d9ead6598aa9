"""Static trees: each node is the ranked child that the head's own forward gives, with heads of EAGLE-1 and EAGLE-3;
which tree a call gets; and the tokens, which are the target's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.agreement import compare
from helpers.targets import prompt
from transformers import GenerationConfig, PreTrainedModel

from hf_eagle3 import Eagle3Config, Eagle3DraftModel, EagleConfig, EagleDraftModel, TreeShape, drafting_with
from hf_eagle3.default_trees import CPU, DEFAULT_TREES
from hf_eagle3.pairing import drafter_for, tree_shape
from hf_eagle3.static_tree import StaticTree, static_tree

NAME = "mc_sim_7b_63"
UNEVEN = [[0], [1], [2], [0, 1], [2, 0], [2, 1], [2, 3], [2, 1, 0], [2, 3, 1]]
NEW = 40


def random_head(target: PreTrainedModel, kind: str, **fields: Any) -> Any:
    torch.manual_seed(3)
    config, model = (EagleConfig, EagleDraftModel) if kind == "eagle1" else (Eagle3Config, Eagle3DraftModel)
    head = model(config.from_target(target.config, initializer_range=0.5, **fields)).eval()
    if head.config.draft_vocab_size < 96:
        head.set_draft_vocabulary(torch.arange(1, 96, 2)[: head.config.draft_vocab_size])
    with torch.no_grad():
        # What attention adds would be drowned by the target's states, which are large, or left out by a softmax that
        # sees only one of them.
        head.fc.weight.mul_(0.05 if kind == "eagle1" else 0.001)
    return head


@torch.no_grad()
def ranked(
    head: Any, target: PreTrainedModel, states: list[torch.Tensor], ids: torch.Tensor, path: tuple[int, ...]
) -> tuple[list[int], float]:
    """The tokens along a path of ranks and their summed log-probability, by the head's own forward, one by one."""
    more = {"lm_head": target.get_output_embeddings()} if isinstance(head, EagleDraftModel) else {}
    embed, tokens, total = target.get_input_embeddings(), [], 0.0
    out = head(head.fuse(torch.cat(states, -1)), inputs_embeds=embed(ids[:, 1:]), use_cache=True, **more)
    for rank in path:
        chances = out.logits[0, -1].log_softmax(-1)
        draft_id = chances.argsort(descending=True)[rank]
        total += float(chances[draft_id])
        tokens.append(int(head.to_target_ids(draft_id)))
        out = head(
            out.last_hidden_state[:, -1:],
            inputs_embeds=embed(torch.tensor([tokens[-1:]])),
            past_key_values=out.past_key_values,
            use_cache=True,
            **more,
        )
    return tokens, total


@pytest.mark.parametrize("paths", [NAME, UNEVEN], ids=["mc_sim_7b_63", "uneven"])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [("eagle1", {}), ("eagle3", {"draft_vocab_size": 48}), ("eagle3", {"draft_vocab_size": 48, "sliding_window": 2})],
    ids=["eagle1", "eagle3", "eagle3 with a window"],
)
@torch.no_grad()
def test_each_node_is_its_parents_ranked_child(target, kind: str, fields: dict[str, Any], paths: Any) -> None:
    head, ids, shape = random_head(target, kind, **fields), prompt(10), static_tree(paths)
    boundaries = head.config.boundaries_for(target.config.num_hidden_layers)
    hidden = target(ids[:, :-1], output_hidden_states=True).hidden_states
    states = [hidden[boundary] for boundary in boundaries]
    drafter = drafter_for(head, target, shape, None)
    drafter.observe(states, end=ids.shape[1] - 1)
    tree = drafter.draft(ids)
    assert tree.parents[0].tolist() == shape.parents
    assert tree.depths[0].tolist() == [0, *(len(path) for path in shape.paths)]
    for node, path in enumerate(shape.paths, start=1):
        tokens, total = ranked(head, target, states, ids, path)
        assert int(tree.tokens[0, node]) == tokens[-1]
        # Five levels of sums that a prepacked head rounds otherwise.
        assert float(tree.log_probs[0, node]) == pytest.approx(total, rel=5e-5, abs=1e-4)
    # What the tree added to the head's memory is gone.
    assert drafter.state.cache.get_seq_length() == ids.shape[1] - 1


def test_few_words_and_few_levels_leave_a_smaller_tree(target) -> None:
    head, ids = random_head(target, "eagle3", draft_vocab_size=2), prompt(10)
    boundaries = head.config.boundaries_for(target.config.num_hidden_layers)
    with torch.no_grad():
        hidden = target(ids[:, :-1], output_hidden_states=True).hidden_states
        for depth, nodes in ((2, [0, 1, 1, 2, 2, 2, 2]), (1, [0, 1, 1]), (0, [0])):
            drafter = drafter_for(head, target, static_tree(NAME), None)
            drafter.observe([hidden[boundary] for boundary in boundaries], end=ids.shape[1] - 1)
            assert drafter.draft(ids, max_depth=depth).depths[0].tolist() == nodes


# ---------------------------------------------------------------------- which tree a call gets


def test_the_knob_nearest_to_the_call_counts(target) -> None:
    head = random_head(target, "eagle1")

    def chosen(on_config: dict[str, Any] | None = None, **keywords: Any) -> TreeShape:
        return tree_shape(target, head, keywords, None if on_config is None else GenerationConfig(**on_config))

    assert not isinstance(chosen(), StaticTree)
    assert chosen(draft_tree=NAME) == static_tree(NAME)
    head.generation_config.num_assistant_tokens = 7
    assert chosen(draft_tree=NAME) == chosen({"draft_tree": NAME}) == static_tree(NAME)
    head.generation_config.draft_tree = [[0], [0, 0]]
    assert chosen() == static_tree([[0], [0, 0]])
    usual = DEFAULT_TREES[CPU]
    assert chosen(tree_depth=2) == TreeShape(7, 2, usual.tree_top_k)
    assert chosen({"tree_top_k": 3}) == TreeShape(7, usual.tree_depth, 3)
    assert chosen({"tree_top_k": 3}, draft_tree=NAME) == static_tree(NAME)
    given = {"draft_tree": NAME, "other": 1}
    tree_shape(target, head, given, None)
    assert given == {"other": 1}
    with pytest.raises(ValueError, match="`draft_tree` and tree_depth, but a static tree has its size"):
        chosen(draft_tree=NAME, tree_depth=2)


def test_an_unknown_tree_is_refused_before_anything_runs(target) -> None:
    with pytest.raises(ValueError, match="'none_such'; known are mc_sim_7b_63"):
        target.generate(prompt(), assistant_model=random_head(target, "eagle1"), draft_tree="none_such")


# ---------------------------------------------------------------------- through the doors


@pytest.mark.parametrize("knobs", [{}, {"draft_tree": NAME}, {"draft_tree": UNEVEN}], ids=str)
def test_a_trained_head_of_eagle1(golden_target, golden_eagle1_head, knobs: dict[str, Any]) -> None:
    """EAGLE-2's dynamic tree, EAGLE-1's static one, and one of the user's own."""
    for seed in range(3):
        ids = prompt(12, seed=seed, vocabulary=500)
        options = {"max_new_tokens": NEW, "eos_token_id": None}
        plain = golden_target.generate(ids, **options)
        out = golden_target.generate(
            ids, assistant_model=golden_eagle1_head, return_dict_in_generate=True, **options, **knobs
        )
        assert out.sequences.tolist() == plain.tolist()
        mean = sum(out.acceptance_lengths[0]) / len(out.acceptance_lengths[0])
        print(f"mean acceptance length {mean:.2f}")
        assert mean > 1.2


def test_a_trained_head_of_eagle3(golden_target, golden_head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_head.generation_config, "draft_tree", NAME, raising=False)
    trees: list[int] = []
    door = drafting_with(golden_head, on_round=lambda tree, path: trees.append(tree.num_nodes))
    ids = prompt(12, vocabulary=500)
    options = {"max_new_tokens": NEW, "eos_token_id": None}
    compare(golden_target, golden_head, options, least=1.2, input_ids=ids)
    assert torch.equal(
        golden_target.generate(ids, custom_generate=door, **options), golden_target.generate(ids, **options)
    )
    assert set(trees) == {26}


@pytest.mark.parametrize("kind", ["eagle1", "eagle3"])
def test_the_door_of_custom_generate_takes_a_tree(target, kind: str) -> None:
    trees: list[int] = []
    head = random_head(target, kind)
    door = drafting_with(head, draft_tree=UNEVEN, on_round=lambda tree, path: trees.append(tree.num_nodes))
    # A number of drafts on the generation config is that of dynamic trees.
    out = target.generate(prompt(), max_new_tokens=8, custom_generate=door, num_assistant_tokens=5)
    assert out.tolist() == target.generate(prompt(), max_new_tokens=8).tolist()
    assert set(trees) == {10}
