"""Where each token of an answer came from, and that the rounds together are the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rounds import Token, Trace
from transformers import AutoModelForCausalLM

import hf_eagle3
from hf_eagle3 import DraftTree


def tree(tokens: list[int], parents: list[int], log_probs: list[float] | None = None) -> DraftTree:
    scores = log_probs or [-0.1 * place for place in range(len(tokens))]
    return DraftTree(torch.tensor([tokens]), torch.tensor([parents]), torch.tensor([scores]))


def emitted(trace: Trace, *tokens: int) -> None:
    for token in tokens:
        trace.emit(token)


def test_accepted_drafts_have_their_depth_and_the_bonus_has_none() -> None:
    trace = Trace()
    emitted(trace, 7, 3, 5, 9)
    trace.close_round(tree([7, 3, 4, 5, 6], [-1, 0, 0, 1, 1]), [0, 1, 3])
    emitted(trace, 2)
    trace.close_round(tree([9, 8], [-1, 0]), [0])
    expected = [Token(7, None, 0), Token(3, 0, 1), Token(5, 0, 2), Token(9, 0, 0), Token(2, 1, 0)]
    assert trace.tokens == expected
    assert [round.bonus for round in trace.rounds] == [9, 2]
    assert trace.acceptance_length == 2.0
    assert trace.longest == 0


def test_rejected_are_the_drafts_where_the_bonus_stands_likeliest_first() -> None:
    trace = Trace()
    emitted(trace, 7, 3, 9)
    trace.close_round(tree([7, 3, 4, 5, 6], [-1, 0, 0, 1, 1], [0.0, -0.1, -2.0, -0.9, -0.4]), [0, 1])
    assert trace.rounds[0].rejected == [6, 5]


def test_a_path_to_a_leaf_rejects_nothing() -> None:
    trace = Trace()
    emitted(trace, 7, 3, 9)
    trace.close_round(tree([7, 3], [-1, 0]), [0, 1])
    assert trace.rounds[0].rejected == []


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_round_that_was_cut_has_no_bonus(kept: int) -> None:
    trace = Trace()
    emitted(trace, 7, *[3, 5][:kept])
    trace.close_round(tree([7, 3, 5], [-1, 0, 1]), [0, 1, 2])
    assert [token.depth for token in trace.tokens] == [0, 1, 2][: kept + 1]
    assert trace.rounds[0].bonus is None
    assert trace.rounds[0].rejected == []
    assert trace.counted.cut == 3 - kept


def test_nothing_yet() -> None:
    assert Trace().tokens == []
    assert Trace().acceptance_length is None
    assert Trace().longest is None


def test_the_rounds_of_a_real_call_are_its_tokens(pair_folders: Any) -> None:
    """The decoder emits and closes in the order that a trace relies on, cut at the limit as well."""
    target: Any = AutoModelForCausalLM.from_pretrained(pair_folders.target)
    head = hf_eagle3.load_head(pair_folders.head)
    prompt = torch.tensor([[1, 9, 3, 2]])
    for length in (1, 2, 23):
        trace, seen = Trace(), []

        class Emits:
            def put(self, value: torch.Tensor, trace: Trace = trace, seen: list[int] = seen) -> None:
                if value.numel() == 1:
                    trace.emit(int(value))
                    seen.append(int(value))

            def end(self) -> None: ...

        door = hf_eagle3.drafting_with(head, streamer=Emits(), on_round=trace.close_round, num_assistant_tokens=12)
        ids = target.generate(prompt, custom_generate=door, max_new_tokens=length, do_sample=False, eos_token_id=None)
        assert [token.id for token in trace.tokens] == ids[0, prompt.shape[1] :].tolist() == seen
        assert all(round.tree.tokens[0, 0] in (ids[0]) for round in trace.rounds)
