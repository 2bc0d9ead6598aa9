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
        return (402, "no credit", "stop") if "question 5" in body["messages"][-1]["content"] else echo(body)

    with serving(ChatServer(breaks)) as there:
        answers = Server(there.url, concurrency=1).answers(requests(9))
        assert [next(answers).request.key for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(OSError, match=r"failed \(402: .*no credit"):
            next(answers)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_does_not_end_the_others(status: int) -> None:
    def poisoned(body: dict[str, Any]) -> tuple[int, str, str]:
        return (status, "context\ntoo long", "stop") if "question 5" in body["messages"][-1]["content"] else echo(body)

    with serving(ChatServer(poisoned)) as there:
        answers = {answer.request.key: answer for answer in Server(there.url, concurrency=2).answers(requests(9))}
    assert sorted(answers) == list(range(9))
    assert len(there.asked) == 9  # it is not asked again
    refusals = {key: answer.refusal for key, answer in answers.items() if answer.refusal is not None}
    assert list(refusals) == [5]
    assert refusals[5].startswith(f"{status}: ")
    assert "context too long" in refusals[5]


def chat(*choices: Any) -> dict[str, Any]:
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": list(choices)}


PAGE = b"<html>\n<title>Welcome</title>\n</html>"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (PAGE, "no JSON .*Welcome"), (b"{oops", "no JSON"), (b"[" * 100_000, "no JSON"), ([], "without choice"),
        (chat(), "without choice"), ({"object": "chat.completion"}, "without choice"), ("text", "without choice"),
        (chat({"finish_reason": "stop", "message": None}), "without choice"), (chat(None), "without choice"),
        (chat({"finish_reason": "stop", "message": {"content": ["a"]}}), "content is no text"),
    ],
)  # fmt: skip
def test_chats_of_another_protocol_are_told(sent: Any, told: str) -> None:
    with serving(ChatServer(echo, instead={"/chat/completions": sent})) as there:
        server = Server(there.url)
        with pytest.raises(OSError, match=rf"answered with .*{told}.*ends in /v1") as error:
            list(server.answers(requests(1)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sent", [PAGE, b"{oops", {"object": "list"}, {"data": None}, {"data": ["tiny"]}, []])
def test_models_of_another_protocol_are_told(sent: Any) -> None:
    there = ChatServer(echo, instead={"/models": sent})
    with serving(there), pytest.raises(OSError, match=r"answered with .*ends in /v1"):
        Server(there.url)


@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"reasoning_content": "Well,"}])
def test_no_content_is_an_empty_answer(message: dict[str, Any]) -> None:
    """A server that keeps thoughts apart sends null, or nothing, where all was thought."""
    choice = {"index": 0, "finish_reason": "length", "message": message}
    with serving(ChatServer(echo, instead={"/chat/completions": chat(choice)})) as there:
        (answer,) = Server(there.url).answers(requests(1))
    assert (answer.text, answer.finished, answer.refusal) == ("", False, None)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1"]
)
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(ValueError, match="give its address, as in http://localhost:8000/v1"):
        Server(url)


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
