"""Answers from a server: side by side, retried, refused in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.chat_server import ChatServer, serving

from hf_eagle3.data.server import Server, ServerRequest


def requests(count: int) -> Iterator[ServerRequest]:
    for number in range(count):
        yield ServerRequest(number, [{"role": "user", "content": f"question {number}"}], 32, 0.7, 0.9, seed=number)


def echo(body: dict[str, Any]) -> tuple[int, str, str]:
    return 200, f"answer to {body['messages'][-1]['content']}", "stop"


def test_answers_belong_to_their_requests_and_come_side_by_side() -> None:
    with serving(ChatServer(echo, delay=0.05)) as there:
        server = Server(there.url, concurrency=4)
        answers = list(server.answers(requests(12)))
    assert server.model == "tiny"
    assert {answer.request.key: answer.text for answer in answers} == {n: f"answer to question {n}" for n in range(12)}
    assert all(answer.finished for answer in answers)
    assert 1 < there.most_at_once <= 4
    asked = next(body for body in there.asked if body["seed"] == 3)
    assert (asked["max_tokens"], asked["temperature"], asked["top_p"], asked["model"]) == (32, 0.7, 0.9, "tiny")


def test_an_answer_that_met_the_limit_is_unfinished() -> None:
    with serving(ChatServer(lambda body: (200, "and so on", "length"))) as there:
        (answer,) = Server(there.url).answers(requests(1))
    assert not answer.finished


def test_a_busy_server_is_asked_again() -> None:
    failures = iter([503, 429])

    def moody(body: dict[str, Any]) -> tuple[int, str, str]:
        status = next(failures, 200)
        return status, "at last", "stop"

    with serving(ChatServer(moody)) as there:
        (answer,) = Server(there.url).answers(requests(1))
    assert answer.text == "at last"
    assert len(there.asked) == 3


def test_what_was_answered_before_a_failure_is_not_lost() -> None:
    def breaks(body: dict[str, Any]) -> tuple[int, str, str]:
        return (400, "context too long", "stop") if "question 5" in body["messages"][-1]["content"] else echo(body)

    with serving(ChatServer(breaks)) as there:
        answers = Server(there.url, concurrency=1).answers(requests(9))
        assert [next(answers).request.key for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(OSError, match=r"failed \(400: .*context too long"):
            next(answers)


def test_refusals_are_told() -> None:
    with serving(ChatServer(echo, token="secret")) as there:
        with pytest.raises(OSError, match=r"refuses the request \(401\).*OPENAI_API_KEY"):
            Server(there.url)
        assert list(Server(there.url, token="secret").answers(requests(1)))
        with pytest.raises(OSError, match="knows no such address"):
            Server(there.url.removesuffix("/v1") + "/v2", token="secret")
    with pytest.raises(OSError, match="cannot be reached"):
        Server(there.url, retries=0)


def test_one_of_several_models_must_be_named() -> None:
    with serving(ChatServer(echo, models=["small", "large"])) as there:
        with pytest.raises(ValueError, match="offers 2 models"):
            Server(there.url)
        list(Server(there.url, model="large").answers(requests(1)))
    assert there.asked[0]["model"] == "large"
