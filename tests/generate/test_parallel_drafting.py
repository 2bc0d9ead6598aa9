"""P-EAGLE: one forward of the head drafts every level, and the tokens are still the target's."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from helpers.agreement import compare
from helpers.joint import WORDS, check_joint, small_target
from helpers.targets import VOCABULARY, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from hf_eagle3 import Eagle3Config, Eagle3DraftModel, TreeShape
from hf_eagle3.drafters.parallel import ParallelCandidateGenerator, likeliest_tree
from hf_eagle3.states import capturing
from hf_eagle3.static_tree import static_tree

NEW, DEPTH = 24, 5


def parallel_head(target: PreTrainedModel, **fields: Any) -> Eagle3DraftModel:
    """A random head of two layers that reads three boundaries, the one behind the last layer among them."""
    layers = target.config.num_hidden_layers
    chosen = {"target_boundaries": sorted({0, layers // 2, layers}), "num_hidden_layers": 2, "mask_token_id": 5}
    torch.manual_seed(3)
    config = Eagle3Config.from_target(target.config, parallel_drafting=True, norm_before_fc=True, **(chosen | fields))
    head = Eagle3DraftModel(config)
    head.set_draft_vocabulary(torch.arange(config.vocab_size))
    torch.nn.init.normal_(head.mask_hidden)
    return head.eval()


@torch.no_grad()
def features_of(target: PreTrainedModel, head: Eagle3DraftModel, ids: torch.Tensor) -> list[torch.Tensor]:
    with capturing(target, head.config.boundaries_for(target.config.num_hidden_layers)) as capture:
        out = target(ids, **capture.asked)
    return capture.states(out.get("hidden_states"))


def masked_forward(
    target: PreTrainedModel, head: Eagle3DraftModel, features: torch.Tensor, ids: torch.Tensor, depth: int
) -> torch.Tensor:
    """Logits `[depth, vocab]` of all levels behind the last feature, without any cache, as the format's reference."""
    embed = target.get_input_embeddings()
    tokens = torch.cat((ids[:, 1:], torch.full((1, depth - 1), head.config.mask_token_id)), dim=1)
    hidden = torch.cat((head.fuse(features), head.masked_slot().expand(1, depth - 1, -1)), dim=1)
    return head(hidden, inputs_embeds=embed(tokens)).logits[0, -depth:]


@pytest.fixture(scope="module")
def taught(target: PreTrainedModel) -> Eagle3DraftModel:
    """A head that has learned one greedy text of the target by heart, all levels at once (the loss of P-EAGLE)."""
    head = parallel_head(target, target_boundaries=[1, 2, 3, 5, 7])
    text = target.generate(prompt(), max_new_tokens=NEW + DEPTH + 1)
    features = torch.cat(features_of(target, head, text), dim=-1)
    optimiser = torch.optim.Adam(head.parameters(), lr=5e-3)
    start, end = prompt().shape[1], text.shape[1] - DEPTH
    with torch.enable_grad():
        for _ in range(20):
            for row in range(start, end):
                logits = masked_forward(target, head, features[:, :row], text[:, : row + 1], DEPTH)
                loss = torch.nn.functional.cross_entropy(logits, text[0, row + 1 : row + 1 + DEPTH])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    head.generation_config.update(num_assistant_tokens=20, tree_depth=DEPTH, tree_top_k=4)
    return head.eval()


# ---------------------------------------------------------------------- what is drafted


LATENT = {"kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}


@pytest.mark.parametrize(("top_k", "fields"), [(1, {}), (4, {}), (4, {"sliding_window": 3}), (4, LATENT)])
@torch.no_grad()
def test_every_round_drafts_what_the_masked_forward_scores(
    target: PreTrainedModel, top_k: int, fields: dict[str, Any]
) -> None:
    """Round after round on one cache, of which the masked slots keep nothing."""
    head, ids = parallel_head(target, **fields), prompt(20)
    states = features_of(target, head, ids)
    drafter = ParallelCandidateGenerator(head, target, TreeShape(30, DEPTH, top_k))
    seen = 0
    for length in (9, 11, 12, 16):
        drafter.observe([state[:, seen : length - 1] for state in states], end=length - 1)
        seen = length - 1
        tree = drafter.draft(ids[:, :length])
        assert drafter.state.cache.get_seq_length() == length - 1
        features = torch.cat(states, dim=-1)[:, : length - 1]
        expected = masked_forward(target, head, features, ids[:, :length], DEPTH).log_softmax(-1)
        for node in range(1, tree.num_nodes):
            path = [place for place in tree.ancestors[0, node].nonzero().flatten().tolist() if place]
            total = sum(expected[level, tree.tokens[0, place]] for level, place in enumerate(path))
            torch.testing.assert_close(tree.log_probs[0, node], total, atol=1e-4, rtol=1e-4)
        if top_k == 1:
            assert tree.tokens[0, 1:].tolist() == expected.argmax(-1).tolist()


@torch.no_grad()
def test_a_static_tree_is_made_of_ranks_of_its_levels(target: PreTrainedModel) -> None:
    head, ids, shape = parallel_head(target), prompt(9), static_tree([[0], [2], [0, 1], [2, 0], [2, 0, 3]])
    states = [state[:, :-1] for state in features_of(target, head, ids)]
    drafter = ParallelCandidateGenerator(head, target, shape)
    drafter.observe(states, end=8)
    tree = drafter.draft(ids)
    scores, tokens = (
        masked_forward(target, head, torch.cat(states, dim=-1), ids, 3).log_softmax(-1).sort(descending=True)
    )
    assert tree.parents[0].tolist() == shape.parents
    assert tree.tokens[0, 1:].tolist() == [int(tokens[len(path) - 1, path[-1]]) for path in shape.paths]
    totals = [sum(scores[level, rank] for level, rank in enumerate(path)) for path in shape.paths]
    torch.testing.assert_close(tree.log_probs[0, 1:], torch.stack(totals), atol=1e-4, rtol=1e-4)
    drafter.observe(states, end=8)
    assert drafter.draft(ids, max_depth=1).tokens[0, 1:].tolist() == tokens[0, [0, 2]].tolist()


@torch.no_grad()
def test_fewer_levels_where_the_target_has_fewer_positions_left(target: PreTrainedModel) -> None:
    head, ids = parallel_head(target), prompt(9)
    for levels in (0, 1, 2):
        drafter = ParallelCandidateGenerator(head, target, TreeShape(30, DEPTH, 3))
        drafter.observe([state[:, :-1] for state in features_of(target, head, ids)], end=8)
        tree = drafter.draft(ids, max_depth=levels)
        assert int(tree.depths.max()) == levels
        assert drafter.state.cache.get_seq_length() == (8 if levels else 0)


SCORES = st.lists(
    st.lists(st.floats(-9, 0).map(lambda value: round(value, 1)), min_size=3, max_size=3), min_size=1, max_size=4
)


@given(SCORES, st.integers(1, 20), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_the_tree_holds_the_likeliest_sequences(levels: list[list[float]], nodes: int, top_k: int) -> None:
    scores = [sorted(level, reverse=True)[:top_k] for level in levels]
    shape = TreeShape(nodes, len(scores), top_k)
    level_of, place_of, parents, sums = likeliest_tree(scores, shape)
    paths: list[tuple[int, ...]] = [()]
    for node, (level, place, parent) in enumerate(zip(level_of, place_of, parents, strict=True), start=1):
        assert parent < node
        assert len(paths[parent]) == level
        paths.append((*paths[parent], place))
        assert math.isclose(
            sums[node - 1], sum(scores[at][which] for at, which in enumerate(paths[node])), abs_tol=1e-9
        )
    assert len(set(paths)) == len(paths)
    assert len(level_of) <= nodes
    for level in range(len(scores)):
        assert len({parent for at, parent in zip(level_of, parents, strict=True) if at == level}) <= max(1, top_k)
    every = [
        sum(scores[at][which] for at, which in enumerate(path))
        for depth in range(1, len(scores) + 1)
        for path in itertools.product(*(range(len(level)) for level in scores[:depth]))
    ]
    best = sorted(every, reverse=True)[: len(sums)]
    if top_k == 1 or len(scores) == 1 or nodes <= top_k:  # where `tree_top_k` expansions a level cannot be too few
        assert sums == pytest.approx(best)
    assert sums == sorted(sums, reverse=True)


def test_a_head_that_overflows_still_gives_a_tree() -> None:
    lost = float("-inf")
    levels, places, parents, sums = likeliest_tree([[-1.0, lost], [lost, lost]], TreeShape(6, 2, 2))
    assert len(set(zip(levels, places, parents, strict=True))) == 6
    assert all(parent <= node for node, parent in enumerate(parents))
    assert sums == [-1.0, lost, lost, lost, lost, lost]


# ---------------------------------------------------------------------- lossless


def test_greedy_tokens_are_the_targets(target: PreTrainedModel, taught: Eagle3DraftModel) -> None:
    """On the text known by heart most levels are right; on others hardly any."""
    known = compare(target, taught, {"max_new_tokens": NEW}, least=2.5, input_ids=prompt())
    assert max(known.drafted.acceptance_lengths[0]) >= DEPTH - 1
    for seed in (1, 2):
        ids = prompt(7 + seed, seed=seed)
        plain = target.generate(ids, max_new_tokens=NEW)
        assert torch.equal(target.generate(ids, max_new_tokens=NEW, assistant_model=taught), plain)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 4, 1), (59, 8, 10)])
def test_trees_of_every_shape(target: PreTrainedModel, taught: Eagle3DraftModel, shape: tuple[int, ...]) -> None:
    knobs = dict(zip(("num_assistant_tokens", "tree_depth", "tree_top_k"), shape, strict=True))
    plain = target.generate(prompt(), max_new_tokens=NEW)
    assert torch.equal(target.generate(prompt(), max_new_tokens=NEW, assistant_model=taught, **knobs), plain)


def test_a_conversation_goes_on(target: PreTrainedModel, taught: Eagle3DraftModel) -> None:
    """The head's memory travels with the target's cache; the masked slots of the first call are not in it."""
    call = {"max_new_tokens": 10, "return_dict_in_generate": True}
    first = target.generate(prompt(), assistant_model=taught, **call)
    second = target.generate(first.sequences, past_key_values=first.past_key_values, assistant_model=taught, **call)
    plain = target.generate(prompt(), max_new_tokens=20)
    assert torch.equal(second.sequences, plain)
    assert sum(second.acceptance_lengths[0]) / len(second.acceptance_lengths[0]) > 1.5


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({"temperature": 0.8}, 250),
        pytest.param({"temperature": 0.8}, 1500, marks=pytest.mark.slow),
        pytest.param({"temperature": 1.3, "top_k": 4}, 1500, marks=pytest.mark.slow),
    ],
)
def test_joint_distribution_of_sampled_texts(options: dict[str, Any], samples: int) -> None:
    target = small_target()
    head = parallel_head(target, target_boundaries=[0, 1], num_attention_heads=2, head_dim=8)
    head.generation_config.update(num_assistant_tokens=10, tree_depth=3, tree_top_k=3)
    assert head.config.draft_vocab_size == WORDS
    check_joint(target, head, options, samples)


# ---------------------------------------------------------------------- refusals


def test_without_a_mask_token_it_is_refused_before_anything_runs(target: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"load it with `mask_token_id=\.\.\.`") as caught:
        target.generate(prompt(), max_new_tokens=4, assistant_model=parallel_head(target, mask_token_id=None))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_mask_token_outside_the_vocabulary_is_refused(target: PreTrainedModel, token: int) -> None:
    with pytest.raises(ValueError, match=f"`mask_token_id` is {token}"):
        parallel_head(target, mask_token_id=token)


def test_an_offloaded_head_is_refused_in_a_sentence(target: PreTrainedModel) -> None:
    from accelerate import cpu_offload

    head = cpu_offload(parallel_head(target), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="drafts in parallel and is offloaded"):
        target.generate(prompt(), max_new_tokens=4, assistant_model=head)


def test_other_heads_have_no_masked_slots(target: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="drafts level by level"):
        Eagle3DraftModel(Eagle3Config.from_target(target.config)).masked_slot()
