"""A loopback server that speaks the Hugging Face Hub's protocol to the real huggingface_hub client.

Two ports, as there are two sides in the world: the Hub itself (`url`), and the storage of large files (`storage_url`),
to which the Hub redirects downloads and hands out upload addresses. The storage refuses a request that carries a
token, as S3 refuses a signed address with one, so a client that leaks its token is found out.

With hf_xet installed the client uploads by Xet without asking whether the server has it, so both switch Xet off; it
then takes LFS. The Hub says 401 for what an unknown visitor may not see, and the client reads that as "not found" only
from an https address: here `X-Error-Code` says it. Names have two parts (`owner/model`); there are no pull requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .hub_client import SWITCHES
from .hub_repositories import ATTRIBUTES, EPOCH, LARGE, Account, Commit, Entry, Refusal, Repository

_API = r"/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
_WEB = r"/(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+)"
_REVISION = r"/(?P<revision>[^/]+)"
# What a request is called in `HubServer.requests` and in faults, and the method `_<that>` that answers it.
_ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("agents", "GET", r"/api/agent-harnesses"),
    ("card", "POST", r"/api/validate-yaml"),
    ("create", "POST", r"/api/repos/create"),
    ("delete", "DELETE", r"/api/repos/delete"),
    ("settings", "PUT", _API + r"/settings"),
    ("info", "GET", _API + rf"(?:/revision{_REVISION})?"),
    ("tree", "GET", _API + rf"/tree{_REVISION}(?:/(?P<path>.+))?"),
    ("paths", "POST", _API + rf"/paths-info{_REVISION}"),
    ("commits", "GET", _API + rf"/commits{_REVISION}"),
    ("refs", "GET", _API + r"/refs"),
    ("branch", "POST|DELETE", _API + r"/branch/(?P<branch>[^/]+)"),
    ("tag", "POST|DELETE", _API + r"/tag/(?P<tag>[^/]+)"),
    ("preupload", "POST", _API + rf"/preupload{_REVISION}"),
    ("commit", "POST", _API + rf"/commit{_REVISION}"),
    ("batch", "POST", _WEB + r"\.git/info/lfs/objects/batch"),
    ("verify", "POST", _WEB + r"\.git/info/lfs/objects/verify"),
    ("complete", "POST", r"/api/complete_multipart/(?P<oid>[0-9a-f]{64})"),
    ("xet", "GET", _API + r"/xet-(?:read|write)-token/.*"),
    ("resolve", "GET|HEAD", _WEB + rf"/resolve{_REVISION}/(?P<path>.+)"),
]
_STORAGE_ROUTES = [("object", "GET|HEAD|PUT", r"/objects/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?")]


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


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that it fits."""

    does: str  # "refuse", "cut" or "corrupt"
    times: int
    kinds: tuple[str, ...]
    methods: tuple[str, ...]
    path: str | None = None  # a file's path in its repository
    status: int = 503


class HubServer:
    """The Hub on the loopback, with everything in memory: `with HubServer() as hub: HfApi(hub.url, token="hf_owner")`.

    Files are large, and go through LFS, by the endings that the Hub has in a new `.gitattributes` or above
    `large_above` bytes; above `part_bytes` they are uploaded in parts of that size. `requests` keeps what arrived, by
    kind: see `_ROUTES`. What is listed in `faults` goes wrong; `refuse`, `cut_uploads`, `cut_downloads` and `corrupt`
    put it there.
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
        self._running: list[tuple[_Listener, threading.Thread]] = []

    def __enter__(self) -> HubServer:
        self.url = self._listen(_ROUTES, "127.0.0.1")
        self.storage_url = self._listen(_STORAGE_ROUTES, "localhost")  # another host by name: 1.x looks at that alone
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

    def _listen(self, routes: list[tuple[str, str, str]], host: str) -> str:
        listener = _Listener(self, routes)
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

    def answer(self, request: Request, groups: dict[str, str | None]) -> Reply:
        """The reply of `_<kind>`, which is given the pieces of the path, and returns a `Reply` or what JSON holds."""
        with self.lock:
            if request.kind == "object":
                if "authorization" in request.headers:
                    raise Refusal(400, "Only one auth mechanism allowed: a signed address takes no token")
            else:
                request.account = self._account(request.headers.get("authorization"))
            wanted = {name: unquote(value) for name, value in groups.items() if value is not None}
            if "name" in groups:
                wanted["kind"] = wanted.get("kind", "model")
                repository = self._readable(request, wanted.pop("kind"), wanted.pop("name"))
                reply = getattr(self, f"_{request.kind}")(request, repository, **wanted)
            else:
                reply = getattr(self, f"_{request.kind}")(request, **wanted)
        return reply if isinstance(reply, Reply) else _json(reply)

    def _account(self, authorization: str | None) -> Account | None:
        if authorization is None:
            return None
        account = self.accounts.get(authorization.removeprefix("Bearer "))
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account

    def _readable(self, request: Request, kind: str, name: str) -> Repository:
        found = self.repositories.get((kind, name))
        if found is None or (found.private and not (request.account and request.account.owns(name))):
            if request.account is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return found

    def _whoami(self, request: Request) -> dict[str, Any]:
        account = request.account
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write" if account.writes else "read"}
        organisations = [{"type": "org", "name": name, "fullname": name} for name in account.organisations]
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "name": account.name, "fullname": account.name, "orgs": organisations, "auth": auth}

    def _agents(self, request: Request) -> dict[str, Any]:
        return {"standardEnvVars": [], "harnesses": {}}

    def _card(self, request: Request) -> Reply:
        errors, self.card_errors = [{"message": message} for message in self.card_errors], []
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    # Repositories.

    def _named(self, request: Request) -> tuple[str, str]:
        told = request.json()
        if request.account is None:
            raise Refusal(401, "Invalid username or password.")
        repo_id = f"{told.get('organization') or request.account.name}/{told['name']}"
        return told.get("type") or "model", repo_id

    def _create(self, request: Request) -> Reply:
        told = request.json()
        kind, repo_id = self._named(request)
        if not (request.account and request.account.may_write(repo_id)):
            where = repo_id.split("/")[0]
            raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{where}"')
        address = f"{self.url}/{Repository(kind, repo_id).web_path}"
        if (kind, repo_id) in self.repositories:
            return _json({"error": f"You already created this {kind} repo", "url": address}, 409)
        private = told.get("visibility") == "private" or bool(told.get("private"))
        self.add_repository(repo_id, kind=kind, private=private)
        return _json({"url": address, "name": repo_id, "id": repo_id, "private": private})

    def _delete(self, request: Request) -> dict[str, Any]:
        kind, repo_id = self._named(request)
        self._readable(request, kind, repo_id)
        request.writer(repo_id)
        del self.repositories[kind, repo_id]
        return {}

    def _settings(self, request: Request, repository: Repository) -> dict[str, Any]:
        request.writer(repository.id)
        told = request.json()
        repository.gated = told.get("gated", repository.gated)
        if "visibility" in told or "private" in told:
            repository.private = told.get("visibility") == "private" or bool(told.get("private"))
        return {"private": repository.private, "gated": repository.gated}

    def _info(self, request: Request, repository: Repository, revision: str = "main") -> dict[str, Any]:
        commit = repository.at(revision)
        with_blobs = "blobs" in request.query
        return {
            "_id": hashlib.sha1(repository.id.encode()).hexdigest()[:24],
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.id.split("/")[0],
            "sha": commit.oid,
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "createdAt": EPOCH.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "lastModified": commit.date,
            "siblings": [entry.sibling(path, with_blobs) for path, entry in sorted(commit.entries.items())],
        }

    def _tree(self, request: Request, repository: Repository, revision: str, path: str = "") -> Reply:
        commit = repository.at(revision)
        listed = commit.listed(path, request.query.get("recursive") == ["true"])
        if path and not listed:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound", X_Repo_Commit=commit.oid)
        start = int(request.query.get("cursor", ["0"])[0])
        end = start + self.page_entries
        if end >= len(listed):
            return _json(listed[start:])
        rest = "&".join(f"{name}={values[0]}" for name, values in request.query.items() if name != "cursor")
        following = f'<{self.url}{request.path}?{rest}&cursor={end}>; rel="next"'
        return _json(listed[start:end], Link=following)

    def _paths(self, request: Request, repository: Repository, revision: str) -> list[dict[str, Any]]:
        wanted = parse_qs(request.body.decode()).get("paths", [])
        return [one for one in repository.at(revision).listed("", recursive=True) if one["path"] in wanted]

    def _commits(self, request: Request, repository: Repository, revision: str) -> list[dict[str, Any]]:
        commit: Commit | None = repository.at(revision)
        told = []
        while commit is not None:
            texts = {"title": commit.title, "message": commit.message}
            told.append({"id": commit.oid, **texts, "authors": [{"user": commit.author}], "date": commit.date})
            commit = commit.parent
        return told

    # Branches and tags.

    def _refs(self, request: Request, repository: Repository) -> dict[str, Any]:
        def told(where: str, named: dict[str, Commit]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"{where}/{name}", "targetCommit": at.oid} for name, at in named.items()]

        branches, tags = told("refs/heads", repository.branches), told("refs/tags", repository.tags)
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    def _branch(self, request: Request, repository: Repository, branch: str) -> dict[str, Any]:
        request.writer(repository.id)
        if request.method == "POST":
            if branch in repository.branches:
                raise Refusal(409, f"Reference already exists: refs/heads/{branch}")
            repository.branches[branch] = repository.at(request.json().get("startingPoint") or "main")
        elif branch == "main":
            raise Refusal(403, "The main branch cannot be deleted")
        elif repository.branches.pop(branch, None) is None:
            raise Refusal(404, f"Reference does not exist: refs/heads/{branch}", "RevisionNotFound")
        return {}

    def _tag(self, request: Request, repository: Repository, tag: str) -> dict[str, Any]:
        """Made with POST on the revision to be tagged, and taken away with DELETE on the tag itself."""
        request.writer(repository.id)
        if request.method == "POST":
            made = request.json()["tag"]
            if made in repository.tags:
                raise Refusal(409, f"Tag reference exists already: {made}")
            repository.tags[made] = repository.at(tag)
        elif repository.tags.pop(tag, None) is None:
            raise Refusal(404, f"Tag does not exist: {tag}", "RevisionNotFound")
        return {}

    # Writing: what goes where, large files first, then one commit.

    def _onto(self, request: Request, repository: Repository, revision: str) -> Commit:
        request.writer(repository.id)
        if "create_pr" in request.query:
            raise Refusal(400, "This server keeps no pull requests: commit to a branch, without create_pr")
        if revision not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {revision} is not a branch", "RevisionNotFound")
        return repository.branches[revision]

    def _preupload(self, request: Request, repository: Repository, revision: str) -> dict[str, Any]:
        commit = self._onto(request, repository, revision)
        told = []
        for file in request.json()["files"]:
            present = commit.entries.get(file["path"])
            mode = "lfs" if self.is_large(file["path"], file["size"]) else "regular"
            oid = None if present is None else present.sha256 if present.large else present.blob_id
            told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": told, "commitOid": commit.oid}

    def _batch(self, request: Request, repository: Repository) -> Reply:
        request.writer(repository.id)
        told = request.json()
        in_parts = "multipart" in told.get("transfers", []) and any(
            one["size"] > self.part_bytes for one in told["objects"]
        )
        objects = [self._upload_of(repository, one["oid"], one["size"], in_parts) for one in told["objects"]]
        reply = {"transfer": "multipart" if in_parts else "basic", "objects": objects}
        return _json(reply, Content_Type="application/vnd.git-lfs+json")

    def _upload_of(self, repository: Repository, oid: str, size: int, in_parts: bool) -> dict[str, Any]:
        told = {"oid": oid, "size": size, "authenticated": True}
        if oid in self.objects:
            return told
        where = f"{self.storage_url}/objects/{oid}"
        upload: dict[str, Any] = {"href": where}
        if in_parts and size > self.part_bytes:
            count = -(-size // self.part_bytes)
            parts = {f"{part:05d}": f"{where}/{part}" for part in range(1, count + 1)}
            upload = {"href": f"{self.url}/api/complete_multipart/{oid}"}
            upload["header"] = {"chunk_size": str(self.part_bytes), **parts}
        verify = {"href": f"{self.url}/{repository.web_path}.git/info/lfs/objects/verify"}
        return {**told, "actions": {"upload": upload, "verify": verify}}

    def _complete(self, request: Request, oid: str) -> dict[str, Any]:
        told = request.json()["parts"]
        parts = [self.parts.pop((oid, one["partNumber"]), b"") for one in told]
        if [_md5(part) for part in parts] != [one["etag"] for one in told]:
            raise Refusal(400, "InvalidPart: a part is missing, or is not the one that was sent")
        self._store(oid, b"".join(parts))
        return {"location": f"{self.storage_url}/objects/{oid}"}

    def _verify(self, request: Request, repository: Repository) -> dict[str, Any]:
        told = request.json()
        if len(self.objects.get(told["oid"], b"")) != told["size"]:
            raise Refusal(400, f"The object {told['oid']} is not here with {told['size']} bytes: upload it first")
        return {}

    def _store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, f"BadDigest: what was sent is not the object {oid}")
        self.objects[oid] = content

    def _commit(self, request: Request, repository: Repository, revision: str) -> dict[str, Any]:
        parent = self._onto(request, repository, revision)
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if not parent.oid.startswith(header.get("parentCommit", "")):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        changes: dict[str, Entry | None] = {}
        for line in lines:
            changes.update(self._changes(parent, line["key"], line["value"]))
        author = request.writer(repository.id).name
        made = repository.commit(changes, header["summary"], header.get("description", ""), author, revision)
        address = f"{self.url}/{repository.web_path}/commit/{made.oid}"
        return {"success": True, "commitOid": made.oid, "commitUrl": address, "hookOutput": ""}

    def _changes(self, parent: Commit, key: str, value: dict[str, Any]) -> dict[str, Entry | None]:
        """What one line of a commit's body does."""
        if key == "header":
            return {}
        path = value["path"].rstrip("/")
        if key == "file":
            return {path: Entry(base64.b64decode(value["content"]), False)}
        if key == "lfsFile":
            if value["oid"] not in self.objects:
                raise Refusal(400, f"An LFS pointer pointed to a file that does not exist. Offending file: {path}")
            return {path: Entry(self.objects[value["oid"]], True)}
        if key == "deletedFile" and path in parent.entries:
            return {path: None}
        inside = [one for one in parent.entries if one.startswith(f"{path}/")]
        if key == "deletedFolder" and inside:
            return dict.fromkeys(inside)
        if key in ("deletedFile", "deletedFolder"):
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        raise Refusal(400, f"A commit's lines are files and deletions here, not {key}")

    def _xet(self, request: Request, repository: Repository, **_: str) -> None:
        raise Refusal(404, "This server has no Xet: set HF_HUB_DISABLE_XET=1, and files go through LFS")

    # Reading.

    def _resolve(self, request: Request, repository: Repository, revision: str, path: str) -> Reply:
        self._check_granted(request, repository)
        commit = repository.at(revision)
        entry = commit.entries.get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        told = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not entry.large:
            return _file(request, entry.content, {**told, "ETag": f'"{entry.blob_id}"'})
        where = f"{self.storage_url}/objects/{entry.sha256}?filename={quote(path)}"
        linked = {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(len(entry.content)), "Location": where}
        unchanged = request.headers.get("if-none-match") == linked["X-Linked-ETag"]
        return Reply(304 if unchanged else 302, headers={**told, **linked})

    def _check_granted(self, request: Request, repository: Repository) -> None:
        if not repository.gated:
            return
        restricted = f"Access to {repository.kind} {repository.id} is restricted"
        if request.account is None:
            raise Refusal(401, f"{restricted}. You must have access to it and be authenticated.", "GatedRepo")
        if not request.account.owns(repository.id) and request.account.name not in repository.granted:
            raise Refusal(403, f"{restricted} and you are not in the authorized list.", "GatedRepo")

    def _object(self, request: Request, oid: str, part: str | None = None) -> Reply:
        if request.method == "PUT":
            if part is None:
                self._store(oid, request.body)
            else:
                self.parts[oid, int(part)] = request.body
            return Reply(headers={"ETag": _md5(request.body)})
        if oid not in self.objects:
            raise Refusal(404, f"NoSuchKey: {oid}")
        name = request.query.get("filename", [oid])[0].rsplit("/")[-1]
        told = {"ETag": _md5(self.objects[oid]), "Accept-Ranges": "bytes"}
        told["Content-Disposition"] = f'inline; filename="{name}";'
        return _file(request, self.objects[oid], told)


def _md5(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _json(data: Any, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(data).encode(), {"Content-Type": "application/json", **named})


def _file(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
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


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, routes: list[tuple[str, str, str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.routes = [(kind, methods.split("|"), re.compile(path)) for kind, methods, path in routes]
        self.connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Ends the connections that clients keep open for their next request."""
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client was first
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave; anything else is a fault here
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self) -> None:
        hub, address = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request("other", self.command, address.path, parse_qs(address.query), headers)
        groups = self.route(request)
        hub.requests.append(request)
        path = unquote(groups.get("path") or request.query.get("filename", [""])[0])
        fault = hub.take_fault(request, ("refuse", "cut") if self.command == "PUT" else ("refuse",), path)
        if fault is not None and fault.does == "cut":
            self.body(share=2)
            self.hang_up()
            return
        request.body = self.body()
        try:
            if fault is not None:
                raise Refusal(fault.status, "This server is told to refuse")
            if request.kind == "other":
                raise Refusal(404, f"This server has no {request.method} {request.path}")
            reply = hub.answer(request, groups)
        except Refusal as refusal:
            reply = _json({"error": refusal.message}, refusal.status)
            reply = Reply(reply.status, reply.body, {**reply.headers, **refusal.headers})
        fault = hub.take_fault(request, ("cut", "corrupt"), path) if reply.is_file else None
        self.send(request, reply, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def route(self, request: Request) -> dict[str, str | None]:
        for kind, methods, path in self.server.routes:
            found = path.fullmatch(request.path)
            if found is not None and request.method in methods:
                request.kind = kind
                return found.groupdict()
        return {}

    def body(self, share: int = 1) -> bytes:
        """What the client sends: all of it, or a `share`-th where its length is known."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")) // share)
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, request: Request, reply: Reply, fault: Fault | None) -> None:
        content = reply.body
        if fault is not None and fault.does == "corrupt":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        request.status = reply.status
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status != 304:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = fault is not None and fault.does == "cut"
        if request.method != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Quiet."""
