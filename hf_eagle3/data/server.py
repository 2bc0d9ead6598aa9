"""Answers from a target that runs elsewhere, behind any server that speaks OpenAI's chat protocol (vLLM, SGLang).

Many requests at once, answers as they come; retries are the `openai` client's. Knows nothing of token ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any


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
    """What came back: the `text`, and whether the target ended it itself (`finished`) or the limit did."""

    request: ServerRequest
    text: str
    finished: bool


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
        OSError: if the server cannot be reached, or refuses.
        ValueError: if it offers several models and none was named.
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
                "A server is asked through the openai client, which is not installed: pip install 'hf-eagle3[train]'."
            ) from error
        self.url, self.concurrency, self._errors = url, concurrency, openai
        self._client = openai.OpenAI(base_url=url, api_key=token or "none", timeout=timeout, max_retries=retries)
        self.model = model or self._only_model()

    def answers(self, requests: Iterator[ServerRequest]) -> Iterator[ServerAnswer]:
        """Answers in the order in which they come; no more than `concurrency` requests are taken ahead.

        Raises:
            OSError: if a request fails for good; answers that are there by then have been yielded.
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
        reply = self._told(
            lambda: self._client.chat.completions.create(
                model=self.model,
                messages=messages,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed % (1 << 31),  # what servers take
            )
        )
        if not reply.choices:
            raise OSError(f"{self.url} answered a chat with no choice at all: is it a chat server of {self.model}?")
        choice = reply.choices[0]
        return ServerAnswer(request, choice.message.content or "", choice.finish_reason == "stop")

    def _only_model(self) -> str:
        offered = [model.id for model in self._told(lambda: list(self._client.models.list()))]
        if len(offered) != 1:
            raise ValueError(
                f"{self.url} offers {len(offered)} models ({', '.join(offered) or 'none'}): name one with "
                "--server-model."
            )
        return offered[0]

    def _told(self, call: Any) -> Any:
        """The result of a call, or what went wrong in a sentence."""
        try:
            return call()
        except (self._errors.AuthenticationError, self._errors.PermissionDeniedError) as error:
            raise OSError(
                f"{self.url} refuses the request ({error.status_code}): set its token in OPENAI_API_KEY."
            ) from error
        except self._errors.NotFoundError as error:
            raise OSError(
                f"{self.url} knows no such address or model ({error.message}): the URL ends in /v1 on most servers, "
                "and --server-model must be a name that it offers."
            ) from error
        except self._errors.APIConnectionError as error:
            raise OSError(f"{self.url} cannot be reached ({error}): is the server running there?") from error
        except self._errors.APIStatusError as error:
            raise OSError(f"{self.url} failed ({error.status_code}: {error.message}).") from error
