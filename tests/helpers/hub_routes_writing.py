"""Writing: what goes where, large files first, then one commit."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from .hub_repositories import PULL_REQUESTS, Commit, Entry, Refusal, Repository
from .hub_requests import API, REVISION, WEB, Reply, Request, Route, json_reply, md5
from .hub_routes_storage import store

if TYPE_CHECKING:
    from .hub_server import HubServer


def _onto(hub: HubServer, request: Request, repository: Repository, revision: str) -> Commit:
    """The commit to build on. A pull request may come from anybody who is logged in and sees the repository."""
    if "create_pr" not in request.query:
        request.writer(repository.id)
    elif revision != "main":
        raise Refusal(400, "A pull request is opened against the main branch")
    elif request.account is None:
        raise Refusal(401, "Invalid username or password.")
    if revision not in repository.branches:
        raise Refusal(404, f"Invalid rev id: {revision} is not a branch", "RevisionNotFound")
    return repository.branches[revision]


def preupload(hub: HubServer, request: Request, repository: Repository, revision: str) -> dict[str, Any]:
    commit = _onto(hub, request, repository, revision)
    told = []
    for file in request.json()["files"]:
        present = commit.entries.get(file["path"])
        mode = "lfs" if hub.is_large(file["path"], file["size"]) else "regular"
        oid = None if present is None else present.sha256 if present.large else present.blob_id
        told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": told, "commitOid": commit.oid}


def batch(hub: HubServer, request: Request, repository: Repository) -> Reply:
    if request.account is None:
        raise Refusal(401, "Invalid username or password.")
    told = request.json()
    in_parts = "multipart" in told.get("transfers", []) and any(
        one["size"] > hub.part_bytes for one in told["objects"]
    )
    objects = [_upload_of(hub, repository, one["oid"], one["size"], in_parts) for one in told["objects"]]
    reply = {"transfer": "multipart" if in_parts else "basic", "objects": objects}
    return json_reply(reply, Content_Type="application/vnd.git-lfs+json")


def _upload_of(hub: HubServer, repository: Repository, oid: str, size: int, in_parts: bool) -> dict[str, Any]:
    told = {"oid": oid, "size": size, "authenticated": True}
    if oid in hub.objects:
        return told
    where = f"{hub.storage_url}/objects/{oid}"
    upload: dict[str, Any] = {"href": where}
    if in_parts and size > hub.part_bytes:
        count = -(-size // hub.part_bytes)
        parts = {f"{part:05d}": f"{where}/{part}" for part in range(1, count + 1)}
        upload = {"href": f"{hub.url}/api/complete_multipart/{oid}"}
        upload["header"] = {"chunk_size": str(hub.part_bytes), **parts}
    verify = {"href": f"{hub.url}/{repository.web_path}.git/info/lfs/objects/verify"}
    return {**told, "actions": {"upload": upload, "verify": verify}}


def complete(hub: HubServer, request: Request, oid: str) -> dict[str, Any]:
    told = request.json()["parts"]
    parts = [hub.parts.pop((oid, one["partNumber"]), b"") for one in told]
    if [md5(part) for part in parts] != [one["etag"] for one in told]:
        raise Refusal(400, "InvalidPart: a part is missing, or is not the one that was sent")
    store(hub, oid, b"".join(parts))
    return {"location": f"{hub.storage_url}/objects/{oid}"}


def verify(hub: HubServer, request: Request, repository: Repository) -> dict[str, Any]:
    told = request.json()
    if len(hub.objects.get(told["oid"], b"")) != told["size"]:
        raise Refusal(400, f"The object {told['oid']} is not here with {told['size']} bytes: upload it first")
    return {}


def commit(hub: HubServer, request: Request, repository: Repository, revision: str) -> dict[str, Any]:
    parent = _onto(hub, request, repository, revision)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if not parent.oid.startswith(header.get("parentCommit", "")):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    changes: dict[str, Entry | None] = {}
    for line in lines:
        changes.update(_changes(hub, parent, line["key"], line["value"]))
    page = f"{hub.url}/{repository.web_path}"
    opened = {}
    if "create_pr" in request.query:
        number = 1 + sum(name.startswith(PULL_REQUESTS) for name in repository.branches)
        revision = f"{PULL_REQUESTS}{number}"
        repository.branches[revision] = parent
        opened = {"pullRequestUrl": f"{page}/discussions/{number}"}
    author = request.account.name if request.account else ""
    made = repository.commit(changes, header["summary"], header.get("description", ""), author, revision)
    told = {"success": True, "commitOid": made.oid, "commitUrl": f"{page}/commit/{made.oid}", "hookOutput": ""}
    return {**told, **opened}


def _changes(hub: HubServer, parent: Commit, key: str, value: dict[str, Any]) -> dict[str, Entry | None]:
    """What one line of a commit's body does."""
    if key == "header":
        return {}
    path = value["path"].rstrip("/")
    if key == "file":
        return {path: Entry(base64.b64decode(value["content"]), False)}
    if key == "lfsFile":
        if value["oid"] not in hub.objects:
            raise Refusal(400, f"An LFS pointer pointed to a file that does not exist. Offending file: {path}")
        return {path: Entry(hub.objects[value["oid"]], True)}
    if key == "deletedFile" and path in parent.entries:
        return {path: None}
    inside = [one for one in parent.entries if one.startswith(f"{path}/")]
    if key == "deletedFolder" and inside:
        return dict.fromkeys(inside)
    if key in ("deletedFile", "deletedFolder"):
        raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    raise Refusal(400, f"A commit's lines are files and deletions here, not {key}")


def xet(hub: HubServer, request: Request, repository: Repository, **_: str) -> None:
    raise Refusal(404, "This server has no Xet: set HF_HUB_DISABLE_XET=1, and files go through LFS")


ROUTES = [
    Route("preupload", "POST", API + rf"/preupload{REVISION}", preupload),
    Route("commit", "POST", API + rf"/commit{REVISION}", commit),
    Route("batch", "POST", WEB + r"\.git/info/lfs/objects/batch", batch),
    Route("verify", "POST", WEB + r"\.git/info/lfs/objects/verify", verify),
    Route("complete", "POST", r"/api/complete_multipart/(?P<oid>[0-9a-f]{64})", complete),
    Route("xet", "GET", API + r"/xet-(?:read|write)-token/.*", xet),
]
