"""Who asks, and a repository's birth, settings and end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .hub_repositories import Refusal, Repository
from .hub_requests import API, Reply, Request, Route, json_reply

if TYPE_CHECKING:
    from .hub_server import HubServer


def whoami(hub: HubServer, request: Request) -> dict[str, Any]:
    account = request.account
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    token = {"displayName": "test", "role": "write" if account.writes else "read"}
    organisations = [{"type": "org", "name": name, "fullname": name} for name in account.organisations]
    auth = {"type": "access_token", "accessToken": token}
    return {"type": "user", "name": account.name, "fullname": account.name, "orgs": organisations, "auth": auth}


def agents(hub: HubServer, request: Request) -> dict[str, Any]:
    return {"standardEnvVars": [], "harnesses": {}}


def card(hub: HubServer, request: Request) -> Reply:
    errors, hub.card_errors = [{"message": message} for message in hub.card_errors], []
    return json_reply({"errors": errors, "warnings": []}, 400 if errors else 200)


def _named(hub: HubServer, request: Request) -> tuple[str, str]:
    told = request.json()
    if request.account is None:
        raise Refusal(401, "Invalid username or password.")
    repo_id = f"{told.get('organization') or request.account.name}/{told['name']}"
    return told.get("type") or "model", repo_id


def create(hub: HubServer, request: Request) -> Reply:
    told = request.json()
    kind, repo_id = _named(hub, request)
    if not (request.account and request.account.may_write(repo_id)):
        where = repo_id.split("/")[0]
        raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{where}"')
    address = f"{hub.url}/{Repository(kind, repo_id).web_path}"
    if (kind, repo_id) in hub.repositories:
        return json_reply({"error": f"You already created this {kind} repo", "url": address}, 409)
    private = told.get("visibility") == "private" or bool(told.get("private"))
    hub.add_repository(repo_id, kind=kind, private=private)
    return json_reply({"url": address, "name": repo_id, "id": repo_id, "private": private})


def delete(hub: HubServer, request: Request) -> dict[str, Any]:
    kind, repo_id = _named(hub, request)
    hub.readable(request, kind, repo_id)
    request.writer(repo_id)
    del hub.repositories[kind, repo_id]
    return {}


def settings(hub: HubServer, request: Request, repository: Repository) -> dict[str, Any]:
    request.writer(repository.id)
    told = request.json()
    repository.gated = told.get("gated", repository.gated)
    if "visibility" in told or "private" in told:
        repository.private = told.get("visibility") == "private" or bool(told.get("private"))
    return {"private": repository.private, "gated": repository.gated}


ROUTES = [
    Route("whoami", "GET", r"/api/whoami-v2", whoami),
    Route("agents", "GET", r"/api/agent-harnesses", agents),
    Route("card", "POST", r"/api/validate-yaml", card),
    Route("create", "POST", r"/api/repos/create", create),
    Route("delete", "DELETE", r"/api/repos/delete", delete),
    Route("settings", "PUT", API + r"/settings", settings),
]
