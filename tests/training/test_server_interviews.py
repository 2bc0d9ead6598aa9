"""Interviews through a server: asked turn by turn, masked by rendering, refusals counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from helpers.interviews import PLAN, REWRITING, STOP, OpenGate, check, given
from transformers import PreTrainedTokenizerFast

from hf_eagle3.data.conversations import Conversation
from hf_eagle3.data.interviewer import ServerInterviewer
from hf_eagle3.data.server import ServerAnswer, ServerRequest
from hf_eagle3.data.tally import Tally


class EchoServer:
    """Answers with the number of messages, the longest chats without an end."""

    def __init__(self, cut: int = 99) -> None:
        self.cut = cut
        self.requests: list[ServerRequest] = []

    def answers(self, requests: Iterator[ServerRequest]) -> Iterator[ServerAnswer]:
        taken = list(requests)  # all of a round at once, as a server with many threads does
        self.requests += taken
        for request in reversed(taken):
            count = len(request.messages)
            yield ServerAnswer(request, f"w{count} w{count}", count < self.cut)


@pytest.mark.parametrize("rewriting", [False, True])
def test_a_server_is_asked_turn_by_turn(tokenizer: PreTrainedTokenizerFast, rewriting: bool) -> None:
    if rewriting:
        tokenizer.chat_template = REWRITING
    server: Any = EchoServer(cut=5)
    gate: Any = OpenGate()
    plan = replace(PLAN, answer_tokens=None)
    interviews = list(ServerInterviewer(server, tokenizer, [STOP], plan, gate, iter(given(5, turns=3))))
    assert len(interviews) == 5
    assert len({request.seed for request in server.requests}) == len(server.requests) == 15
    for interview in interviews:
        assert interview.answered == 3
        check(interview.examples[-1:], tokenizer)
        assert [example.about["turns"] for example in interview.examples] == ([1, 2, 3] if rewriting else [3])
        assert [example.about["finished"] for example in interview.examples] == [True] * 2 * rewriting + [False]


class RefusingServer(EchoServer):
    """Refuses what holds a poisoned text; one request after the other, in their order."""

    url = "http://x/v1"

    def __init__(self, poison: Sequence[str]) -> None:
        super().__init__()
        self.poison = set(poison)

    def answers(self, requests: Iterator[ServerRequest]) -> Iterator[ServerAnswer]:
        for request in requests:
            self.requests.append(request)
            if request.messages[-1]["content"] in self.poison:
                yield ServerAnswer(request, "", False, refusal="400: context too long")
            else:
                yield ServerAnswer(request, "w1 w2", True)


def asked_of(tokenizer: Any, server: Any, prompts: Any, before: Sequence[Conversation] = (), **plan: Any) -> Any:
    gate: Any = OpenGate()
    asking = replace(PLAN, **{"answer_tokens": None, **plan})
    interviewer = ServerInterviewer(server, tokenizer, [STOP], asking, gate, iter(prompts))
    for conversation in before:
        interviewer.remember(conversation)
    return interviewer


def test_a_turn_that_the_server_refuses_is_dropped_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    """A first turn that is refused leaves nothing, a later one what was answered before it."""
    prompts = given(9, turns=2)
    poison = [prompts[0][1].turns[0], prompts[4][1].turns[0], prompts[6][1].turns[1]]
    interviews = {held.number: held for held in asked_of(tokenizer, RefusingServer(poison), prompts)}
    assert sorted(interviews) == list(range(9))
    assert {number: held.answered for number, held in interviews.items()} == {
        **dict.fromkeys(range(9), 2),
        0: 0,
        4: 0,
        6: 1,
    }
    tally = Tally()
    for held in interviews.values():
        tally.merge(held.tally)
    assert tally.to_json()["answers"] == {
        "kept": 13, "dropped": {"server refused it": 3},
        "notes": {"the server refused first with 400: context too long": 1},
    }  # fmt: skip
    assert not any(held.refused for held in interviews.values())
    check([example for held in interviews.values() for example in held.examples], tokenizer)


@pytest.mark.parametrize(("count", "asked"), [(3, 3), (12, 8)])
@pytest.mark.parametrize("budget", [None, 60])
def test_a_server_that_refuses_everything_ends_the_run(
    tokenizer: PreTrainedTokenizerFast, count: int, asked: int, budget: int | None
) -> None:
    """Nothing of it is given out by then, so that nothing is done with when the server has been mended."""
    prompts = given(count, turns=1)
    server = RefusingServer([prompt.turns[0] for _, prompt in prompts])
    interviewer = asked_of(tokenizer, server, prompts, answer_tokens=budget)
    seen = []
    with pytest.raises(OSError, match=rf"http://x/v1 refused each of the first {asked} .*\(400: context too long\)"):
        seen += list(interviewer)
    assert not seen
    assert len(server.requests) == asked


def test_the_last_prompts_of_a_resumed_run_may_all_be_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = given(3, turns=1)
    before = Conversation([4, 1], [False, True], [], {"source": "here"})
    server = RefusingServer([prompt.turns[0] for _, prompt in prompts])
    assert len(list(asked_of(tokenizer, server, prompts, [before]))) == 3
    prompts = given(12, turns=1)
    server = RefusingServer([prompt.turns[0] for _, prompt in prompts])
    with pytest.raises(OSError, match="each of the first 8"):
        list(asked_of(tokenizer, server, prompts, [before]))
