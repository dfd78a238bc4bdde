"""Tables of URLs on hosts of which some are dead, on the command line: rows, quarantine, and what a retry mends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.datasets import call_json, content, convert, quarantine_of, run_cli, start_cli, write_images
from tests.pipeline.sources.web_server import closed_port
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.storage.store import Store


class Handler(SimpleHTTPRequestHandler):
    forbidden = threading.Event()
    """Whether images below /closed may be read."""
    released = threading.Event()

    def do_GET(self) -> None:
        if self.path.startswith("/closed") and not self.forbidden.is_set():
            self.send_error(403)
        elif self.path.startswith("/drip"):
            self.send_response(200)
            self.end_headers()
            while not self.released.wait(0.05):
                self.wfile.write(b"\0")
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.removeprefix("/closed"))

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the test."""


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    write_images(tmp_path / "web", 30, classes=0)
    write_images(tmp_path / "fit", 30)
    convert(tmp_path / "fit", tmp_path / "fitted")
    Handler.forbidden.clear()
    Handler.released.clear()
    with Server(("0.0.0.0", 0), partial(Handler, directory=str(tmp_path / "web"))) as served:
        threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield served.server_address[1]
        Handler.released.set()
        served.shutdown()


def write_table(folder: Path, urls: list[str]) -> None:
    (folder / "t.csv").write_text("\n".join(["url", *urls, ""]))


def command(folder: Path, *more: str) -> tuple[str, ...]:
    paths = (str(folder / "t.csv"), str(folder / "out"), "--tokenizer", str(folder / "fitted" / "tokenizer"))
    return ("tokenize", *paths, "--max-bad", "1", "--workers", "1", "--retry-attempts", "2", "--allow-private-hosts", *more)


def test_dead_hosts_are_counted_and_a_retry_takes_them_again(port: int, tmp_path: Path) -> None:
    names = sorted(path.name for path in (tmp_path / "web").iterdir())
    good = [f"http://127.0.0.{1 + index % 3}:{port}/{name}" for index, name in enumerate(names[:20])]
    closed = [f"http://127.0.0.8:{port}/closed/{name}" for name in names[20:25]]
    gone = f"127.0.0.9:{closed_port()}"
    dead = [f"http://{gone}/{index}.jpg" for index in range(5)]
    write_table(tmp_path, [*good, *closed, *dead, f"http://127.0.0.1:{port}/drip.jpg"])
    _, said = run_cli(*command(tmp_path, "--url-time", "2", "--url-attempts", "2"))
    out = tmp_path / "out"
    assert len(content(out)) == 20 and verify_dataset(Store(str(out))).ok
    assert sorted(quarantine_of(out).values()) == ["http_403"] * 5 + ["refused"] * 5 + ["too_slow"]
    assert f"note: hosts with the most failures: 127.0.0.8:{port} 5 (http_403), {gone} 5 (refused)" in said
    hosts = call_json("quarantine", str(out))["hosts"]
    assert list(hosts.values()) == [{"http_403": 5}, {"refused": 5}, {"too_slow": 1}]
    Handler.forbidden.set()
    run_cli("retry-failed", str(out), "--workers", "1", "--allow-private-hosts", "--url-time", "2", "--url-attempts", "1")
    assert len(content(out)) == 25 and sorted(quarantine_of(out).values()) == ["refused"] * 5 + ["too_slow"]
    _, said = run_cli("retry-failed", str(out), "--workers", "1", "--allow-private-hosts", "--url-time", "2", "--url-attempts", "1")
    assert len(quarantine_of(out)) == 6, "all that failed again fails again, because hosts of the first plan answer"
    assert verify_dataset(Store(str(out))).ok


def test_no_host_answers(port: int, tmp_path: Path) -> None:
    write_table(tmp_path, [f"http://127.0.0.{index}:{closed_port()}/x.jpg" for index in range(1, 8)])
    _, said = run_cli(*command(tmp_path), expect=3)
    assert "no other host answers either" in said and "it continues" in said
    assert not list(tmp_path.glob("out/quarantine/*")) and not list(tmp_path.glob("out/commits/*/*"))


def test_ctrl_c_while_a_host_drips_ends_the_run_at_once(port: int, tmp_path: Path) -> None:
    write_table(tmp_path, [f"http://127.0.0.{index}:{port}/drip/{index}" for index in range(1, 40)])
    run = start_cli(*command(tmp_path))
    try:
        assert run.stderr is not None
        assert any(line.startswith("plan ") for line in run.stderr), "it never came to work"
        time.sleep(3.0)  # its requests are on their way by now
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
    finally:
        run.kill()
        run.communicate()
