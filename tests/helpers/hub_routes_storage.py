"""The storage of large files, which knows them by their sha256 and asks nobody who they are."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from .hub_repositories import Refusal
from .hub_requests import Reply, Request, Route, file_reply, md5

if TYPE_CHECKING:
    from .hub_server import HubServer


def large_object(hub: HubServer, request: Request, oid: str, part: str | None = None) -> Reply:
    if request.method == "PUT":
        if part is None:
            store(hub, oid, request.body)
        else:
            hub.parts[oid, int(part)] = request.body
        return Reply(headers={"ETag": md5(request.body)})
    if oid not in hub.objects:
        raise Refusal(404, f"NoSuchKey: {oid}")
    name = request.query.get("filename", [oid])[0].rsplit("/")[-1]
    told = {"ETag": md5(hub.objects[oid]), "Accept-Ranges": "bytes"}
    told["Content-Disposition"] = f'inline; filename="{name}";'
    return file_reply(request, hub.objects[oid], told)


def store(hub: HubServer, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refusal(400, f"BadDigest: what was sent is not the object {oid}")
    hub.objects[oid] = content


ROUTES = [
    Route("object", "GET|HEAD|PUT", r"/objects/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", large_object),
]
