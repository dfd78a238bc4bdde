"""One object that cannot be read is told from a store, or a network, that is away: both on real servers, and on a disk."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.s3_servers import S3Server, faulty_proxy, moto_server
from tokenshards.pipeline.activity import WAITING_FOR_STORE, activities
from tokenshards.pipeline.config import RetryConfig, SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.records import FailedRecord, PlanRow
from tokenshards.pipeline.sources import open_source, source_store, table_uris
from tokenshards.pipeline.sources.fetch import fetch_file, urls_to_probe
from tokenshards.pipeline.sources.source_store import HostStore, SourceStore
from tokenshards.pipeline.storage.store import Store

QUICK = RetryConfig(attempts=2, first_delay_seconds=0.0)
QUARANTINE = SourceConfig(unreadable="quarantine", allow_private_hosts=True)
STOP = SourceConfig(unreadable="stop", allow_private_hosts=True)
TRUSTED = SourceConfig(allow_private_hosts=True)


def row_of(path: str) -> PlanRow:
    return PlanRow(kind="file", sample_id=path, path=path, size=-1, version="", inputs=1)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file that may not be read, as for users that are not root."""
    for name in ("a.jpg", "b.jpg", "denied.jpg"):
        (tmp_path / name).write_bytes(b"picture")
    monkeypatch.setattr("builtins.open", denying(open))
    monkeypatch.setattr("io.open", denying(open))
    monkeypatch.setattr(os, "open", denying(os.open))
    return tmp_path


def denying(real: object) -> object:
    def opened(path: object, *arguments: object, **named: object) -> object:
        writing = arguments[:1] == ("wb",)
        if "denied" in os.path.basename(str(path)) and not writing or os.environ.get("DENY_ALL") and str(path).endswith(".jpg"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **named)  # type: ignore[operator]

    return opened


def test_a_file_that_may_not_be_read_is_bound_to_itself(disk: Path) -> None:
    store = SourceStore(str(disk), retry=RetryConfig(attempts=8))
    began = time.monotonic()
    with pytest.raises(
        UnreadableObjectError, match="denied.jpg: no permission to read it .Permission denied., although its store answers"
    ) as caught:
        fetch_file(store, row_of("denied.jpg"))
    assert caught.value.objects == (str(disk / "denied.jpg"),) and caught.value.reason == Reason.UNREADABLE
    with pytest.raises(BadInput, match="unreadable: .*Permission denied"):
        fetch_file(store, row_of("denied.jpg"), QUARANTINE)
    assert fetch_file(store, row_of("a.jpg"), QUARANTINE) == b"picture"
    assert time.monotonic() - began < 20, "no attempts with pauses for what no pause mends"


def test_where_nothing_can_be_read_it_is_an_outage(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENY_ALL", "1")
    with pytest.raises(TransientStorageError) as caught:
        fetch_file(SourceStore(str(disk), retry=QUICK), row_of("denied.jpg"), QUARANTINE)
    assert not isinstance(caught.value, UnreadableObjectError)


def test_stores_of_inputs_travel_to_workers() -> None:
    store = pickle.loads(pickle.dumps(SourceStore("memory://x", retry=QUICK)))
    assert isinstance(store, SourceStore) and store.info("nothing") is None
    assert isinstance(pickle.loads(pickle.dumps(HostStore("http://x", storage_options={}, retry=QUICK, public_only=True))), HostStore)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        server.create_bucket("bucket")
        client = server.client()
        for name in ("a.jpg", "b.jpg"):
            client.put_object(Bucket="bucket", Key=f"src/{name}", Body=b"picture")
        client.put_object(Bucket="bucket", Key="src/cold.jpg", Body=b"picture", StorageClass="GLACIER")
        client.put_object(Bucket="bucket", Key="alone/cold.jpg", Body=b"picture", StorageClass="GLACIER")
        yield server


@pytest.mark.parametrize("folder", ["src", "alone"])
def test_an_archived_object_is_bound_to_itself(s3: S3Server, folder: str) -> None:
    store = SourceStore(f"s3://bucket/{folder}", storage_options=s3.options, retry=QUICK)
    if folder == "alone":  # there is no other object to ask for
        with pytest.raises(TransientStorageError) as caught:
            fetch_file(store, row_of("cold.jpg"), QUARANTINE)
        assert not isinstance(caught.value, UnreadableObjectError)
        return
    with pytest.raises(BadInput, match="unreadable: s3://bucket/src/cold.jpg: the object is archived .*InvalidObjectState|not valid"):
        fetch_file(store, row_of("cold.jpg"), QUARANTINE)
    with pytest.raises(UnreadableObjectError):
        fetch_file(store, row_of("cold.jpg"))


def test_options_of_a_table_on_a_disk_are_those_of_the_bucket_that_it_names(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    table = Store(str(tmp_path), storage_options=s3.options, retry=QUICK)
    assert fetch_file(table, row_of("s3://bucket/src/a.jpg")) == b"picture"


def test_a_store_that_refuses_everything_is_away(s3: S3Server) -> None:
    with faulty_proxy(s3) as proxy:
        options = s3.through(proxy.endpoint).options
        store = SourceStore("s3://bucket/src", storage_options=options, retry=QUICK)
        assert fetch_file(store, row_of("a.jpg")) == b"picture"
        proxy.set(forbidden_seconds=60)
        with pytest.raises(TransientStorageError) as caught:
            fetch_file(store, row_of("b.jpg"), QUARANTINE)
        assert not isinstance(caught.value, UnreadableObjectError), "what was read before the outage proves nothing"
        proxy.calm()
        assert fetch_file(store, row_of("b.jpg")) == b"picture"


def test_a_tar_that_cannot_be_read_is_one_failure(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.pipeline.sources.test_tar import labelled, tar_bytes

    tars = disk / "tars"
    tars.mkdir()
    for name in ("a.tar", "denied.tar"):
        (tars / name).write_bytes(tar_bytes(labelled(3)))
    source = open_source(f"{tars}/*.tar", QUARANTINE)
    rows = {row.path: row for row in source.list_rows()}
    assert len(list(source.read(rows["a.tar"]))) == 3
    (failed,) = source.read(rows["denied.tar"])
    assert isinstance(failed, FailedRecord) and (failed.sample_id, failed.error.reason) == ("denied.tar", Reason.UNREADABLE)
    stopping = open_source(f"{tars}/*.tar", SourceConfig())
    list(stopping.list_rows())
    with pytest.raises(UnreadableObjectError):
        list(stopping.read(rows["denied.tar"]))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.on_request()  # type: ignore[attr-defined]
        assert isinstance(self.server, Server)
        status = self.server.status
        if self.path.startswith("/forbidden"):
            status = 403
        if self.path.startswith("/flaky") and self.server.failures:
            status = self.server.failures.pop()
        if self.path.startswith("/silent"):
            self.server.released.wait(20)
        self.send_response(status)
        self.send_header("Content-Length", "7")
        self.end_headers()
        if self.path.startswith("/trickle"):
            self.wfile.write(b"pi")
            self.wfile.flush()
            self.server.released.wait(20)
            return
        self.wfile.write(b"picture")

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Handler)
        self.status = 200
        self.failures: list[int] = []
        """Statuses of the next answers for /flaky.jpg."""
        self.released = threading.Event()
        self.on_request: Callable[[], None] = lambda: None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the test."""


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(HostStore, "_witnesses", source_store.Witnesses())
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


@pytest.mark.parametrize("kind", ["dns", "refused", "http_403", "timeout", "too_slow"])
def test_a_foreign_host_that_fails_while_others_answer(web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("tokenshards.pipeline.storage.web_hosts.READ_SECONDS", 0.3)
    monkeypatch.setattr(source_store, "HOST_SECONDS", 0.6 if kind == "too_slow" else 60.0)
    if kind == "too_slow":
        monkeypatch.setattr("tokenshards.pipeline.storage.web_hosts.READ_SECONDS", 60.0)
    port = web.server_address[1]
    url = {
        "dns": "http://no-such-host.invalid/x.jpg",
        "refused": f"http://127.0.0.1:{closed_port()}/x.jpg",
        "http_403": f"http://127.0.0.1:{port}/forbidden.jpg",
        "timeout": f"http://127.0.0.1:{port}/silent.jpg",
        "too_slow": f"http://127.0.0.1:{port}/trickle.jpg",
    }[kind]
    store, other = Store(str(tmp_path), retry=QUICK), f"http://localhost:{port}/ok.jpg"
    # A client of its own, made with the bounds of this test.
    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem.cachable", False)
    monkeypatch.setattr("tokenshards.pipeline.sources.table_uris._stores", table_uris._Stores())
    with pytest.raises(BadInput) as caught:
        fetch_file(store, row_of(url), TRUSTED, others=[url, other])
    assert caught.value.reason == kind and "although other objects can be read" in caught.value.detail
    with pytest.raises(UnreadableObjectError) as stopped:
        fetch_file(store, row_of(url), STOP, others=[url, other])
    assert stopped.value.objects == (url,)


def test_a_silent_host_is_no_witness_of_itself(web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenshards.pipeline.storage.web_hosts.READ_SECONDS", 0.3)
    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem.cachable", False)
    monkeypatch.setattr("tokenshards.pipeline.sources.table_uris._stores", table_uris._Stores())
    host = f"http://127.0.0.1:{web.server_address[1]}"
    with pytest.raises(TransientStorageError) as caught:
        fetch_file(Store(str(tmp_path), retry=QUICK), row_of(f"{host}/silent.jpg"), TRUSTED, others=[f"{host}/ok.jpg"])
    assert not isinstance(caught.value, UnreadableObjectError)


@pytest.mark.parametrize("status", [403, 503])
@pytest.mark.parametrize("foreign", [True, False])
def test_what_can_be_read_after_the_probes_is_not_unreadable(web: Server, tmp_path: Path, status: int, foreign: bool) -> None:
    host = f"http://127.0.0.1:{web.server_address[1]}"
    store = Store(str(tmp_path), retry=QUICK) if foreign else SourceStore(host, retry=QUICK)
    place = f"{host}/" if foreign else ""
    assert fetch_file(store, row_of(f"{place}ok.jpg"), TRUSTED) == b"picture"
    busy_again = int(status == 503)  # a busy server gets all its retries again, any other one more attempt
    web.failures = [status] * (QUICK.attempts + busy_again)
    with pytest.raises(TransientStorageError) as caught:
        fetch_file(store, row_of(f"{place}flaky.jpg"), TRUSTED)
    assert not isinstance(caught.value, UnreadableObjectError) and web.failures == []


def test_a_network_that_is_away_quarantines_nothing(web: Server, tmp_path: Path) -> None:
    port = web.server_address[1]
    store, url = Store(str(tmp_path), retry=QUICK), f"http://127.0.0.1:{port}/x.jpg"
    others = [f"http://localhost:{port}/ok.jpg", f"http://127.0.0.1:{closed_port()}/y.jpg"]
    assert fetch_file(store, row_of(others[0]), TRUSTED) == b"picture"
    web.status = 503
    seen: list[set[str]] = []
    web.on_request = lambda: seen.append({found.stage for found in activities()})
    with pytest.raises(TransientStorageError) as caught:
        fetch_file(store, row_of(url), TRUSTED, others=others)
    assert not isinstance(caught.value, UnreadableObjectError)
    assert len(seen) >= 3 and all(WAITING_FOR_STORE in stages for stages in seen), "the reader is seen to wait, in its probes too"


def test_urls_to_probe_are_of_many_hosts() -> None:
    rows = [row_of(f"http://host{index % 3}/{index}.jpg") for index in range(200)]
    urls = urls_to_probe([*rows, row_of("plain.jpg"), row_of("s3://bucket/x")])
    assert len(urls) == 48 and len({url.split("/")[2] for url in urls[:3]}) == 3


def test_stores_of_hosts_are_bounded_and_shared_by_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_uris, "MAX_STORES", 8)
    stores, source = table_uris._Stores(), Store(str(tmp_path), retry=QUICK)
    monkeypatch.setattr(table_uris, "_stores", stores)
    for index in range(50):
        table_uris.locate(source, f"http://host{index}/x.jpg", TRUSTED)
    assert len(stores._kept) == 8
    first, _ = table_uris.locate(source, "http://host49/y.jpg", TRUSTED)
    for index in range(7):
        table_uris.locate(source, f"http://other{index}/x.jpg", TRUSTED)
    assert table_uris.locate(source, "http://host49/z.jpg", TRUSTED)[0] is first, "what was used last stays"

    all_at_once = threading.Barrier(16)

    class LateStore(HostStore):
        def __init__(self, url: str, **options: Any) -> None:
            all_at_once.wait(timeout=60)
            super().__init__(url, **options)

    monkeypatch.setattr(table_uris, "HostStore", LateStore)
    found: list[Store] = []
    threads = [threading.Thread(target=lambda: found.append(table_uris.locate(source, "http://new/x", TRUSTED)[0])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
