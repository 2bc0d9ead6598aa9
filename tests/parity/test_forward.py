"""The head's forward, level by level, equals the official program's."""

from __future__ import annotations

import pytest
import torch
from golden import ATTENTIONS, FOLDER, PAIRS, pair
from safetensors.torch import load_file
from transformers.cache_utils import DynamicCache

from hf_eagle3 import EagleDraftModel

DEPTH = 5


def close(ours: torch.Tensor, official: torch.Tensor) -> None:
    torch.testing.assert_close(ours, official, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", PAIRS)
@torch.no_grad()
def test_forward_equals_the_official_one(name: str, attention: str) -> None:
    target, head = pair(name, attention)
    golden = load_file(FOLDER / "dumps" / f"forward__{name}.safetensors")
    boundaries = head.config.boundaries_for(target.config.num_hidden_layers)
    hidden = target(golden["input_ids"], output_hidden_states=True).hidden_states
    features = torch.cat([hidden[boundary] for boundary in boundaries], dim=-1)
    close(features, golden["aux_concat" if "aux_concat" in golden else "target_last_hidden_postnorm"])

    fused = head.fuse(features)
    close(fused, golden["draft_prefill_fc_out" if "draft_prefill_fc_out" in golden else "draft_prefill_in_hidden"])
    embed, cache = head.input_embeddings_for(target), DynamicCache()
    borrowed = {"lm_head": head.output_embeddings_for(target)} if isinstance(head, EagleDraftModel) else {}
    out = head(fused, inputs_embeds=embed(golden["draft_prefill_in_ids"]), past_key_values=cache, **borrowed)
    close(out.last_hidden_state, golden["draft_prefill_out_hidden"])
    close(out.logits, golden["draft_prefill_logits"])
    close(cache.layers[0].keys, golden["draft_prefill_k"])
    close(cache.layers[0].values, golden["draft_prefill_v"])

    committed = cache.get_seq_length()
    for level in range(1, DEPTH + 1):
        given = {part: golden[f"draft_level{level}_{part}"] for part in ("in_ids", "in_hidden", "position_ids")}
        tree_mask = golden[f"draft_level{level}_tree_mask"].bool()
        visible = torch.nn.functional.pad(tree_mask, (committed, 0), value=True)
        mask = torch.zeros(visible.shape).masked_fill_(~visible, torch.finfo(torch.float32).min)
        out = head(
            given["in_hidden"],
            inputs_embeds=embed(given["in_ids"]),
            position_ids=given["position_ids"][None],
            attention_mask=mask,
            past_key_values=cache,
            **borrowed,
        )
        close(out.last_hidden_state, golden[f"draft_level{level}_out_hidden"])
        close(out.logits, golden[f"draft_level{level}_logits"])
