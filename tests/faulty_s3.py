"""A proxy in front of an S3 server that fails as S3 does: `python -m tests.faulty_s3 --upstream URL --port N --seed S --rates JSON`.

Rates are probabilities per request, drawn from one seeded generator:

    slow_down       503 SlowDown, the request is not passed on
    internal_error  500 InternalError, not passed on
    forbidden       begins a while (`FORBIDDEN_SECONDS`) in which everything gets 403
    reset           the connection is reset in mid-body: of the answer to a GET, of the request where it is a PUT
    truncated       a GET's answer ends early under its right Content-Length, and the connection is closed in order
    lost            the server did what a PUT, POST or DELETE asked, and the client sees a reset instead of the answer
    stall           nothing happens for STALL_SECONDS, then all is well

`POST /__faults__` with {"rates": {...}, "forbidden_seconds": s, "reset": true} changes that while it runs, `GET /__faults__` tells what was
asked and injected. The Host header is passed on as it came, so signatures stay valid. Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STALL_SECONDS = 5.0
FORBIDDEN_SECONDS = 1.0
LOG_REQUESTS = 20_000
KINDS = ("slow_down", "internal_error", "forbidden", "reset", "truncated", "lost", "stall")
WRITES = ("PUT", "POST", "DELETE")
ERRORS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "forbidden": (403, "AccessDenied", "Access Denied"),
}
_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection", "te", "upgrade", "expect"}


class Faults:
    """Which fault the next request meets, and counts of all that happened; safe for threads."""

    def __init__(self, seed: int, rates: dict[str, float]) -> None:
        self._guard = threading.Lock()
        self._random = random.Random(seed)
        self._rates: dict[str, float] = {}
        self._forbidden_until = 0.0
        self._injected: Counter[str] = Counter()
        self._operations: Counter[str] = Counter()
        self._log: deque[str] = deque(maxlen=LOG_REQUESTS)
        self.change({"rates": rates})

    def change(self, wanted: dict[str, Any]) -> None:
        rates = {str(kind): float(rate) for kind, rate in wanted.get("rates", {}).items()}
        if unknown := rates.keys() - set(KINDS):
            raise ValueError(f"the faults {sorted(unknown)} are not known; expected some of {', '.join(KINDS)}")
        with self._guard:
            self._rates = rates
            self._forbidden_until = time.monotonic() + float(wanted.get("forbidden_seconds", 0.0))
            if wanted.get("reset"):
                self._injected.clear()
                self._operations.clear()
                self._log.clear()

    def report(self) -> dict[str, Any]:
        with self._guard:
            return {
                "requests": self._operations.total(),
                "operations": dict(self._operations),
                "injected": dict(self._injected),
                "log": list(self._log),
            }

    def draw(self, method: str, path: str) -> str:
        """Return the fault of this request, an empty string for none."""
        with self._guard:
            self._operations[operation(method, path)] += 1
            self._log.append(f"{method} {path}")
            fault = self._fault(method)
            if fault:
                self._injected[fault] += 1
            return fault

    def _fault(self, method: str) -> str:
        if time.monotonic() < self._forbidden_until:
            return "forbidden"
        dice = self._random.random()  # one number for each request, whatever its method, so that a seed means something
        for kind in KINDS:
            dice -= self._rates.get(kind, 0.0)
            if dice < 0:
                break
        else:
            return ""
        if kind == "forbidden":
            self._forbidden_until = time.monotonic() + FORBIDDEN_SECONDS
        fits = {"reset": method in ("GET", "PUT"), "truncated": method == "GET", "lost": method in WRITES}
        return kind if fits.get(kind, True) else ""


def operation(method: str, path: str) -> str:
    """Return what a request does, such as `list` or `get`, for counting."""
    split = urllib.parse.urlsplit(path)
    query = urllib.parse.parse_qs(split.query, keep_blank_values=True)
    is_bucket = "/" not in split.path.strip("/")
    if method == "GET" and is_bucket:
        return "list"
    if "uploadId" in query or "uploads" in query:
        return "multipart"
    return f"{method.lower()} bucket" if is_bucket else method.lower()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one(self) -> None:
        if self.path == "/__faults__":
            self._control()
            return
        fault = self.server.faults.draw(self.command, self.path)
        if fault == "reset" and self.command == "PUT":
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length // 2)
            self._reset()
            return
        body = self._body()
        if fault in ERRORS:
            self._error(*ERRORS[fault])
            return
        if fault == "stall":
            time.sleep(STALL_SECONDS)
        try:
            status, headers, data = self._upstream(body)
        except (OSError, http.client.HTTPException) as error:
            self._error(502, "BadGateway", str(error))
            return
        if fault == "lost":
            self._reset()
            return
        cut = len(data) // 2 if fault in ("reset", "truncated") else len(data)
        self._head(status, headers, len(data))
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
            self.wfile.flush()
        if fault == "reset":
            time.sleep(0.01)  # so that the first half arrives
            self._reset()
        elif fault == "truncated":
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815

    def log_message(self, *_: object) -> None:
        return

    def _control(self) -> None:
        status, answer = 200, b""
        try:
            if self.command == "POST":
                self.server.faults.change(json.loads(self._body() or b"{}"))
            answer = json.dumps(self.server.faults.report()).encode()
        except ValueError as error:
            status, answer = 400, json.dumps({"error": str(error)}).encode()
        self._head(status, [("Content-Type", "application/json")], len(answer))
        self.wfile.write(answer)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b"\n", b""):
            pass
        return b"".join(parts)

    def _upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = self.server.connection()
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP | {"content-length"}:
                connection.putheader(name, value)
        if body or self.command in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        answer = connection.getresponse()
        data = answer.read()
        headers = answer.getheaders()
        if self.command == "HEAD":
            length = answer.getheader("Content-Length")
            headers = [*headers, *([("Content-Length", length)] if length else [])]
        status = answer.status
        connection.close()
        return status, headers, data

    def _head(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
        self.send_response_only(status)
        sent = {name.lower(): (name, value) for name, value in headers if name.lower() not in _HOP}
        if self.command != "HEAD" and status not in (204, 304):
            sent["content-length"] = ("Content-Length", str(length))
        for name, value in sent.values():
            self.send_header(name, value)
        self.end_headers()

    def _error(self, status: int, code: str, message: str) -> None:
        data = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
            "<RequestId>0123456789ABCDEF</RequestId><HostId>tokenshards</HostId></Error>"
        ).encode()
        if self.command == "HEAD":
            data = b""
        self._head(status, [("Content-Type", "application/xml"), ("x-amz-request-id", "0123456789ABCDEF")], len(data))
        self.wfile.write(data)

    def _reset(self) -> None:
        self.close_connection = True
        # Closing with a zero linger sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, upstream: str, port: int, faults: Faults) -> None:
        self.faults = faults
        match = re.fullmatch(r"http://([^:/]+):(\d+)/?", upstream)
        if match is None:
            raise SystemExit(f"--upstream is {upstream!r}; expected http://HOST:PORT")
        self._upstream = match[1], int(match[2])
        super().__init__(("127.0.0.1", port), Handler)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._upstream, timeout=60)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the game."""

    def shutdown_request(self, request: Any) -> None:
        try:
            super().shutdown_request(request)
        except OSError:  # reset by us
            request.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A proxy that fails as S3 does.")
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rates", default="{}")
    given = parser.parse_args()
    proxy = Proxy(given.upstream, given.port, Faults(given.seed, json.loads(given.rates)))
    print(f"listening on http://127.0.0.1:{proxy.server_address[1]}", flush=True)
    proxy.serve_forever()


if __name__ == "__main__":
    main()
