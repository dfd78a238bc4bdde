"""A web server on all addresses of this machine: 127.0.0.1, 127.0.0.2, … are as many hosts. It behaves badly where a path says so."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokenshards.pipeline.sources.hosts import uris as table_uris
from tokenshards.pipeline.sources.hosts.health import HostHealth
from tokenshards.pipeline.sources.hosts.store import HostStore
from tokenshards.pipeline.sources.witnesses import Witnesses

__all__ = ["Server", "closed_port", "web"]

BODY = b"content"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        host = str(self.headers["Host"])
        server.asked[host] += 1
        server.requests.append((time.monotonic(), host, self.path))
        server.in_flight[host] += 1
        server.most_in_flight[host] = max(server.most_in_flight[host], server.in_flight[host])
        server.on_request()
        self._answer(server, host)

    def _answer(self, server: Server, host: str) -> None:
        _, kind, *rest = self.path.split("/")
        kind = kind.partition(".")[0]
        status, headers, body = server.status, {"Connection": "close"}, BODY
        if kind == "status":
            status = int(rest[0])
        elif kind == "flaky" and server.failures:
            status = server.failures.pop()
            headers |= server.headers
        elif kind == "busy":
            status, headers = 429, headers | {"Retry-After": rest[0]}
        elif kind == "to":
            status, headers = 302, headers | {"Location": f"http://{'/'.join(rest)}"}
        elif kind == "circle":
            status, headers = 302, headers | {"Location": self.path}
        elif kind == "slow":
            time.sleep(0.1)
        elif kind == "silent":
            server.released.wait(20)
        server.in_flight[host] -= 1  # before the answer: a client that has it may ask again before this thread runs on
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if kind == "huge":
            self.send_header("Content-Length", str(1 << 40))
        elif kind not in ("endless", "drip"):
            self.send_header("Content-Length", str(len(body) + (kind == "cut")))
        self.end_headers()
        self.wfile.write(body)
        while kind in ("endless", "huge", "drip") and not server.released.wait(0.05 if kind == "drip" else 0):
            self.wfile.write(b"\0" if kind == "drip" else bytes(1000))

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Handler)
        self.status = 200
        self.failures: list[int] = []
        """Statuses of the next answers for /flaky.jpg."""
        self.headers: dict[str, str] = {}
        """Headers of those answers."""
        self.released = threading.Event()
        self.on_request: Callable[[], None] = lambda: None
        self.asked: Counter[str] = Counter()
        self.requests: list[tuple[float, str, str]] = []
        self.in_flight: Counter[str] = Counter()
        self.most_in_flight: Counter[str] = Counter()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """Return the URL of a path, by one of the names of this machine."""
        return f"http://{host}:{self.server_address[1]}/{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the test."""


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server; nothing is known of any host."""
    monkeypatch.setattr(HostStore, "_witnesses", Witnesses())
    monkeypatch.setattr(HostStore, "_health", HostHealth())
    monkeypatch.setattr(table_uris, "_stores", table_uris._Stores())
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port
