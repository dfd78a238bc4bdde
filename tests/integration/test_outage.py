"""An outage costs time, never data: a store that fails for a while quarantines nothing and completes nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.datasets import ROOT, call_cli, content, convert, quarantine_of, run_cli, start_cli, write_images
from tests.s3_servers import S3Server
from tests.secret_scan import SecretScan
from tokenshards.pipeline.errors import TransientStorageError
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.storage.store import Store


class ImageServer(ThreadingHTTPServer):
    """Serves a folder; answers with `failure` instead while that is set, and after `healthy_requests` answers."""

    failure: int | None = None
    healthy_requests = 1 << 30

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the test."""


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, ImageServer)
        server.healthy_requests -= 1
        if server.healthy_requests < 0:
            server.failure = 503
        if server.failure is not None:
            self.send_error(server.failure)
        else:
            super().do_GET()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ImageServer]:
    write_images(tmp_path / "web", 60, classes=0)
    (tmp_path / "web" / "img_0004.jpg").unlink()
    with ImageServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "web"))) as served:
        threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        base = f"http://127.0.0.1:{served.server_address[1]}"
        names = [f"img_{index:04d}.{'png' if index % 2 else 'jpg'}" for index in range(60)]
        rows = "".join(f"{base}/{name},{index % 3}\n" for index, name in enumerate(names))
        (tmp_path / "table.csv").write_text("url,label\n" + rows)
        write_images(tmp_path / "fit", 30)
        convert(tmp_path / "fit", tmp_path / "fitted")
        yield served
        served.shutdown()


def tokenize(folder: Path, *, expect: int) -> str:
    _, errors = run_cli(
        "tokenize",
        str(folder / "table.csv"),
        str(folder / "out"),
        *("--tokenizer", str(folder / "fitted" / "tokenizer"), "--shard-rows", "20", "--max-bad", "1"),
        *("--workers", "1", "--retry-attempts", "2", "--url-attempts", "1", "--allow-private-hosts"),
        expect=expect,
    )
    return errors


@pytest.mark.parametrize("status", [503, 403])
def test_an_outage_from_the_start(server: ImageServer, tmp_path: Path, status: int) -> None:
    server.failure = status
    errors = tokenize(tmp_path, expect=3)
    assert "quarantined because of this" in errors and "it continues" in errors
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list(tmp_path.glob("out/quarantine/*"))
    assert not list(tmp_path.glob("out/commits/*/*"))


def test_an_outage_in_the_middle_then_recovery(server: ImageServer, tmp_path: Path) -> None:
    server.healthy_requests = 30
    tokenize(tmp_path, expect=3)
    assert not (tmp_path / "out" / "manifest.json").exists()
    server.failure, server.healthy_requests = None, 1 << 30
    tokenize(tmp_path, expect=0)
    assert len(content(tmp_path / "out")) == 59
    assert list(quarantine_of(tmp_path / "out").values()) == ["missing"]  # a 404 is an answer, not an outage
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_signatures_of_a_table_stay_in_its_plan(server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, out, secret = tmp_path / "table.csv", tmp_path / "out", "c2lnbmF0dXJl,0123"
    header, *rows = table.read_text().splitlines()
    signed = (f'"{row.split(",")[0]}?X-Amz-Signature={secret}",0' for row in rows[:10])
    table.write_text("\n".join((header, *signed, "")))
    scan = SecretScan(secret)
    monkeypatch.setattr("tests.integration.test_outage.run_cli", call_cli)
    for server.failure in (403, None):
        assert secret not in tokenize(tmp_path, expect=3 if server.failure else 0)
        left = [path for path in out.rglob("*") if path.is_file() and path.relative_to(out).parts[0] != "plan"]
        assert [path for path in left if scan.has(path.read_bytes())] == []
    assert list(quarantine_of(out).values()) == ["missing"]


def test_an_output_that_cannot_be_written_is_no_data_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "src", 30)
    write = Store.write

    def broken(self: Store, path: str, data: bytes) -> None:
        if path.startswith("shards/"):
            raise TransientStorageError(f"{path}: no space left on device")
        write(self, path, data)

    from tests.inline import InlineRunner

    monkeypatch.setattr(Store, "write", broken)
    with pytest.raises(Exception, match="no space left") as caught:
        convert(tmp_path / "src", tmp_path / "out", runner=InlineRunner())
    assert type(caught.value).__name__ == "IncompleteError"
    assert not list(tmp_path.glob("out/commits/*/*")) and not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    convert(tmp_path / "src", tmp_path / "out")
    assert len(content(tmp_path / "out")) == 30


def test_ctrl_c_while_the_store_is_silent_ends_the_run_at_once(tmp_path: Path) -> None:
    """The last sign of life and all reads in flight have minutes of retries before them; nobody waits for these."""
    write_images(tmp_path / "images", 200)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.s3_servers", "--serve-moto"], stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    try:
        assert server.stdout is not None
        endpoint = next(line for line in server.stdout if "listening on" in line).split()[-1]
        S3Server("moto", endpoint).create_bucket("out")
        run = start_cli(
            *("tokenize", str(tmp_path / "images"), "s3://out/tokens", "--size", "16", "--codes", "4", "--shard-rows", "2"),
            *("--workers", "1", "--max-bad", "1"),
            env=S3Server("moto", endpoint).env,
        )
        try:
            assert run.stderr is not None
            assert any(line.startswith("plan ") for line in run.stderr), "it never came to work"
            client = S3Server("moto", endpoint).client()
            while not client.list_objects_v2(Bucket="out", Prefix="tokens/commits/").get("KeyCount"):
                assert run.poll() is None
                time.sleep(0.05)
            server.send_signal(signal.SIGSTOP)
            time.sleep(1.0)  # its requests are on their way by now
            run.send_signal(signal.SIGINT)
            assert run.wait(60) == 130
        finally:
            run.kill()
            run.communicate()
    finally:
        server.kill()
        server.communicate()
