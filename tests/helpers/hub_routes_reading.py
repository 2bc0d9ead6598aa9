"""Reading: a small file itself, a large one's place in the storage, to those who may."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from .hub_repositories import Refusal, Repository
from .hub_requests import REVISION, WEB, Reply, Request, Route, file_reply

if TYPE_CHECKING:
    from .hub_server import HubServer


def resolve(hub: HubServer, request: Request, repository: Repository, revision: str, path: str) -> Reply:
    _check_granted(hub, request, repository)
    commit = repository.at(revision)
    entry = commit.entries.get(path)
    if entry is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
    told = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if not entry.large:
        return file_reply(request, entry.content, {**told, "ETag": f'"{entry.blob_id}"'})
    where = f"{hub.storage_url}/objects/{entry.sha256}?filename={quote(path)}"
    linked = {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(len(entry.content)), "Location": where}
    unchanged = request.headers.get("if-none-match") == linked["X-Linked-ETag"]
    return Reply(304 if unchanged else 302, headers={**told, **linked})


def _check_granted(hub: HubServer, request: Request, repository: Repository) -> None:
    if not repository.gated:
        return
    restricted = f"Access to {repository.kind} {repository.id} is restricted"
    if request.account is None:
        raise Refusal(401, f"{restricted}. You must have access to it and be authenticated.", "GatedRepo")
    if not request.account.owns(repository.id) and request.account.name not in repository.granted:
        raise Refusal(403, f"{restricted} and you are not in the authorized list.", "GatedRepo")


ROUTES = [
    Route("resolve", "GET|HEAD", WEB + rf"/resolve{REVISION}/(?P<path>.+)", resolve),
]
