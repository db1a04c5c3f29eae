"""A pass-through before the W&B-compatible server: opens it to clients that it refuses, keeps a record, and fails."""

import http.client
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[["Handler"], bool]
"""Does something to a request; True if that was the answer."""


class Passthrough:
    """Stands at an address of its own, until it is closed."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.queries: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str]] = []
        self.fault: Fault | None = None
        self.views: list[dict[str, Any]] = []
        self.project = "harness"
        handler = type("Bound", (Handler,), {"place": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request: looked at, and handed on."""

    protocol_version = "HTTP/1.1"
    place: Passthrough

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        with suppress(OSError):
            self.end_headers()
            self.wfile.write(body)

    def answer_json(self, data: Any) -> None:
        self.answer(200, json.dumps(data).encode(), Content_Type="application/json")

    def handle(self) -> None:
        # Clients hang up when they are killed.
        with suppress(OSError):
            super().handle()

    def _do(self) -> None:
        self.place.requests.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.place.fault is not None and self.place.fault(self):
            return
        if self.path == "/graphql":
            query = json.loads(body)
            self.place.queries.append(query)
            # Clients send it empty where a document has one operation; the server looks for one of that name.
            if not query.get("operationName"):
                query.pop("operationName", None)
            if "upsertView" in query["query"]:
                self._keep_view(query)
                return
            if "mutation UseArtifact" in query["query"]:
                # The server keeps artifacts, but not who used them.
                self.answer_json(
                    {"data": {"useArtifact": {"artifact": {"id": query["variables"]["input"]["artifactID"]}}}}
                )
                return
            if "query GetProjects" in query["query"]:
                self._list_projects(query)
                return
            # A field that the server lacks; its own number of the project will do.
            query["query"] = re.sub(r"\binternalId\b", "internalId: id", query["query"])
            given = (query.get("variables") or {}).get("input") or {}
            if "mutation CreateArtifact" in query["query"] and given.get("runName") is None:
                # An artifact that is only used has no run; the server answers null to that.
                query = query | {"variables": {"input": given | {"runName": "nobody"}}}
            body = json.dumps(query).encode()
        self._hand_on(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _do  # noqa: N815

    def _keep_view(self, query: dict[str, Any]) -> None:
        """The server has no views: what is sent for one is kept here, and answered as W&B does."""
        self.place.views.append(query["variables"])
        given = query["variables"]
        view = {name: given.get(name) for name in ("type", "name", "displayName", "description", "spec")}
        view |= {
            "id": "VmlldzoxMjM=",
            "project": {"id": "1", "name": "p", "entityName": "e"},
            "updatedAt": "2026-01-01T00:00:00Z",
        }
        self.answer_json({"data": {"upsertView": {"view": view, "inserted": True}}})

    def _list_projects(self, query: dict[str, Any]) -> None:
        """The server cannot list projects; the library only looks whether the one it saves to is there."""
        entity = query["variables"].get("entity")
        node = {
            "id": "1",
            "name": self.place.project,
            "entityName": entity,
            "createdAt": "2026-01-01T00:00:00Z",
            "isBenchmark": False,
        }
        node |= {"user": None}
        page = {"endCursor": None, "hasNextPage": False}
        self.answer_json({"data": {"models": {"edges": [{"node": node, "cursor": "1"}], "pageInfo": page}}})

    def _hand_on(self, body: bytes) -> None:
        link = http.client.HTTPConnection(self.place.upstream.hostname, self.place.upstream.port, timeout=120)
        # Without a key the server takes everybody for its owner; a key costs it a quarter of a CPU second a request.
        dropped = ("host", "content-length", "authorization")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        try:
            link.request(self.command, self.path, body=body, headers=headers | {"Accept-Encoding": "identity"})
            response = link.getresponse()
            content = response.read()
        except OSError:
            # The server behind is down: so is this one.
            self.close_connection = True
            self.connection.close()
            return
        finally:
            link.close()
        # Files are uploaded to addresses that the server names: they shall come by here as well.
        ours = f"{self.place.upstream.scheme}://{self.place.upstream.netloc}".encode()
        kept = {"Content_Type": response.headers.get("Content-Type", "text/plain")}
        self.answer(response.status, content.replace(ours, self.place.address.encode()), **kept)


def answering(status: int, *, only: str = "", **headers: str) -> Fault:
    """Answer requests whose path has a text in it with a status."""

    def fault(handler: Handler) -> bool:
        if only not in handler.path:
            return False
        handler.answer(status, b"{}", Content_Type="application/json", **headers)
        return True

    return fault


def hanging(seconds: float, *, only: str = "") -> Fault:
    """Answer nothing for a time, then cut the connection."""

    def fault(handler: Handler) -> bool:
        if only not in handler.path:
            return False
        time.sleep(seconds)
        handler.close_connection = True
        handler.connection.close()
        return True

    return fault


def dripping(head: bytes, *, seconds: float = 30.0) -> Fault:
    """Answer a head at once and then a byte now and then, which no timeout of a single read ends."""

    def fault(handler: Handler) -> bool:
        handler.close_connection = True
        handler.wfile.write(head)
        for _ in range(int(seconds / 0.05)):
            handler.wfile.write(b" ")
            time.sleep(0.05)
        handler.wfile.write(b'{"data": {"viewer": {"entity": "late"}}}')
        return True

    return fault
