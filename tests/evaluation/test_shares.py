"""Shares of time: the parts make up the whole, and the drafter is watched as a whole and no longer than it runs."""

from __future__ import annotations

import time

import pytest
import torch
from helpers.oracle import OracleDrafter, OracleHead, oracle
from helpers.targets import prompt, tiny_target
from transformers import AutoModel, AutoModelForCausalLM

from hf_eagle3.evaluation.shares import Spent, measure_time
from hf_eagle3.evaluation.timing import Settings
from hf_eagle3.pairing import DRAFTERS

IDS = torch.tensor([[5, 6, 7]])
PROMPTS = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]


def test_shares_make_up_the_whole(pair_folders) -> None:
    target = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    head = AutoModel.from_pretrained(pair_folders.head).eval()
    drafters = dict(DRAFTERS)
    shares = measure_time(target, head, PROMPTS, Settings(max_new_tokens=12)).shares
    parts = (shares.target, shares.draft, shares.rest)
    assert sum(parts) == pytest.approx(1)
    assert all(0 < part < 1 for part in parts)
    assert not target._forward_hooks
    assert not target._forward_pre_hooks
    assert drafters == DRAFTERS


def test_all_that_a_drafter_does_counts_as_drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both methods sleep; an oracle has no forward, so nothing else could tell of it."""
    target, ids = tiny_target(), prompt(6)
    head = oracle(target)
    calls: list[str] = []
    for name in ("observe", "draft"):
        honest = getattr(OracleDrafter, name)

        def slow(self, *args, name=name, honest=honest):
            calls.append(name)
            time.sleep(0.002)
            return honest(self, *args)

        monkeypatch.setattr(OracleDrafter, name, slow)
    inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    settings = Settings(max_new_tokens=6)
    measure_time(target, head, inputs, settings)
    warm_up = len(calls)
    spent = measure_time(target, head, inputs, settings)
    assert {"observe", "draft"} == set(calls)
    # A warm-up of as many tokens is made in each measurement, and is not counted.
    assert warm_up / 2 * 0.002 <= spent.draft < spent.whole
    assert spent.target + spent.draft < spent.whole


def test_seconds_add_up() -> None:
    assert Spent() + Spent(4.0, 1.0, 2.0) == Spent(4.0, 1.0, 2.0)
    shares = (Spent(4.0, 1.0, 2.0) + Spent(6.0, 4.0, 1.0)).shares
    assert (shares.target, shares.draft, shares.rest) == pytest.approx((0.5, 0.3, 0.2))


def test_the_drafter_is_put_back_when_a_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    target, ids = tiny_target(), prompt(6)
    head = oracle(target)
    before = DRAFTERS[OracleHead]

    def broken(self, *args):
        raise RuntimeError("out of luck")

    inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    monkeypatch.setattr("hf_eagle3.evaluation.shares.warm_up", lambda *_: None)
    monkeypatch.setattr(OracleDrafter, "draft", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        measure_time(target, head, inputs, Settings(max_new_tokens=6))
    assert DRAFTERS[OracleHead] is before
    assert not target._forward_pre_hooks


def test_no_prompt_is_told() -> None:
    target = tiny_target()
    with pytest.raises(ValueError, match="no prompt"):
        measure_time(target, oracle(target), [], Settings())
