"""What the Hub said, as one sentence: what was asked, what came back, and what to do about it.

Knows nothing of heads.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_LOG_IN = "log in with `hf auth login` or pass a `token`"
_SHOWN_REVISIONS = 8


def explained(error: BaseException, repo_id: str, revision: str | None = None, token: Any = None) -> OSError:
    """What `huggingface_hub` raised over `repo_id`, in a sentence; to be raised `from` it.

    Args:
        revision: the one that was asked for; None for the default branch.
        token: what was passed as `token`, which decides whether anybody is logged in.
    """
    if isinstance(error, HFValidationError):
        return OSError(
            f"{repo_id!r} is neither a folder here nor a repository id of the form owner/name; check its spelling."
        )
    if isinstance(error, HfHubHTTPError):
        return OSError(_answered(error, repo_id, revision, token))
    cause = next((one for one in _chain(error) if isinstance(one, (HTTPError, ConnectionError))), error)
    if isinstance(cause, HfHubHTTPError):  # an answer that the client took for "down": 5xx, 429
        return OSError(_answered(cause, repo_id, revision, token))
    if isinstance(cause, (HTTPError, ConnectionError)):
        return OSError(
            f"{constants.ENDPOINT} could not be reached for {repo_id} ({_first_line(cause)}): check the "
            "connection, or HF_ENDPOINT if another Hub is meant."
        )
    return OSError(f"{repo_id} could not be had from {constants.ENDPOINT} ({_first_line(error)}); try again.")


def _answered(error: HfHubHTTPError, repo_id: str, revision: str | None, token: Any) -> str:
    said = said_by(error)
    logged_in = bool(token) if isinstance(token, str) or token is False else get_token() is not None
    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, GatedRepoError):
        if logged_in:
            return f"{repo_id} is gated, and this account is not let in ({said}): request access at {page}."
        return f"{repo_id} is gated ({said}): request access at {page}, and {_LOG_IN}."
    if isinstance(error, RepositoryNotFoundError):
        seen = "to this account" if logged_in else "to a visitor without a token"
        another = "pass a `token` that may read it" if logged_in else _LOG_IN
        return (
            f"{repo_id} is no folder here, and the Hub shows no such repository {seen} ({said}): check the name, or, "
            f"if it is private, {another}."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {str(revision)!r} ({said}): {_revisions(repo_id, token)}."
    status = error.response.status_code
    if status == 401:
        return f"The Hub wants to know who asks for {repo_id} ({said}): {_LOG_IN} that is valid."
    if status == 403:
        return f"The Hub does not allow this account to do that to {repo_id} ({said}): use a token that may."
    if status == 429 or status >= 500:
        return f"The Hub is not able to serve {repo_id} just now ({said}): try again later."
    return f"The Hub refused what was asked of {repo_id} ({said}): check the request, or try again."


def said_by(error: HfHubHTTPError) -> str:
    """Status and message of an answer: `403: Forbidden`."""
    message = error.server_message or error.response.reason_phrase or "no reason given"
    return f"{error.response.status_code}: {_one_line(message)}"


def _revisions(repo_id: str, token: Any) -> str:
    """The revisions that there are, as far as the Hub tells."""
    try:
        refs = HfApi(token=token).list_repo_refs(repo_id)
    except (OSError, HTTPError):
        return "name one of its branches or tags, or a commit"
    names = [one.name for one in (*refs.branches, *refs.tags)]
    more = "" if len(names) <= _SHOWN_REVISIONS else f" and {len(names) - _SHOWN_REVISIONS} more"
    return f"it has {', '.join(names[:_SHOWN_REVISIONS])}{more}, or name a commit"


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and those that it was raised from."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


__all__ = ["explained", "said_by"]
