"""Requests to the loopback Hub, answers to them, and what is to go wrong with them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .hub_repositories import Account, Refusal

API = r"/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
WEB = r"/(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+)"
REVISION = r"/(?P<revision>[^/]+)"


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = field(default=b"", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_file: bool = False  # its body is a file's content: what corrupting and cutting downloads are about


@dataclass
class Request:
    """One that arrived: `kind` is the route's name, `status` what was answered, 0 where an upload was cut."""

    kind: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in small letters
    status: int = 0
    body: bytes = field(default=b"", repr=False)
    account: Account | None = None

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    def writer(self, repo_id: str) -> Account:
        """Who asks, if that account may write to `repo_id`."""
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        if not self.account.may_write(repo_id):
            raise Refusal(403, f"Forbidden: {self.account.name} may not write to {repo_id} with this token")
        return self.account


@dataclass(frozen=True)
class Route:
    """One address: `kind` is what a request is called in `HubServer.requests` and in faults.

    `answer` is given the server, the request, the repository where the path names one, and the other pieces of the
    path; it returns a `Reply` or what JSON holds.
    """

    kind: str
    methods: str
    path: str
    answer: Callable[..., Any]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that it fits."""

    does: str  # "refuse", "cut" or "corrupt"
    times: int
    kinds: tuple[str, ...]
    methods: tuple[str, ...]
    path: str | None = None  # a file's path in its repository
    status: int = 503


def md5(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def json_reply(data: Any, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(data).encode(), {"Content-Type": "application/json", **named})


def file_reply(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    """All of `content`, the one range that was asked for, or nothing where the client has it already."""
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Reply(304, headers=headers)
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)|bytes=-(\d+)", request.headers.get("range", ""))
    if asked is None:
        return Reply(200, content, headers, is_file=True)
    first, last, ending = asked.groups()
    start = int(first) if ending is None else max(0, len(content) - int(ending))
    end = min(int(last) + 1, len(content)) if last else len(content)
    if start >= end:
        raise Refusal(416, "Requested range not satisfiable", Content_Range=f"bytes */{len(content)}")
    told = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    return Reply(206, content[start:end], told, is_file=True)
