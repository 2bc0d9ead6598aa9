"""One port of the loopback Hub: reads requests, hands them on, sends answers; cuts and spoils what it is told to."""

from __future__ import annotations

import re
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from .hub_repositories import Refusal
from .hub_requests import Fault, Reply, Request, Route, json_reply

if TYPE_CHECKING:
    from .hub_server import HubServer


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, routes: list[Route]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self.routes = [(route, re.compile(route.path)) for route in routes]
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


class Handler(BaseHTTPRequestHandler):
    server: Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self) -> None:
        hub, address = self.server.hub, urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request("other", self.command, address.path, parse_qs(address.query), headers)
        route, groups = self.route(request)
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
            if route is None:
                raise Refusal(404, f"This server has no {request.method} {request.path}")
            reply = hub.answer(route, request, groups)
        except Refusal as refusal:
            reply = json_reply({"error": refusal.message}, refusal.status)
            reply = Reply(reply.status, reply.body, {**reply.headers, **refusal.headers})
        fault = hub.take_fault(request, ("cut", "corrupt"), path) if reply.is_file else None
        self.send(request, reply, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def route(self, request: Request) -> tuple[Route | None, dict[str, str | None]]:
        for route, path in self.server.routes:
            found = path.fullmatch(request.path)
            if found is not None and request.method in route.methods.split("|"):
                request.kind = route.kind
                return route, found.groupdict()
        return None, {}

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
