"""A local stand-in for an OpenAI-compatible service: it answers by a script, and records what it was asked."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """A response: status, body, headers, and how long the service takes."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = {}
    seconds: float = 0.0


def completion(text: str | None, *, finish: str = "stop", refusal: str | None = None, usage: Any = (100, 20)) -> Answer:
    """A chat completion as OpenAI sends it."""
    counted = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if usage else None
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return Answer(200, {"model": "served-2024", "choices": [choice], **({"usage": counted} if counted else {})})


def error(
    status: int,
    message: str = "",
    *,
    code: str | None = None,
    param: str | None = None,
    kind: str = "error",
    **headers: str,
) -> Answer:
    """An error as OpenAI sends it."""
    body = {"error": {"message": message, "code": code, "param": param, "type": kind}}
    return Answer(status, body, {name.replace("_", "-"): text for name, text in headers.items()})


class ChatServer:
    """Answers by ``script``, a function of the question's text and of how often it was asked before."""

    def __init__(self, script: Callable[[str, int], Answer]) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._at_once = 0
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"server_of": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, body: dict[str, Any], key: str | None) -> Answer:
        """Record a request and return its scripted answer."""
        text = body["messages"][-1]["content"]
        with self._lock:
            before = self._asked[text]
            self._asked[text] += 1
            self.bodies.append(body)
            self.keys.append(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        answer = self.script(text, before)
        time.sleep(answer.seconds)
        with self._lock:
            self._at_once -= 1
        return answer

    def close(self) -> None:
        """Stop listening: from now on connections are refused."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: ChatServer

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.server_of.answer(body, self.headers.get("Authorization"))
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        with suppress(OSError):
            self.send_response(answer.status if self.path == "/v1/chat/completions" else 404)
            for name, text in answer.headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
