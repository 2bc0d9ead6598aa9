"""The training-time test against its definition: the worked table, incremental drafting, and a dense-mask twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hf_eagle3.configuration_eagle3 import Eagle3Config
from hf_eagle3.modeling_eagle3 import Eagle3DraftModel
from hf_eagle3.training import rollout as unrolling
from hf_eagle3.training.rollout import Sequences, pack_rows, rollout, supervision, take

STEPS = 3


def dense_rollout(head: Eagle3DraftModel, sequences: Sequences, steps: int) -> list[torch.Tensor]:
    """Every row of every step and layer, one dense `tokens x (steps * tokens)` mask, one key list: slow and plain."""
    hidden, tokens = sequences.fused, sequences.fused.shape[1]
    same = sequences.documents[:, :, None] == sequences.documents[:, None, :]
    visible = [same & torch.ones(tokens, tokens, dtype=torch.bool).tril()]
    kept: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = [([], []) for _ in head.layers]
    states = []
    for step in range(steps):
        index = (torch.arange(tokens) + 1 + step).clamp(max=tokens - 1)
        if step > 0:
            visible.append(torch.eye(tokens, dtype=torch.bool).expand_as(same))
        for layer, (keys, values) in zip(head.layers, kept, strict=True):
            attention: Any = layer.self_attn
            read = layer.input_layernorm(hidden)
            if layer.hidden_norm is not None:
                embedded = layer.input_layernorm(sequences.embeddings[:, index])
                read = torch.cat((embedded, layer.hidden_norm(hidden)), dim=-1)
            shape = (*read.shape[:2], -1, attention.head_dim)
            query, key, value = (
                getattr(attention, name)(read).view(shape).transpose(1, 2) for name in ("q_proj", "k_proj", "v_proj")
            )
            cos, sin = head.rotary_emb(read, sequences.positions + step)
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            groups = query.shape[1] // key.shape[1]
            keys.append(key.repeat_interleave(groups, 1))
            values.append(value.repeat_interleave(groups, 1))
            scores = query @ torch.cat(keys, 2).transpose(-1, -2) * attention.scaling
            weights = scores.masked_fill(~torch.cat(visible, -1)[:, None], float("-inf")).softmax(-1)
            mixed = (weights @ torch.cat(values, 2)).transpose(1, 2).flatten(2)
            hidden = hidden + attention.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        states.append(hidden)
    return states


def one_document(fused: torch.Tensor, embeddings: torch.Tensor) -> Sequences:
    batch, tokens = fused.shape[:2]
    return Sequences(fused, embeddings, every_row(batch, tokens), torch.zeros(batch, tokens, dtype=torch.int32))


def two_packed(fused: torch.Tensor, embeddings: torch.Tensor, first: int = 5) -> Sequences:
    """The same tokens as two conversations, `first` tokens and the rest, and a padded last token."""
    sequences = one_document(fused, embeddings)
    positions, documents = sequences.positions.clone(), sequences.documents.clone()
    positions[:, first:] -= first
    documents[:, first:], documents[:, -1] = 1, -1
    return Sequences(fused, embeddings, positions, documents)


def every_row(batch: int, tokens: int) -> torch.Tensor:
    return torch.arange(tokens).expand(batch, tokens)


@pytest.fixture(params=[1, 2], ids=["one layer", "two layers"])
def any_head(request: pytest.FixtureRequest, target: Any) -> Eagle3DraftModel:
    torch.manual_seed(1)
    config = Eagle3Config.from_target(
        target.config, draft_vocab_size=40, initializer_range=0.2, num_hidden_layers=request.param
    )
    head = Eagle3DraftModel(config)
    head.set_draft_vocabulary(torch.arange(40))
    return head


def test_supervision_is_the_worked_table() -> None:
    """Tokens 0-1 are the prompt, 2-5 the answer, 5 its stop token."""
    answers = torch.tensor([[False, False, True, True, True, True]])
    expected = torch.zeros(STEPS, 1, 6, dtype=torch.bool)
    for step, rows in enumerate([(1, 2, 3), (1, 2), (1,)]):
        expected[step, 0, list(rows)] = True
    assert torch.equal(supervision(answers, torch.zeros(1, 6), STEPS), expected)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40), st.integers(1, 5))
def test_supervision_is_the_product_of_the_specification(tokens: list[tuple[bool, bool]], steps: int) -> None:
    """V(t, i) position by position: all of t+1 .. t+2+i answer tokens of row t's own conversation."""
    answers = torch.tensor([[answer for answer, _ in tokens]])
    documents = torch.tensor([[opens for _, opens in tokens]]).int().cumsum(-1)
    found = supervision(answers, documents, steps)
    for step in range(steps):
        for t in range(len(tokens)):
            span = range(t + 1, t + 3 + step)
            inside = span[-1] < len(tokens)
            expected = inside and all(answers[0, j] and documents[0, j] == documents[0, t] for j in span)
            assert bool(found[step, 0, t]) == expected, (step, t)


def test_pack_rows_round_trip() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]]).bool()
    rows, valid = pack_rows(mask)
    for row in range(3):
        assert rows[row][valid[row]].tolist() == mask[row].nonzero()[:, 0].tolist()


CONVENTIONS = ("norm_before_residual", "norm_output", "fc_norm", "qk_norm", "qkv_bias")


@pytest.mark.parametrize("conventions", [(), *((name,) for name in CONVENTIONS), CONVENTIONS], ids="+".join)
@pytest.mark.parametrize("layers", [1, 2])
def test_rollout_is_incremental_drafting(
    target: Any, layers: int, conventions: tuple[str, ...], sequence: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """A chain drafted after position `t` through the head's own forward and cache, fed the data's tokens."""
    torch.manual_seed(1)
    head = Eagle3DraftModel(
        Eagle3Config.from_target(
            target.config, initializer_range=0.2, num_hidden_layers=layers, **dict.fromkeys(conventions, True)
        )
    )
    for name, parameter in head.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data.uniform_(0.5, 1.5)
    features, embeddings = sequence
    fused = head.fuse(features)
    tokens = fused.shape[1]
    states = list(rollout(head, one_document(fused, embeddings), every_row(1, tokens), STEPS))
    for t in range(tokens - STEPS - 1):
        cache = DynamicCache()
        out = head(fused[:, : t + 1], inputs_embeds=embeddings[:, 1 : t + 2], past_key_values=cache, use_cache=True)
        for step in range(STEPS):
            expected = head.lm_head(head.norm(states[step][:, t]))
            torch.testing.assert_close(out.logits[:, -1], expected, atol=1e-4, rtol=1e-4)
            out = head(
                out.last_hidden_state[:, -1:],
                inputs_embeds=embeddings[:, t + 2 + step : t + 3 + step],
                position_ids=torch.tensor([[t + 1 + step]]),
                past_key_values=cache,
                use_cache=True,
            )


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("form", ["kept", "checkpointed", "blocks"])
def test_fast_rollout_equals_the_dense_one(
    any_head: Eagle3DraftModel,
    sequence: tuple[torch.Tensor, torch.Tensor],
    packed: bool,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """States of gathered rows and anchors, and the gradients of a loss on them, whichever way memory is saved."""
    if form == "blocks":
        monkeypatch.setattr(unrolling, "QUERIES", 2)
    head = any_head.double()  # in float32 the two orders of summation already differ by some 1e-5 in the gradients
    features, embeddings = (torch.cat((part, part.flip(1)), 0).double() for part in sequence)
    rows = torch.tensor([[2, 3, 5, 8], [1, 4, 6, 7]])
    anchors = torch.tensor([[0, 2, 3], [1, 2, 3]])
    weights = torch.randn(STEPS, 2, 4, head.config.hidden_size, dtype=torch.double)
    arrange = two_packed if packed else one_document

    def gradients(fast: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        head.zero_grad()
        sequences = arrange(head.fuse(features), embeddings)
        if fast:
            states = list(rollout(head, sequences, rows, STEPS, anchors, checkpointing=form == "checkpointed"))
        else:
            chosen = [rows] + [rows.gather(1, anchors)] * (STEPS - 1)
            dense = dense_rollout(head, sequences, STEPS)
            states = [take(state, at) for state, at in zip(dense, chosen, strict=True)]
        sum((state * weights[i, :, : state.shape[1]]).sum() for i, state in enumerate(states)).backward()
        return states, [parameter.grad for parameter in head.layers.parameters()] + [head.fc.weight.grad]

    for fast, plain in zip(gradients(True), gradients(False), strict=True):
        for one, other in zip(fast, plain, strict=True):
            torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-5)


def test_packed_equals_unpacked(any_head: Eagle3DraftModel, sequence: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Two conversations in one row give each its own states, at every row that its own tokens can supervise."""
    features, embeddings = sequence
    fused = any_head.fuse(features)
    packed = list(rollout(any_head, two_packed(fused, embeddings), every_row(1, 12), STEPS))
    for part in (slice(0, 5), slice(5, 11)):
        alone = one_document(fused[:, part], embeddings[:, part])
        tokens = alone.fused.shape[1]
        for step, states in enumerate(rollout(any_head, alone, every_row(1, tokens), STEPS)):
            inside = slice(part.start, part.stop - 1 - step)
            torch.testing.assert_close(packed[step][:, inside], states[:, : tokens - 1 - step], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("step", range(STEPS))
def test_every_step_teaches_the_fusion(
    any_head: Eagle3DraftModel, sequence: tuple[torch.Tensor, torch.Tensor], step: int
) -> None:
    """Nothing is detached between steps: the loss of the last one alone still reaches fc."""
    features, embeddings = sequence
    sequences = one_document(any_head.fuse(features), embeddings)
    states = list(rollout(any_head, sequences, every_row(1, features.shape[1]), STEPS))
    any_head.zero_grad()
    any_head.lm_head(any_head.norm(states[step])).square().mean().backward()
    assert any_head.fc.weight.grad is not None
    assert any_head.fc.weight.grad.abs().max() > 0
