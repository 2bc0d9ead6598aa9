"""What a repository holds: its files at a revision, its commits, its branches and tags, which are made here too."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .hub_repositories import EPOCH, PULL_REQUESTS, Commit, Refusal, Repository
from .hub_requests import API, REVISION, Reply, Request, Route, json_reply

if TYPE_CHECKING:
    from .hub_server import HubServer


def info(hub: HubServer, request: Request, repository: Repository, revision: str = "main") -> dict[str, Any]:
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


def tree(hub: HubServer, request: Request, repository: Repository, revision: str, path: str = "") -> Reply:
    commit = repository.at(revision)
    listed = commit.listed(path, request.query.get("recursive") == ["true"])
    if path and not listed:
        raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound", X_Repo_Commit=commit.oid)
    start = int(request.query.get("cursor", ["0"])[0])
    end = start + hub.page_entries
    if end >= len(listed):
        return json_reply(listed[start:])
    rest = "&".join(f"{name}={values[0]}" for name, values in request.query.items() if name != "cursor")
    following = f'<{hub.url}{request.path}?{rest}&cursor={end}>; rel="next"'
    return json_reply(listed[start:end], Link=following)


def paths(hub: HubServer, request: Request, repository: Repository, revision: str) -> list[dict[str, Any]]:
    wanted = parse_qs(request.body.decode()).get("paths", [])
    return [one for one in repository.at(revision).listed("", recursive=True) if one["path"] in wanted]


def commits(hub: HubServer, request: Request, repository: Repository, revision: str) -> list[dict[str, Any]]:
    commit: Commit | None = repository.at(revision)
    told = []
    while commit is not None:
        texts = {"title": commit.title, "message": commit.message}
        told.append({"id": commit.oid, **texts, "authors": [{"user": commit.author}], "date": commit.date})
        commit = commit.parent
    return told


def refs(hub: HubServer, request: Request, repository: Repository) -> dict[str, Any]:
    def told(where: str, named: dict[str, Commit]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{where}/{name}", "targetCommit": at.oid} for name, at in named.items()]

    requests = {name: at for name, at in repository.branches.items() if name.startswith(PULL_REQUESTS)}
    branches = {name: at for name, at in repository.branches.items() if name not in requests}
    return {
        "branches": told("refs/heads", branches),
        "tags": told("refs/tags", repository.tags),
        "converts": [],
        "pullRequests": [{"name": name, "ref": name, "targetCommit": at.oid} for name, at in requests.items()],
    }


def branch(hub: HubServer, request: Request, repository: Repository, branch: str) -> dict[str, Any]:
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


def tag(hub: HubServer, request: Request, repository: Repository, tag: str) -> dict[str, Any]:
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


ROUTES = [
    Route("info", "GET", API + rf"(?:/revision{REVISION})?", info),
    Route("tree", "GET", API + rf"/tree{REVISION}(?:/(?P<path>.+))?", tree),
    Route("paths", "POST", API + rf"/paths-info{REVISION}", paths),
    Route("commits", "GET", API + rf"/commits{REVISION}", commits),
    Route("refs", "GET", API + r"/refs", refs),
    Route("branch", "POST|DELETE", API + r"/branch/(?P<branch>[^/]+)", branch),
    Route("tag", "POST|DELETE", API + r"/tag/(?P<tag>[^/]+)", tag),
]
