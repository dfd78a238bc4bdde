"""fetch_file and fetch_ahead: permanent causes become BadInput, outages do not, order and bounds hold."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from tokenshards.pipeline.config import RetryConfig, SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, SourceError, Stage, TransientStorageError
from tokenshards.pipeline.records import ImageRecord, PlanRow
from tokenshards.pipeline.sources.base import check_unchanged, file_record
from tokenshards.pipeline.sources.fetch import UNKNOWN_BYTES, expected_bytes, fetch_ahead, fetch_file
from tokenshards.pipeline.sources.hosts.uris import locate
from tokenshards.pipeline.sources.location import open_source
from tokenshards.pipeline.storage import store as store_module
from tokenshards.pipeline.storage.store import ObjectInfo, Store

QUICK = RetryConfig(attempts=2, first_delay_seconds=0.0)
TRUSTED = SourceConfig(allow_private_hosts=True)


def row_of(path: str, size: int = -1, version: str = "") -> PlanRow:
    return PlanRow(kind="file", sample_id=path, path=path, size=size, version=version, inputs=1)


def planned(store: Store, path: str) -> PlanRow:
    info = store.info(path)
    assert info is not None
    return row_of(path, info.size, info.version)


def reason(store: Store, row: PlanRow, **options: int) -> Reason:
    with pytest.raises(BadInput) as caught:
        fetch_file(store, row, **options)
    assert caught.value.stage == Stage.FETCH and caught.value.detail
    return caught.value.reason


@pytest.fixture
def local(tmp_path: Path) -> Store:
    (tmp_path / "a.jpg").write_bytes(b"content")
    return Store(str(tmp_path), retry=QUICK)


def test_local_file(local: Store) -> None:
    assert fetch_file(local, planned(local, "a.jpg")) == b"content"
    assert fetch_file(local, row_of("a.jpg")) == b"content"


def test_empty_local_file(local: Store, tmp_path: Path) -> None:
    (tmp_path / "b.jpg").touch()
    assert fetch_file(local, planned(local, "b.jpg")) == b""


def test_what_is_no_file_never_blocks(local: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket must be short
        try:
            server.bind("socket.jpg")
        finally:
            os.chdir(here)
        for name in ("pipe.jpg", "folder.jpg", "socket.jpg"):
            assert reason(local, row_of(name)) == Reason.NOT_A_FILE
    assert reason(local, row_of("/dev/null")) == Reason.NOT_A_FILE


def test_missing_local_files(local: Store, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name in ("gone.jpg", "a.jpg/inside.jpg", "broken.jpg", "loop.jpg", "x" * 300):
        assert reason(local, row_of(name)) == Reason.MISSING


def test_names_that_no_file_can_have(local: Store) -> None:
    assert reason(local, row_of("nul\0.jpg")) == Reason.BAD_URI
    assert reason(local, row_of("lone-\ud800.jpg")) == Reason.BAD_URI
    assert reason(local, row_of("")) == Reason.BAD_URI


def test_a_name_that_is_not_utf8(local: Store, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    (tmp_path / name).write_bytes(b"content")
    assert fetch_file(local, planned(local, name)) == b"content"
    assert local.place(name).endswith("/\\udcff.jpg")


def test_changed_since_the_plan(local: Store, tmp_path: Path) -> None:
    row = planned(local, "a.jpg")
    (tmp_path / "a.jpg").write_bytes(b"longer image")
    assert reason(local, row) == Reason.CHANGED_SINCE_PLAN
    (tmp_path / "a.jpg").write_bytes(b"CONTENT")
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    assert reason(local, row) == Reason.CHANGED_SINCE_PLAN
    assert fetch_file(local, replace(row, version="")) == b"CONTENT"


def test_too_large(local: Store) -> None:
    row = planned(local, "a.jpg")
    assert fetch_file(local, row, max_bytes=7) == b"content"
    assert reason(local, row, max_bytes=6) == Reason.TOO_LARGE
    assert reason(local, row_of("a.jpg"), max_bytes=6) == Reason.TOO_LARGE


def test_absolute_local_paths(local: Store, tmp_path: Path) -> None:
    for path in (str(tmp_path / "a.jpg"), f"file://{tmp_path}/a.jpg"):
        assert fetch_file(local, row_of(path)) == b"content"
    assert reason(local, row_of(str(tmp_path / "gone.jpg"))) == Reason.MISSING


@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}", "//{}"])
def test_a_table_in_a_store_may_not_name_local_files(tmp_path: Path, form: str) -> None:
    (tmp_path / "credentials").write_bytes(b"secret")
    with pytest.raises(BadInput, match="bad_uri: .*is a local file, but the table is in a remote store"):
        fetch_file(Store("memory://elsewhere", retry=QUICK), row_of(form.format(tmp_path / "credentials")))


@pytest.mark.parametrize(
    "url", ["zip://etc/passwd", "git://etc/x", "reference://x/y", "sftp://host/x", "ftp://host/x", "memory://x::file:///etc/hostname"]
)
def test_a_table_may_not_name_what_leads_anywhere(local: Store, url: str) -> None:
    assert reason(local, row_of(url)) == Reason.BAD_URI


def test_options_of_a_source_reach_only_stores_of_its_kind(local: Store) -> None:
    keys = {"key": "a", "secret": "b"}
    for source in (Store("s3://bucket/t", storage_options=keys), Store(local.url, storage_options=keys)):
        for url, options in (("s3://other/x", keys), ("https://host/x", {}), ("memory://host/x", {})):
            assert locate(source, url, SourceConfig())[0].storage_options == options, url


def test_bytes_of_files_outside_the_folder_of_a_table_are_not_kept(local: Store, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "credentials").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(outside)
    inside = [str(tmp_path / "a.jpg"), "a.jpg", f"file://{tmp_path}/a.jpg"]
    elsewhere = [str(outside / "credentials"), f"file://{outside}/credentials", f"{tmp_path}/../{outside.name}/credentials"]
    for path in (*inside, *elsewhere, str(tmp_path / "link" / "credentials"), "link/credentials"):
        record = file_record(local, row_of(path), fetch_file(local, row_of(path)))
        assert isinstance(record, ImageRecord) and record.keep_bytes == (path in inside), path
    listed = planned(local, "link/credentials")  # a folder of links is its owner's choice
    record = file_record(local, listed, fetch_file(local, listed))
    assert isinstance(record, ImageRecord) and record.keep_bytes


class CountingStore(Store):
    """A memory store that counts what it is asked, and serves MD5 etags as S3 does."""

    def __init__(self, url: str) -> None:
        super().__init__(url, retry=QUICK)
        self.asked: list[str] = []
        self.etag: str | None = None

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self.asked.append("read")
        return super().read(path, start, end)

    def info(self, path: str) -> ObjectInfo | None:
        self.asked.append("info")
        info = super().info(path)
        return info if info is None or self.etag is None else replace(info, version=self.etag)


@pytest.fixture
def remote() -> Store:
    store = CountingStore("memory://fetch-test")
    store.write("a.jpg", b"content")
    return store


def test_remote_object_costs_one_request(remote: CountingStore) -> None:
    etag = hashlib.md5(b"content").hexdigest()
    assert fetch_file(remote, row_of("a.jpg", 7, etag)) == b"content"
    assert fetch_file(remote, row_of("a.jpg")) == b"content"
    assert remote.asked == ["read", "read"]


def test_remote_object_that_changed(remote: CountingStore) -> None:
    assert reason(remote, row_of("a.jpg", 6)) == Reason.CHANGED_SINCE_PLAN
    assert reason(remote, row_of("a.jpg", 8)) == Reason.CHANGED_SINCE_PLAN
    remote.etag = hashlib.md5(b"content").hexdigest()
    assert reason(remote, row_of("a.jpg", 7, hashlib.md5(b"CONTENT").hexdigest())) == Reason.CHANGED_SINCE_PLAN


def test_an_etag_that_is_no_md5_of_the_content(remote: CountingStore) -> None:
    remote.etag = "0" * 32  # as of an encrypted object
    assert fetch_file(remote, row_of("a.jpg", 7, "0" * 32)) == b"content"
    assert remote.asked == ["read", "info"]


def test_remote_object_that_is_missing_or_too_large(remote: Store) -> None:
    assert reason(remote, row_of("gone.jpg", 7)) == Reason.MISSING
    assert reason(remote, row_of("a.jpg"), max_bytes=6) == Reason.TOO_LARGE
    assert reason(remote, row_of("a.jpg", 7), max_bytes=6) == Reason.TOO_LARGE
    assert fetch_file(remote, row_of("a.jpg"), max_bytes=7) == b"content"


def test_absolute_urls(local: Store, remote: Store) -> None:
    assert fetch_file(local, row_of("memory://fetch-test/a.jpg")) == b"content"
    assert reason(local, row_of("memory://fetch-test/gone.jpg")) == Reason.MISSING
    assert reason(local, row_of("nosuchscheme://host/a.jpg")) == Reason.BAD_URI
    assert reason(local, row_of("simplecache::memory://fetch-test/a.jpg")) == Reason.BAD_URI


def test_secrets_stay_out_of_messages(local: Store) -> None:
    with pytest.raises(BadInput) as caught:
        fetch_file(local, row_of("nosuchscheme://user:secret@host/a.jpg?token=secret"))
    assert "secret" not in str(caught.value)
    assert local.place("https://user:secret@host/a.jpg?token=secret") == "https://host/a.jpg"


class Handler(BaseHTTPRequestHandler):
    failures = 0
    """Requests that get a 503 from now on."""

    def do_GET(self) -> None:
        status = {"/ok.jpg": 200, "/empty.jpg": 200, "/gone.jpg": 404, "/1.tar": 200, "/2.tar": 200}.get(self.path.partition("?")[0], 503)
        if self.path == "/empty.jpg" and "Range" in self.headers:
            status = 416
        if Handler.failures > 0:
            Handler.failures -= 1
            status = 503
        body = b"content" if status == 200 and self.path.startswith("/ok.jpg") else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_web_addresses(local: Store, web: str) -> None:
    with pytest.raises(TransientStorageError):
        fetch_file(local, row_of(f"{web}/outage.jpg"), TRUSTED)
    assert fetch_file(local, row_of(f"{web}/ok.jpg"), TRUSTED) == b"content"
    assert fetch_file(local, row_of(f"{web}/ok.jpg?signature=1%2F2"), TRUSTED) == b"content"
    assert fetch_file(local, row_of(f"{web}/empty.jpg"), TRUSTED) == b""
    with pytest.raises(BadInput, match="missing"):
        fetch_file(local, row_of(f"{web}/gone.jpg"), TRUSTED)


def test_what_a_web_server_does_not_tell_is_no_missing_object(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, row = Store(web, retry=QUICK), row_of("ok.jpg", 7)
    monkeypatch.setattr(Handler, "failures", 2)  # HEAD and GET of the first attempt
    check_unchanged(store, row)
    assert Handler.failures == 0
    assert store.info("gone.jpg") is None
    with pytest.raises(TransientStorageError, match="503"):
        store.info("outage.jpg")
    monkeypatch.setattr(Handler, "failures", 100)
    with pytest.raises(TransientStorageError, match="503"):
        check_unchanged(store, row)


@pytest.mark.parametrize("name", ["gone", "outage"])
def test_signatures_stay_out_of_messages(local: Store, web: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "time", SimpleNamespace(sleep=lambda seconds: None))  # no pauses between attempts
    for store, path in ((local, f"{web}/{name}.jpg?X-Amz-Signature=secret"), (Store(web, retry=QUICK), f"{name}.jpg?sig=secret")):
        with pytest.raises((BadInput, TransientStorageError), match=f"{web}/{name}.jpg") as caught:
            fetch_file(store, row_of(path), TRUSTED)
        assert "secret" not in str(caught.value)
        assert store.place(path) == f"{web}/{name}.jpg"
    with pytest.raises((SourceError, TransientStorageError), match=name) as refused:
        open_source(f"{web}/{name}.tar?X-Amz-Signature=secret", SourceConfig())
    assert "secret" not in str(refused.value)


def test_a_pattern_is_no_name_to_ask_a_web_server_for(web: str) -> None:
    source = open_source(f"{web}/{{1..2}}.tar", SourceConfig())  # a pattern itself would be answered with 503
    assert [row.path for row in source.list_rows()] == ["1.tar", "2.tar"]


def test_a_closed_door_is_an_outage(local: Store) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(TransientStorageError):
        fetch_file(local, row_of(f"http://127.0.0.1:{port}/a.jpg"), TRUSTED)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_fetch_ahead_keeps_order_and_hands_over_bad_inputs(threads: int) -> None:
    def fetch(row: PlanRow) -> bytes:
        time.sleep(0.002 * (int(row.path) % 3))
        if row.path == "5":
            raise BadInput(Reason.MISSING, "five", Stage.FETCH)
        return row.path.encode()

    rows = [row_of(str(number)) for number in range(20)]
    got = list(fetch_ahead(iter(rows), fetch, threads=threads, ahead=6))
    assert [row for row, _ in got] == rows
    for row, result in got:
        assert isinstance(result, BadInput) if row.path == "5" else result == row.path.encode()


@pytest.mark.parametrize("threads", [0, 3])
def test_fetch_ahead_is_bounded(threads: int) -> None:
    taken: list[int] = []

    def rows() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    stream = fetch_ahead(rows(), lambda number: number, threads=threads, ahead=5)
    for number in range(10):
        assert next(stream) == (number, number)
        assert len(taken) <= number + 5
    stream.close()  # type: ignore[attr-defined]
    assert len(taken) <= 15


@pytest.mark.parametrize("threads", [0, 3])
def test_fetch_ahead_passes_outages_on_at_their_place_and_ends_its_threads(threads: int) -> None:
    def fetch(number: int) -> int:
        if number == 3:
            raise TransientStorageError("an outage")
        return number

    before = threading.active_count()
    stream = fetch_ahead(range(50), fetch, threads=threads, ahead=8)
    assert [next(stream)[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TransientStorageError):
        next(stream)
    assert threading.active_count() == before


def test_fetch_ahead_keeps_to_its_bytes() -> None:
    read: list[int] = []

    def fetch(size: int) -> bytes:
        read.append(size)
        return bytes(size)

    sizes = [10, 10, 10, 50, 10, 10, 10]
    stream = fetch_ahead(iter(sizes), fetch, threads=4, ahead=100, size_of=lambda size: size, budget_bytes=25)
    taken = 0
    for size, data in stream:
        assert isinstance(data, bytes) and len(data) == size
        taken += 1
        ahead = sizes[taken : len(read)]
        assert sum(ahead) <= 25 or ahead == [50], "one that is larger than the budget is read alone"
    assert read == sizes
    known = row_of("x", 7)
    assert (expected_bytes(known), expected_bytes(row_of("http://host/x"))) == (7, UNKNOWN_BYTES)


def test_closing_waits_for_reads_in_flight_and_drops_the_rest() -> None:
    started: list[int] = []
    before = threading.active_count()

    def fetch(number: int) -> int:
        started.append(number)
        time.sleep(0.02)
        return number

    stream = fetch_ahead(range(1000), fetch, threads=2, ahead=50)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(started) < 50


def test_an_empty_mount_point_is_an_outage_and_a_deleted_file_is_not(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "class_0").mkdir(parents=True)
    (disk / "class_0" / "a.jpg").write_bytes(b"content")
    store = Store(str(disk), retry=QUICK)
    rows = [row_of("class_0/a.jpg"), row_of(str(disk / "class_0" / "a.jpg"))]
    for row in rows:
        assert fetch_file(store, row) == b"content"
    (disk / "class_0" / "a.jpg").unlink()
    (disk / "class_0").rmdir()  # what is left when the disk goes is its mount point
    for row in rows:
        with pytest.raises(TransientStorageError, match=f"{disk}: this folder is empty.*mount it"):
            fetch_file(store, row)
    with pytest.raises(TransientStorageError, match="this folder is empty"):
        check_unchanged(store, rows[0])
    (disk / "other.jpg").touch()
    for row in rows:
        assert reason(store, row) == Reason.MISSING


def test_a_source_that_is_not_mounted_is_an_outage(tmp_path: Path) -> None:
    with pytest.raises(TransientStorageError, match="the folder of the source is gone"):
        fetch_file(Store(str(tmp_path / "unmounted"), retry=QUICK), row_of("a.jpg"))
