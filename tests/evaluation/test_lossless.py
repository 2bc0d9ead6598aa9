"""Verdicts: what counts as the same answer, what as rounding, and what as an error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from hf_eagle3.evaluation import lossless
from hf_eagle3.evaluation.lossless import Judge, Verdict, compare, first_difference
from hf_eagle3.evaluation.timing import Run, Settings, run_plain

PROMPT = torch.tensor([[1, 7, 9]])
INPUTS = {"input_ids": PROMPT, "attention_mask": torch.ones_like(PROMPT)}


@pytest.fixture(scope="module")
def target(pair_folders):
    model = AutoModelForCausalLM.from_pretrained(pair_folders.target).eval()
    model.generation_config.eos_token_id = None
    return model


class Rigged(torch.nn.Module):
    """A target whose logits are given, in a given dtype."""

    def __init__(self, logits: list[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.logits = torch.tensor(logits, dtype=dtype)
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        self.seen.append(input_ids[0].tolist())
        return SimpleNamespace(logits=self.logits.expand(1, input_ids.shape[1], -1))


@pytest.mark.parametrize(
    ("plain", "drafted", "position"),
    [([1, 2], [1, 2], None), ([], [], None), ([1, 2, 3], [1, 5, 3], 1), ([1, 2], [1, 2, 3], 2), ([4], [5], 0)],
)
def test_first_difference(plain: list[int], drafted: list[int], position: int | None) -> None:
    assert first_difference(plain, drafted) == position


def test_gap_is_recomputed_where_the_answers_part() -> None:
    model = Rigged([10.0, 9.5, 3.0], torch.float32)
    verdict = compare(model, PROMPT, [2, 0, 0], [2, 1, 1])
    assert model.seen == [[1, 7, 9, 2]]
    assert verdict == Verdict(False, 1, 0.5, 0.0)
    assert not verdict.lossless


def test_gap_is_that_of_the_worse_token() -> None:
    assert compare(Rigged([10.0, 9.5, 3.0], torch.float32), PROMPT, [1], [2]).gap == 7.0


def test_near_tie_in_half_precision_and_beyond_it() -> None:
    tie = compare(Rigged([40.0, 39.75, 3.0], torch.bfloat16), PROMPT, [0], [1])
    assert tie.near_tie
    assert tie.lossless
    assert str(tie) == "identical up to token 0, a near tie (logit gap 0.25)"
    error = compare(Rigged([40.0, 38.0, 3.0], torch.bfloat16), PROMPT, [0], [1])
    assert not error.lossless
    assert "identical: NO" in str(error)
    assert not compare(Rigged([40.0, 39.75, 3.0], torch.float16), PROMPT, [0], [1]).lossless


def test_an_answer_that_goes_on_past_the_other_is_never_rounding() -> None:
    verdict = compare(Rigged([1.0, 1.0], torch.bfloat16), PROMPT, [0, 1], [0, 1, 1])
    assert verdict.gap is None
    assert not verdict.lossless
    assert "one answer ended there" in str(verdict)


def test_float32_flip_that_float64_does_not_know_is_lossless(target, pair_folders) -> None:
    head = AutoModel.from_pretrained(pair_folders.head).eval()
    settings = Settings(max_new_tokens=6)
    plain = run_plain(target, INPUTS, settings).tokens
    drafted = [*plain[:3], (plain[3] + 1) % 64, *plain[4:]]
    verdict = Judge(target, head).rule(INPUTS, settings, plain, drafted)
    assert (verdict.identical, verdict.position, verdict.equal_in_float64) == (False, 3, True)
    assert verdict.gap is not None
    assert verdict.gap > 0
    assert verdict.lossless
    assert "the same in float64" in str(verdict)
    assert target.dtype == torch.float32


def test_float32_flip_that_stands_in_float64_is_an_error(target, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: list[torch.dtype] = []

    def wrong(model, head, inputs, settings) -> Run:
        dtypes.append(model.dtype)
        return Run([9] * settings.max_new_tokens, 1.0, 1, [1])

    monkeypatch.setattr(lossless, "run_drafted", wrong)
    settings = Settings(max_new_tokens=4)
    plain = run_plain(target, INPUTS, settings).tokens
    verdict = Judge(target, None).rule(INPUTS, settings, plain, [9] * 4)  # type: ignore[arg-type]
    assert dtypes == [torch.float64]
    assert verdict.equal_in_float64 is False
    assert not verdict.lossless
    assert "DIFFERENT in float64 too" in str(verdict)


def test_agreement_costs_no_float64_copy(target) -> None:
    judge = Judge(target, None)  # type: ignore[arg-type]
    assert str(judge.rule(INPUTS, Settings(), [1, 2], [1, 2])) == "identical: yes"
    assert judge._exact is None
