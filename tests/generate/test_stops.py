"""Stopping criteria: they see each text that plain `generate` shows them, one token at a time, and not one more."""

from __future__ import annotations

import pytest
import torch
from helpers.agreement import compare
from helpers.targets import letters, prompt
from transformers import StoppingCriteria, StoppingCriteriaList


class Recorder(StoppingCriteria):
    """Remembers what it was shown; stops at a length if one is given."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.calls: list[list[int]] = []
        self.scores: list[int | None] = []

    def __call__(self, input_ids: torch.Tensor, scores: tuple | None, **kwargs) -> torch.Tensor:
        self.calls.append(input_ids[0].tolist())
        self.scores.append(None if scores is None else len(scores))
        done = self.stop_at is not None and input_ids.shape[1] >= self.stop_at
        return torch.full((1,), done, dtype=torch.bool)


def recorded(stop_at: int | None, log: list[Recorder], **options):
    """Options for one call with a fresh recorder, which is put in `log`."""

    def make() -> dict:
        log.append(Recorder(stop_at))
        return {"max_new_tokens": 26, "stopping_criteria": StoppingCriteriaList([log[-1]]), **options}

    return make


@pytest.mark.parametrize("stop_at", [11, 17, 22, None])
def test_a_criterion_with_memory(target, head, stop_at: int | None) -> None:
    log: list[Recorder] = []
    compare(target, head, recorded(stop_at, log), input_ids=prompt())
    plain, drafted = log[-2:]
    assert drafted.calls == plain.calls
    assert len(plain.calls) == (26 if stop_at is None else stop_at - 9)


def test_a_criterion_that_the_first_token_meets(target, head) -> None:
    recorder = Recorder(stop_at=10)
    out = target.generate(
        prompt(),
        max_new_tokens=26,
        stopping_criteria=[recorder],
        assistant_model=head,
        return_dict_in_generate=True,
    )
    assert out.sequences.tolist() == target.generate(prompt(), max_new_tokens=1).tolist()
    assert len(recorder.calls) == 1
    assert out.acceptance_lengths == [[]]


def test_scores_that_a_criterion_sees(target, head) -> None:
    """Plain `generate` shows it the scores up to its token, if they are asked for."""
    log: list[Recorder] = []
    compare(target, head, recorded(20, log, output_scores=True), input_ids=prompt())
    assert log[-1].scores == log[-2].scores == list(range(1, 12))
    compare(target, head, recorded(20, log), input_ids=prompt())
    assert log[-1].scores == log[-2].scores == [None] * 11


def test_two_criteria_are_both_asked(target, head) -> None:
    first, second = Recorder(17), Recorder(17)
    plain = target.generate(prompt(), max_new_tokens=26, stopping_criteria=[first, second])
    third, fourth = Recorder(17), Recorder(17)
    head.learn(target.generate(prompt(), max_new_tokens=40))
    drafted = target.generate(prompt(), max_new_tokens=26, stopping_criteria=[third, fourth], assistant_model=head)
    assert drafted.tolist() == plain.tolist()
    assert first.calls == third.calls
    assert second.calls == fourth.calls


@pytest.mark.parametrize("place", [2, 5, 8, 13])
def test_stop_strings(target, head, place: int) -> None:
    tokenizer = letters()
    new = target.generate(prompt(), max_new_tokens=30)[0, 9:].tolist()
    stop = tokenizer.decode(new[place : place + 2])
    options = {"max_new_tokens": 30, "stop_strings": [stop, "never"], "tokenizer": tokenizer}
    pair = compare(target, head, options, input_ids=prompt())
    assert pair.drafted.sequences.shape[1] < 9 + 30, "the string must have stopped it"
    assert tokenizer.decode(pair.drafted.sequences[0]).endswith(stop)


def test_whichever_stop_comes_first(target, head) -> None:
    new = target.generate(prompt(), max_new_tokens=30)[0, 9:].tolist()
    log: list[Recorder] = []
    for eos, stop_at, limit, end in ((new[6], 20, 30, 16), (new[14], 13, 30, 13), (new[14], 20, 3, 12)):
        make = recorded(stop_at, log, eos_token_id=eos)
        options = lambda make=make, limit=limit: make() | {"max_new_tokens": limit}  # noqa: E731
        pair = compare(target, head, options, input_ids=prompt())
        assert pair.drafted.sequences.shape[1] == end
        assert log[-1].calls == log[-2].calls
