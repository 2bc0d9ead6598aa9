"""A loopback server that speaks OpenAI's chat protocol, as far as a client that writes training data needs it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]  # status, and what is sent as JSON; bytes are sent as they are


@dataclass
class ChatServer:
    """`answer(body) -> (status, content, finish reason)` makes each reply; what was asked is kept."""

    answer: Callable[[dict[str, Any]], tuple[int, str, str]]
    models: list[str] = field(default_factory=lambda: ["tiny"])
    token: str | None = None
    delay: float = 0.0
    instead: dict[str, Any] = field(default_factory=dict)  # by the end of the path, a reply for all that come there
    asked: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""

    def reply(self, path: str, body: dict[str, Any] | None, authorization: str | None) -> Reply:
        if self.token is not None and authorization != f"Bearer {self.token}":
            return 401, {"error": {"message": "no such key"}}
        for end, sent in self.instead.items():
            if path.endswith(end):
                return 200, sent
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
        if path != "/v1/chat/completions" or body is None:
            return 404, {"error": {"message": f"no {path} here"}}
        self.asked.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        status, content, reason = self.answer(body)
        self.at_once -= 1
        if status != 200:
            return status, {"error": {"message": content}}
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}


@contextmanager
def serving(server: ChatServer) -> Iterator[ChatServer]:
    """Runs `server` on a free port of the loopback; its `url` ends in /v1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(server.reply(self.path, None, self.headers["Authorization"]))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send(server.reply(self.path, body, self.headers["Authorization"]))

        def send(self, reply: Reply) -> None:
            raw = isinstance(reply[1], bytes)
            contents = reply[1] if raw else json.dumps(reply[1]).encode()
            self.send_response(reply[0])
            self.send_header("Content-Type", "text/html" if raw and contents[:1] == b"<" else "application/json")
            self.send_header("Content-Length", str(len(contents)))
            self.end_headers()
            self.wfile.write(contents)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{running.server_port}/v1"
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
