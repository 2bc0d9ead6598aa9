"""Heads of other conventions draft what they compute by themselves, row by row; the tokens are the target's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.targets import prompt
from transformers import PreTrainedModel

from hf_eagle3 import Eagle3CandidateGenerator, Eagle3Config, Eagle3DraftModel, TreeShape

DEPTH = 7


def head_of(target: PreTrainedModel, **conventions: Any) -> Eagle3DraftModel:
    torch.manual_seed(3)
    config = Eagle3Config.from_target(target.config, initializer_range=0.5, **conventions)
    head = Eagle3DraftModel(config).eval()
    head.set_draft_vocabulary(torch.arange(config.vocab_size))
    with torch.no_grad():
        if head.fc is not None:
            head.fc.weight.mul_(0.001)  # the target's states are large, and would drown what attention adds
        for name, parameter in head.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return head


@torch.no_grad()
def chain(
    head: Eagle3DraftModel, target: PreTrainedModel, features: torch.Tensor, ids: torch.Tensor
) -> tuple[list[int], torch.Tensor]:
    """Greedy drafts one by one through the head's own forward, whose mask is transformers', and their cumulative
    log-probabilities."""
    embed, drafted, scores = target.get_input_embeddings(), [], []
    out = head(head.fuse(features), inputs_embeds=embed(ids[:, 1:]), use_cache=True)
    for _ in range(DEPTH):
        best, token = out.logits[0, -1].log_softmax(-1).max(-1)
        drafted.append(int(token))
        scores.append(best)
        token = embed(torch.tensor([drafted[-1:]]))
        out = head(
            out.last_hidden_state[:, -1:], inputs_embeds=token, past_key_values=out.past_key_values, use_cache=True
        )
    return drafted, torch.stack(scores).cumsum(0)


WINDOWS = [{"sliding_window": window} for window in (1, 3, 6, 12)]
LATENT = {"kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
OTHERS = [
    {"reads_last_hidden_state": True},
    {"norm_output": True},
    {"norm_before_residual": True},
    {"norm_before_fc": True},
    {"fc_norm": True},
    {"qk_norm": True, "num_hidden_layers": 2},
    LATENT,
    {**LATENT, "q_lora_rank": 12, "num_hidden_layers": 2, "sliding_window": 3},
]


@pytest.mark.parametrize("conventions", [{}, *WINDOWS, *OTHERS], ids=str)
@torch.no_grad()
def test_the_best_chain_is_the_heads_own(target: PreTrainedModel, conventions: dict[str, Any]) -> None:
    head, ids = head_of(target, **conventions), prompt(10)
    boundaries = head.config.boundaries_for(target.config.num_hidden_layers)
    hidden = target(ids[:, :-1], output_hidden_states=boundaries).hidden_states
    states = [hidden[boundary] for boundary in boundaries]
    drafter = Eagle3CandidateGenerator(head, target, TreeShape(DEPTH, DEPTH, 1))
    drafter.observe(states, end=ids.shape[1] - 1)
    tree = drafter.draft(ids)
    drafted, scores = chain(head, target, torch.cat(states, -1), ids)
    assert tree.tokens[0, 1:].tolist() == drafted
    torch.testing.assert_close(tree.log_probs[0, 1:], scores, atol=1e-5, rtol=1e-5)
    if conventions in WINDOWS:
        _, unbounded = chain(head_of(target), target, torch.cat(states, -1), ids)
        assert not torch.allclose(scores, unbounded)


@pytest.mark.parametrize("conventions", [WINDOWS[1], *OTHERS], ids=str)
def test_generate_gives_the_targets_tokens(target: PreTrainedModel, conventions: dict[str, Any]) -> None:
    head, ids = head_of(target, **conventions), prompt(9)
    options = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(target.generate(ids, assistant_model=head, **options), target.generate(ids, **options))
