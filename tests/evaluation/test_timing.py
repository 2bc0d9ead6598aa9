"""Runs: what is counted, and that modes take turns."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from hf_eagle3.evaluation import timing
from hf_eagle3.evaluation.timing import (
    WHOLE_DISTRIBUTION,
    Run,
    Settings,
    run_drafted,
    run_lookup,
    run_modes,
    run_plain,
)


@pytest.fixture(scope="module")
def pair(pair_folders):
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    target.generation_config.eos_token_id = None
    return target, AutoModel.from_pretrained(pair_folders.head).eval()


@pytest.fixture
def inputs():
    ids = torch.tensor([[1, 7, 9, 11, 3, 2]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_plain_takes_a_forward_a_token(pair, inputs) -> None:
    run = run_plain(pair[0], inputs, Settings(max_new_tokens=9))
    assert (len(run.tokens), run.forwards, run.acceptance_lengths) == (9, 9, [])
    assert run.acceptance_length == 1.0


def test_drafted_takes_a_forward_a_verification_and_one_for_the_prompt(pair, inputs) -> None:
    settings = Settings(max_new_tokens=12)
    run_drafted(*pair, inputs, settings)  # the first meeting probes the target, which is counted as well
    run = run_drafted(*pair, inputs, settings)
    assert run.forwards == 1 + len(run.acceptance_lengths)
    assert sum(run.acceptance_lengths) >= len(run.tokens) - 1 == 11
    assert len(run.tree_levels) == len(run.acceptance_lengths)
    rounds = zip(run.acceptance_lengths, run.tree_levels, strict=True)
    assert all(1 <= length <= 1 + levels for length, levels in rounds)
    assert run.acceptance_length == sum(run.acceptance_lengths) / len(run.acceptance_lengths)
    assert run.tokens == run_plain(pair[0], inputs, settings).tokens


def test_tree_knobs_reach_the_call(pair, inputs) -> None:
    widths: list[int] = []
    hook = pair[0].register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    knobs = {"num_assistant_tokens": 3, "tree_depth": 2, "tree_top_k": 2}
    try:
        run_drafted(*pair, inputs, Settings(max_new_tokens=6, tree=knobs))
    finally:
        hook.remove()
    assert widths[0] == 6
    assert set(widths[1:]) == {4}


def test_seed_repeats_a_sampled_run(pair, inputs) -> None:
    def tokens(seed: int) -> list[int]:
        return run_plain(pair[0], inputs, Settings(max_new_tokens=12, temperature=1.0, seed=seed)).tokens

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


def test_lookup_gives_the_plain_tokens(pair, inputs) -> None:
    settings = Settings(max_new_tokens=8)
    assert run_lookup(pair[0], inputs, settings).tokens == run_plain(pair[0], inputs, settings).tokens


@pytest.mark.parametrize(
    ("turn", "order"),
    [(0, ["plain", "drafted", "lookup"]), (1, ["drafted", "lookup", "plain"]), (5, ["lookup", "plain", "drafted"])],
)
def test_modes_take_turns_in_beginning(monkeypatch: pytest.MonkeyPatch, turn: int, order: list[str]) -> None:
    called: list[str] = []

    def fake(name: str):
        return lambda *_: called.append(name) or Run([1], 1.0, 1)

    for name in order:
        monkeypatch.setattr(timing, f"run_{name}", fake(name))
    runs = run_modes(None, None, {}, Settings(), turn=turn, lookup=True)  # type: ignore[arg-type]
    assert called == list(runs) == order


def test_sampled_answers_may_take_any_token_of_the_target(pair, inputs) -> None:
    """By itself `generate` would keep the fifty likeliest."""
    settings = Settings(max_new_tokens=2, temperature=1.0, sampling=WHOLE_DISTRIBUTION)
    for assistant in ({}, {"assistant_model": pair[1]}):
        out = pair[0].generate(**inputs, **settings.keywords(), **assistant, output_scores=True)
        assert all(scores.isfinite().all() for scores in out.scores)
    assert Settings(sampling=WHOLE_DISTRIBUTION).keywords()["do_sample"] is False
    assert "top_k" not in Settings(sampling=WHOLE_DISTRIBUTION).keywords()


def test_negative_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"The temperature is -0\.5; give 0"):
        Settings(temperature=-0.5)
