"""A loopback server that speaks the Hugging Face Hub's protocol to the real huggingface_hub client.

Two ports, as there are two sides in the world: the Hub itself (`url`), and the storage of large files (`storage_url`),
to which the Hub redirects downloads and hands out upload addresses. The storage refuses a request that carries a
token, as S3 refuses a signed address with one, so a client that leaks its token is found out.

With hf_xet installed the client uploads by Xet without asking whether the server has it, so both switch Xet off; it
then takes LFS. The Hub says 401 for what an unknown visitor may not see, and the client reads that as "not found" only
from an https address: here `X-Error-Code` says it. Names have two parts (`owner/model`); a pull request is a
branch `refs/pr/<number>`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from . import hub_routes_accounts, hub_routes_listings, hub_routes_reading, hub_routes_storage, hub_routes_writing
from .hub_client import SWITCHES
from .hub_listener import Listener
from .hub_repositories import ATTRIBUTES, LARGE, Account, Entry, Refusal, Repository
from .hub_requests import Fault, Reply, Request, Route, json_reply

ROUTES = [
    *hub_routes_accounts.ROUTES,
    *hub_routes_listings.ROUTES,
    *hub_routes_reading.ROUTES,
    *hub_routes_writing.ROUTES,
]


class HubServer:
    """The Hub on the loopback, with everything in memory: `with HubServer() as hub: HfApi(hub.url, token="hf_owner")`.

    Files are large, and go through LFS, by the endings that the Hub has in a new `.gitattributes` or above
    `large_above` bytes; above `part_bytes` they are uploaded in parts of that size. `requests` keeps what arrived, by
    kind: see the `hub_routes_*` modules. What is listed in `faults` goes wrong; `refuse`, `cut_uploads`,
    `cut_downloads` and `corrupt` put it there.
    """

    def __init__(
        self,
        accounts: Iterable[Account] = (Account("owner", "hf_owner"), Account("guest", "hf_guest")),
        large_above: int = 10 * 2**20,
        part_bytes: int = 2**30,
        page_entries: int = 1000,
    ) -> None:
        self.accounts = {account.token: account for account in accounts}
        self.large_above = large_above
        self.part_bytes = part_bytes
        self.page_entries = page_entries
        self.card_errors: list[str] = []  # what is wrong with the next model card's metadata
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.url = ""
        self.storage_url = ""
        self._running: list[tuple[Listener, threading.Thread]] = []

    def __enter__(self) -> HubServer:
        self.url = self._listen(ROUTES, "127.0.0.1")
        self.storage_url = self._listen(
            hub_routes_storage.ROUTES, "localhost"
        )  # another host by name: 1.x looks at that alone
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From here on nobody answers: for the client the network is down."""
        while self._running:
            listener, thread = self._running.pop()
            listener.shutdown()
            listener.hang_up()
            listener.server_close()
            thread.join()

    def _listen(self, routes: list[Route], host: str) -> str:
        listener = Listener(self, routes)
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self._running.append((listener, thread))
        return f"http://{host}:{listener.server_port}"

    # What a test asks and sets.

    def repository(self, repo_id: str, kind: str = "model") -> Repository:
        return self.repositories[kind, repo_id]

    def add_repository(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, kind: str = "model", **options: Any
    ) -> Repository:
        """As after a creation, with `files` in a second commit; options are `private`, `gated` and `granted`."""
        made = Repository(kind, repo_id, **options)
        made.commit({".gitattributes": Entry(ATTRIBUTES.encode(), False)}, "initial commit")
        if files:
            made.commit({path: self.entry(path, content) for path, content in files.items()}, "files")
        self.repositories[kind, repo_id] = made
        return made

    def entry(self, path: str, content: bytes) -> Entry:
        made = Entry(content, self.is_large(path, len(content)))
        if made.large:
            self.objects[made.sha256] = content
        return made

    def is_large(self, path: str, size: int) -> bool:
        return size > 0 and (size > self.large_above or path.endswith(tuple(f".{ending}" for ending in LARGE)))

    def count(self, method: str | None = None, *kinds: str) -> int:
        """Requests so far, of one method and of some kinds."""
        seen = list(self.requests)
        return sum((method in (None, one.method)) and (not kinds or one.kind in kinds) for one in seen)

    @property
    def downloads(self) -> int:
        """How many answers so far held a file's content, or a part of it."""
        wanted = [one for one in self.requests if one.method == "GET" and one.kind in ("resolve", "object")]
        return sum(one.status in (200, 206) for one in wanted)

    def refuse(self, *kinds: str, times: int = 1, status: int = 503, methods: tuple[str, ...] = ()) -> None:
        """The next `times` requests of these kinds are answered with `status` and nothing else."""
        self.faults.append(Fault("refuse", times, kinds, methods, status=status))

    def cut_uploads(self, times: int = 1) -> None:
        """The connection ends after half of a large file (or of a part of it) has arrived, `times` times."""
        self.faults.append(Fault("cut", times, ("object",), ("PUT",)))

    def cut_downloads(self, times: int = 1, path: str | None = None) -> None:
        """The connection ends after half of what is left of a file has been sent, `times` times."""
        self.faults.append(Fault("cut", times, ("object", "resolve"), ("GET",), path))

    def corrupt(self, path: str, times: int = 1) -> None:
        """The byte in the middle of what is sent of `path` is changed, `times` times: same size, same headers."""
        self.faults.append(Fault("corrupt", times, ("object", "resolve"), ("GET",), path))

    def environment(self, home: Path | str, token: str | None = None) -> dict[str, str]:
        """The whole environment of a subprocess whose Hub is this one, its cache below `home`, no other token."""
        kept = {name: value for name, value in os.environ.items() if not re.match(r"HF_|HUGGING|TRANSFORMERS_", name)}
        beside = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), **({"HF_TOKEN": token} if token else {})}
        return {**kept, **beside, **SWITCHES}

    # What the handler threads ask.

    def take_fault(self, request: Request, does: tuple[str, ...], path: str | None) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                fits_kind = not fault.kinds or request.kind in fault.kinds
                fits_method = not fault.methods or request.method in fault.methods
                if fault.does in does and fits_kind and fits_method and fault.path in (None, path):
                    fault.times -= 1
                    self.faults = [one for one in self.faults if one.times > 0]
                    return fault
        return None

    def answer(self, route: Route, request: Request, groups: dict[str, str | None]) -> Reply:
        """What the route answers, given the pieces of the path."""
        with self.lock:
            if request.kind == "object":
                if "authorization" in request.headers:
                    raise Refusal(400, "Only one auth mechanism allowed: a signed address takes no token")
            else:
                request.account = self._account(request.headers.get("authorization"))
            wanted = {name: unquote(value) for name, value in groups.items() if value is not None}
            if "name" in groups:
                wanted["kind"] = wanted.get("kind", "model")
                repository = self.readable(request, wanted.pop("kind"), wanted.pop("name"))
                reply = route.answer(self, request, repository, **wanted)
            else:
                reply = route.answer(self, request, **wanted)
        return reply if isinstance(reply, Reply) else json_reply(reply)

    def _account(self, authorization: str | None) -> Account | None:
        if authorization is None:
            return None
        account = self.accounts.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def readable(self, request: Request, kind: str, name: str) -> Repository:
        found = self.repositories.get((kind, name))
        if found is None or (found.private and not (request.account and request.account.owns(name))):
            if request.account is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return found
