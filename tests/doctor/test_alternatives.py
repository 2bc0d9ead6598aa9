"""What the alternatives change: each takes back the damage that it is there for, and nothing else."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from transformers import LlamaConfig

from hf_eagle3 import Eagle3Config, Eagle3DraftModel
from hf_eagle3.doctor.alternatives import alternatives, changed
from hf_eagle3.doctor.subject import assemble

TARGET = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=9,
    num_attention_heads=4,
    rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500_000.0},
)


def _pair(**overrides):
    torch.manual_seed(0)
    head = Eagle3DraftModel(Eagle3Config.from_target(TARGET, draft_vocab_size=20, **overrides)).eval()
    head.set_draft_vocabulary(torch.arange(20) * 2 + 3)
    for name, parameter in head.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    return head, head.state_dict()


def _choices(head, tensors, kind: str):
    return [change for change in alternatives(head.config, tensors, TARGET) if change.kind == kind]


def test_boundaries_are_shifted_both_ways_and_stay_inside() -> None:
    head, tensors = _pair(target_boundaries=[0, 4, 8])
    ids = [change.fields["target_boundaries"] for change in _choices(head, tensors, "boundaries")]
    assert ids == [[1, 5, 9], [2, 4, 6], [3, 5, 7], [1, 3, 5]]  # one earlier than 0 does not exist
    head, tensors = _pair(target_boundaries=[1, 5, 9])
    assert [2, 6, 10] not in [change.fields["target_boundaries"] for change in _choices(head, tensors, "boundaries")]
    head, tensors = _pair(target_boundaries=[2, 4, 6])
    ids = [change.fields["target_boundaries"] for change in _choices(head, tensors, "boundaries")]
    assert ids == [[3, 5, 7], [1, 3, 5]]


def test_ropes_are_the_common_bases_and_the_targets_own_scaling() -> None:
    head, tensors = _pair(rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    ropes = [change.fields["rope_parameters"] for change in _choices(head, tensors, "rope")]
    assert {"rope_type": "linear", "factor": 2.0, "rope_theta": 500_000.0} in ropes
    assert {"rope_type": "default", "rope_theta": 500_000.0} in ropes
    assert head.config.rope_parameters not in ropes
    assert len(ropes) == len({str(sorted(rope.items())) for rope in ropes})


def test_flags_without_tensors_are_tried_and_those_with_tensors_only_where_these_are() -> None:
    head, tensors = _pair()
    assert _choices(head, tensors, "norm_output")[0].fields == {"norm_output": True}
    assert _choices(head, tensors, "norm_before_fc") == _choices(head, tensors, "fc_norm") == []
    head, tensors = _pair(norm_before_fc=True)
    off = _choices(head, tensors, "norm_before_fc")[0]
    config, kept = changed({off.kind: off}, head.config, tensors)
    assert not config.norm_before_fc
    assert "input_norm.weight" not in kept
    assemble(config, kept)


@pytest.mark.parametrize("order", [order for order in permutations(range(3)) if order != (0, 1, 2)])
@pytest.mark.parametrize("norm", ["none", "norm_before_fc", "fc_norm"])
def test_a_trained_order_of_states_is_taken_back(order: tuple[int, ...], norm: str) -> None:
    head, tensors = _pair(**({} if norm == "none" else {norm: True}))
    features = torch.randn(1, 5, 3 * 32)
    in_order = torch.cat([features.chunk(3, dim=-1)[place] for place in order], dim=-1)  # as the trainer gave them
    told = "order " + ", ".join(str(place + 1) for place in order)
    change = next(each for each in _choices(head, tensors, "state order") if each.told.endswith(told))
    mended = assemble(*changed({change.kind: change}, head.config, tensors))
    torch.testing.assert_close(mended.fuse(features), head.fuse(in_order))


def test_inputs_of_attention_and_norms_are_swapped_back() -> None:
    head, tensors = _pair()
    for kind in ("norms", "input order"):
        change = _choices(head, tensors, kind)[0]
        _, once = changed({kind: change}, head.config, tensors)
        _, twice = changed({kind: change}, head.config, once)
        assert any(not torch.equal(once[name], tensor) for name, tensor in tensors.items())
        assert all(torch.equal(twice[name], tensor) for name, tensor in tensors.items())


def test_ids_in_d2t_become_offsets_and_offsets_are_left_alone() -> None:
    head, tensors = _pair()
    stored = {**tensors, "d2t": tensors["d2t"] + torch.arange(20)}
    change = _choices(head, stored, "d2t")[0]
    _, mended = changed({"d2t": change}, head.config, stored)
    assert torch.equal(mended["d2t"], tensors["d2t"])
    assert torch.equal(mended["t2d"], tensors["t2d"])
    head.set_draft_vocabulary(torch.arange(20) + 5)  # neighbours: their offsets are equal
    assert _choices(head, head.state_dict(), "d2t") == []


def test_readings_share_the_heads_memory() -> None:
    head, tensors = _pair()
    other = assemble(*changed({}, head.config, tensors))
    assert other.lm_head.weight.data_ptr() == head.lm_head.weight.data_ptr()
    hidden, embeds = torch.randn(1, 4, 32), torch.randn(1, 4, 32)
    torch.testing.assert_close(other(hidden, inputs_embeds=embeds).logits, head(hidden, inputs_embeds=embeds).logits)
