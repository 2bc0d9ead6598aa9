"""Answers from a target that runs elsewhere, behind any server that speaks OpenAI's chat protocol (vLLM, SGLang).

Many requests at once, answers as they come; retries are the `openai` client's. Knows nothing of token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..release import install_command

# Bad request, content too large, unprocessable: what a server says of one request (a chat that its context does not
# hold, say) and would say of it again. Everything else is about the server.
_REFUSALS = (400, 413, 422)


@dataclass(frozen=True)
class ServerRequest:
    """A chat to be answered with at most `max_tokens` tokens, `temperature` 0 for greedy; `key` is the caller's."""

    key: Any
    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class ServerAnswer:
    """What came back: the `text`, and whether the target ended it itself (`finished`) or the limit did.

    `refusal` is what the server said instead where it refused this one request.
    """

    request: ServerRequest
    text: str
    finished: bool
    refusal: str | None = None


class Server:
    """A client of the server at `url`, such as "http://localhost:8000/v1".

    Args:
        model: its name there; the only one that the server offers, if not given.
        token: sent as the bearer token; most local servers want none.
        concurrency: requests under way at once.
        timeout: of one request, in seconds.
        retries: of a request that met a busy server, an error of its own or a broken connection, with growing pauses.

    Raises:
        ImportError: if the `openai` client is not installed.
        OSError: if the server cannot be reached, refuses, or does not speak the protocol.
        ValueError: if `url` is none, or the server offers several models and none was named.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        token: str | None = None,
        concurrency: int = 16,
        timeout: float = 600.0,
        retries: int = 5,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                f"A server is asked through the openai client, which is not installed: {install_command('train')}."
            ) from error
        _check_url(url)
        self.url, self.concurrency, self._errors = url, concurrency, openai
        self._client = openai.OpenAI(base_url=url, api_key=token or "none", timeout=timeout, max_retries=retries)
        self.model = model or self._only_model()

    def answers(self, requests: Iterator[ServerRequest]) -> Iterator[ServerAnswer]:
        """Answers in the order in which they come; no more than `concurrency` requests are taken ahead.

        Raises:
            OSError: if a request fails for good, other than by being refused itself; answers that are there by then
                have been yielded.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            under_way: set[Future[ServerAnswer]] = set()
            while True:
                while len(under_way) < self.concurrency and (request := next(requests, None)) is not None:
                    under_way.add(pool.submit(self._ask, request))
                if not under_way:
                    return
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                failed = [future for future in done if future.exception() is not None]
                yield from (future.result() for future in done if future not in failed)
                if failed:
                    for future in under_way:
                        future.cancel()
                    failed[0].result()

    def _ask(self, request: ServerRequest) -> ServerAnswer:
        messages: Any = request.messages
        try:
            reply = self._told(
                lambda: self._client.chat.completions.with_raw_response.create(
                    model=self.model,
                    messages=messages,
                    max_tokens=request.max_tokens,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    seed=request.seed % (1 << 31),  # what servers take
                )
            )
        except _Refused as refused:
            return ServerAnswer(request, "", finished=False, refusal=str(refused))
        try:
            choice = reply["choices"][0]
            content, finished = choice["message"].get("content"), choice.get("finish_reason") == "stop"
        except (LookupError, TypeError, AttributeError) as error:
            raise self._stranger(f"a chat without choice or message ({_quoted(json.dumps(reply), 80)})") from error
        if not isinstance(content, str | None):
            raise self._stranger("a chat whose content is no text")
        return ServerAnswer(request, content or "", finished)  # no content: all was thought, or nothing was said

    def _only_model(self) -> str:
        try:
            reply = self._told(self._client.models.with_raw_response.list)
        except _Refused as refused:
            raise OSError(f"{self.url} does not list its models ({refused}): name one with --server-model.") from None
        try:
            offered = [str(model["id"]) for model in reply["data"]]
        except (LookupError, TypeError) as error:
            raise self._stranger("a list of models without `data`") from error
        if len(offered) != 1:
            raise ValueError(
                f"{self.url} offers {len(offered)} models ({', '.join(offered) or 'none'}): name one with "
                "--server-model."
            )
        return offered[0]

    def _told(self, call: Any) -> Any:
        """The JSON that a call brought, or what went wrong in a sentence.

        It is read here and not by the client, which takes whatever comes for what it asked for.
        """
        try:
            text = call().http_response.text
        except (self._errors.AuthenticationError, self._errors.PermissionDeniedError) as error:
            raise OSError(
                f"{self.url} refuses the request ({error.status_code}): set its token in OPENAI_API_KEY."
            ) from error
        except self._errors.NotFoundError as error:
            raise OSError(
                f"{self.url} knows no such address or model ({_quoted(error.message)}): the URL ends in /v1 on most "
                "servers, and --server-model must be a name that it offers."
            ) from error
        except self._errors.APIConnectionError as error:
            raise OSError(f"{self.url} cannot be reached ({error}): is the server running there?") from error
        except self._errors.APIStatusError as error:
            said = f"{error.status_code}: {_quoted(error.message)}"
            if error.status_code in _REFUSALS:
                raise _Refused(said) from error
            raise OSError(f"{self.url} failed ({said}): see the server's own log.") from error
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._stranger(f"no JSON ({_quoted(text, 40)})") from error

    def _stranger(self, came: str) -> OSError:
        return OSError(
            f"{self.url} answered with {came}, which is not OpenAI's protocol: give the address of a chat server, "
            "which ends in /v1 on most of them."
        )


class _Refused(Exception):
    """What a server said of a request that it refused."""


def _quoted(text: str, longest: int = 200) -> str:
    """What a server said, on one line: some send whole pages."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def _check_url(url: str) -> None:
    """Raise `ValueError` if a server's address is none."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half a bracket
        whole = False
    if not whole:
        raise ValueError(f"{url!r} was given as a server: give its address, as in http://localhost:8000/v1.")
