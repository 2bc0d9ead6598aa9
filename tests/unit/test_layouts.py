"""Every catalogued format: loaded, and computing what the reference says, or refused in a sentence."""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_catalogue import Synthetic, Variant, synthesise, variants
from helpers.reference_heads import random_inputs, reference_steps
from transformers import AutoModel

import hf_eagle3
from hf_eagle3 import Eagle3DraftModel, EagleDraftModel
from hf_eagle3.head import DraftHead
from hf_eagle3.layouts import recognise

LENGTH, STEPS = 9, 4
# What a head that is refused is called by.
REFUSED = {
    "p-eagle": "P-EAGLE",
    "mla": "latent attention|DFlash|multi-token-prediction|Medusa",
    "final": "boundaries before the final norm are 0 to 9",
}


def kind(variant: Variant, made: Synthetic) -> str | None:
    """Why a variant cannot run (yet), by its name in `REFUSED`; None if it can."""
    if variant.id.startswith("peagle"):
        return "p-eagle"
    if made.conventions is None:
        return "mla"
    return "final" if made.facts.target_layers in made.facts.boundaries else None


CASES = [
    pytest.param(variant, options, id="-".join((variant.id, *options)))
    for variant in variants()
    for options in [(), *((option,) for option in variant.options)]
]


@pytest.mark.parametrize(("variant", "options"), CASES)
@torch.no_grad()
def test_it_loads_and_computes_what_it_was_made_for(
    variant: Variant, options: tuple[str, ...], tmp_path: Path
) -> None:
    made = synthesise(variant, tmp_path, options=options)
    refused = kind(variant, made)
    if made.refuse or refused not in (None, "final"):
        with pytest.raises((ValueError, OSError)) as caught:
            hf_eagle3.load_head(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
        if refused is not None:
            assert re.search(REFUSED[refused], str(caught.value))
        return
    head = hf_eagle3.load_head(tmp_path, dtype=torch.float64)
    assert made.conventions is not None
    assert type(head) is (EagleDraftModel if made.conventions.kind == "eagle1" else Eagle3DraftModel)
    if refused == "final":
        with pytest.raises(ValueError, match=REFUSED["final"]):
            head.config.boundaries_for(made.facts.target_layers)
        return
    wanted = list(made.facts.boundaries) or [made.facts.target_layers]
    assert head.config.boundaries_for(made.facts.target_layers) == wanted
    assert torch.equal(head.to_target_ids(torch.arange(head.config.draft_vocab_size)), made.facts.target_ids)
    states, tokens, embeddings, lm_head = random_inputs(made, LENGTH, STEPS)
    expected = reference_steps(made, states, tokens, embeddings, lm_head, STEPS)
    for found, step in zip(drafted(head, states, tokens, embeddings, lm_head), expected, strict=True):
        torch.testing.assert_close(found, step.draft_logits, atol=1e-5, rtol=1e-5)


def drafted(
    head: Any, states: list[torch.Tensor], tokens: torch.Tensor, embeddings: torch.Tensor, lm_head: torch.Tensor
) -> Any:
    """Logits `[rows, draft_vocab]` of every step: all states at once, then a chain from the last."""
    embed = head.embed_tokens.weight if head.embed_tokens is not None else embeddings
    more = {} if head.lm_head is not None else {"lm_head": partial(torch.nn.functional.linear, weight=lm_head)}
    read = states[:-1] if head.config.boundaries_for(10) != [10] else states[-1:]
    hidden, cache = head.fuse(torch.cat(read, dim=-1)[None]), None
    for step in range(STEPS):
        new = tokens[None, 1 : LENGTH + 1] if step == 0 else tokens[None, LENGTH + step : LENGTH + step + 1]
        out = head(hidden, inputs_embeds=embed[new], past_key_values=cache, use_cache=True, **more)
        hidden, cache = out.last_hidden_state[:, -1:], out.past_key_values
        yield out.logits[0]


def test_the_log_tells_layout_and_conventions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = synthesise(next(each for each in variants() if each.id == "speculators_eagle3-trainer_2026"), tmp_path)
    with caplog.at_level(logging.INFO, logger="hf_eagle3"):
        head = hf_eagle3.load_head(tmp_path)
    assert not head.training
    assert head.dtype == made.state_dict["lm_head.weight"].dtype
    for said in ("layout speculators", "boundaries [2, 6, 8]", "norm_before_residual", "norm_before_fc",
                 "norm_output", "own_embeddings", "window 4", "base"):  # fmt: skip
        assert said in caplog.text


@pytest.mark.parametrize("kind", ["dflash", "dflash_speculators", "mtp", "medusa"])
def test_other_drafters_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    synthesise(next(each for each in variants() if each.id == f"not_eagle-{kind}"), tmp_path)
    names = {"dflash": "DFlash", "mtp": "multi-token-prediction", "medusa": "Medusa"}
    for load in (hf_eagle3.load_head, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=names[kind.split("_")[0]]):
            load(tmp_path)


@pytest.mark.parametrize("variant", [each for each in variants() if not each.refuse], ids=lambda each: each.id)
def test_saved_as_ours_it_is_the_same_head(variant: Variant, tmp_path: Path) -> None:
    """Through `AutoModel`, which is what most people call, wherever the config tells a head from a plain model."""
    made = synthesise(variant, tmp_path / "theirs")
    refused = kind(variant, made)
    if refused not in (None, "final"):
        with pytest.raises(ValueError, match=REFUSED[refused]):
            hf_eagle3.load_head(tmp_path / "theirs")
        return
    told = recognise(made.config) is not None
    head = (AutoModel.from_pretrained if told else hf_eagle3.load_head)(tmp_path / "theirs")
    assert isinstance(head, DraftHead)
    head.save_pretrained(tmp_path / "ours")
    again = AutoModel.from_pretrained(tmp_path / "ours")
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    fields = set(type(head.config).__annotations__) - {"model_type", "keys_to_ignore_at_inference"}
    assert {name: getattr(head.config, name) for name in fields} == {
        name: getattr(again.config, name) for name in fields
    }
