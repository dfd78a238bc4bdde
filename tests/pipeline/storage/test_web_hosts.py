"""A table may name public hosts alone: the address is checked when it is connected to, at every redirect, whatever its form."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tokenshards.pipeline.config import RetryConfig, SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.fetch import fetch_file
from tokenshards.pipeline.storage import web_hosts
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.storage.web_hosts import is_public

QUICK = RetryConfig(attempts=3, first_delay_seconds=0.0)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *("::1", "::", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1"),
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


class Handler(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", f"http://{self.path.removeprefix('/to/')}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"content")

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Handler)
        self.asked: list[str] = []


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(folder: Path, url: str, *, trusted: bool = False) -> bytes:
    row = PlanRow(kind="file", sample_id="x", path=url, size=-1, version="", inputs=1)
    return fetch_file(Store(str(folder), retry=QUICK), row, SourceConfig(allow_private_hosts=trusted))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.0.0.2"])
def test_a_private_host_is_refused_whatever_its_form(server: Server, tmp_path: Path, host: str) -> None:
    with pytest.raises(BadInput) as caught:
        fetch(tmp_path, f"http://{host}:{server.server_address[1]}/x.jpg")
    assert caught.value.reason == Reason.PRIVATE_HOST and "--allow-private-hosts" in caught.value.detail
    assert server.asked == []


@pytest.mark.parametrize("host", ["127.1", "2130706433", "host:99999", "[::1"])
def test_what_is_no_host_is_a_bad_uri(tmp_path: Path, host: str) -> None:
    with pytest.raises(BadInput, match="bad_uri"):
        fetch(tmp_path, f"http://{host}/x.jpg")


def test_a_private_host_that_is_allowed(server: Server, tmp_path: Path) -> None:
    assert fetch(tmp_path, f"http://127.0.0.1:{server.server_address[1]}/x.jpg", trusted=True) == b"content"


def test_a_redirect_to_a_private_host_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_hosts, "is_public", lambda address: address == "127.0.0.1")  # as if it were public
    port = server.server_address[1]
    assert fetch(tmp_path, f"http://127.0.0.1:{port}/to/127.0.0.1:{port}/x.jpg") == b"content"
    server.asked.clear()
    with pytest.raises(BadInput, match="private_host"):
        fetch(tmp_path, f"http://127.0.0.1:{port}/to/127.0.0.2:{port}/x.jpg")
    assert all(path.startswith("/to/") for path in server.asked), "the second host was never asked"
