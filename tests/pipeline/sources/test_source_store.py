"""One object that cannot be read is told from a store that is away: on real servers, and on a disk."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.sources.web_server import Server
from tests.s3_servers import S3Server, faulty_proxy, moto_server
from tokenshards.pipeline.config import RetryConfig, SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.records import FailedRecord, PlanRow
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.fetch import fetch_file
from tokenshards.pipeline.sources.source_store import SourceStore
from tokenshards.pipeline.storage.store import Store

QUICK = RetryConfig(attempts=2, first_delay_seconds=0.0)
QUARANTINE = SourceConfig(unreadable="quarantine", allow_private_hosts=True)


def row_of(path: str) -> PlanRow:
    return PlanRow(kind="file", sample_id=path, path=path, size=-1, version="", inputs=1)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file that may not be read, as for users that are not root."""
    for name in ("a.jpg", "b.jpg", "denied.jpg"):
        (tmp_path / name).write_bytes(b"content")
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
    assert fetch_file(store, row_of("a.jpg"), QUARANTINE) == b"content"
    assert time.monotonic() - began < 20, "no attempts with pauses for what no pause mends"


def test_where_nothing_can_be_read_it_is_an_outage(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENY_ALL", "1")
    with pytest.raises(TransientStorageError) as caught:
        fetch_file(SourceStore(str(disk), retry=QUICK), row_of("denied.jpg"), QUARANTINE)
    assert not isinstance(caught.value, UnreadableObjectError)


def test_stores_of_inputs_travel_to_workers() -> None:
    store = pickle.loads(pickle.dumps(SourceStore("memory://x", retry=QUICK)))
    assert isinstance(store, SourceStore) and store.info("nothing") is None


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        server.create_bucket("bucket")
        client = server.client()
        for name in ("a.jpg", "b.jpg"):
            client.put_object(Bucket="bucket", Key=f"src/{name}", Body=b"content")
        client.put_object(Bucket="bucket", Key="src/cold.jpg", Body=b"content", StorageClass="GLACIER")
        client.put_object(Bucket="bucket", Key="alone/cold.jpg", Body=b"content", StorageClass="GLACIER")
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
    assert fetch_file(table, row_of("s3://bucket/src/a.jpg")) == b"content"


def test_a_store_that_refuses_everything_is_away(s3: S3Server) -> None:
    with faulty_proxy(s3) as proxy:
        options = s3.through(proxy.endpoint).options
        store = SourceStore("s3://bucket/src", storage_options=options, retry=QUICK)
        assert fetch_file(store, row_of("a.jpg")) == b"content"
        proxy.set(forbidden_seconds=60)
        with pytest.raises(TransientStorageError) as caught:
            fetch_file(store, row_of("b.jpg"), QUARANTINE)
        assert not isinstance(caught.value, UnreadableObjectError), "what was read before the outage proves nothing"
        proxy.calm()
        assert fetch_file(store, row_of("b.jpg")) == b"content"


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


@pytest.mark.parametrize("status", [403, 503])
def test_what_can_be_read_after_the_probes_is_not_unreadable(web: Server, status: int) -> None:
    store = SourceStore(f"http://127.0.0.1:{web.server_address[1]}", retry=QUICK)
    assert fetch_file(store, row_of("ok.jpg")) == b"content"
    busy_again = int(status == 503)  # a busy server gets all its retries again, any other one more attempt
    web.failures = [status] * (QUICK.attempts + busy_again)
    with pytest.raises(TransientStorageError) as caught:
        fetch_file(store, row_of("flaky.jpg"))
    assert not isinstance(caught.value, UnreadableObjectError) and web.failures == []
