"""Stores: whole objects, retries, honest errors, listings without surprises."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenshards.pipeline.config import RetryConfig
from tokenshards.pipeline.errors import ConfigError, DiskFullError, MissingObjectError, TransientStorageError
from tokenshards.pipeline.storage.redaction import masked
from tokenshards.pipeline.storage.store import TEMPORARY_PREFIX, Store, display_url, open_parent

QUICK = RetryConfig(attempts=3, first_delay_seconds=0.001)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root") if request.param == "local" else f"memory://{tmp_path.name}", retry=QUICK)


def test_write_read_info_list_delete(store: Store) -> None:
    store.write("a/b.bin", b"123")
    store.write("a/b.bin", b"4567")
    store.write("c.bin", b"")
    assert store.read("a/b.bin") == b"4567" and store.read("a/b.bin", 1, 3) == b"56"
    info = store.info("a/b.bin")
    assert info is not None and (info.path, info.size, info.regular) == ("a/b.bin", 4, True) and info.version
    assert sorted(entry.path for entry in store.list()) == ["a/b.bin", "c.bin"]
    assert [entry.path for entry in store.list("a")] == ["a/b.bin"]
    assert list(store.list("nothing")) == []
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert store.info("a/b.bin") is None
    with pytest.raises(MissingObjectError, match=r"a/b\.bin"):
        store.read("a/b.bin")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.tar", ["top.tar"]),
        ("data/?/*.tar", ["data/a/1.tar", "data/a/2.tar", "data/b/1.tar"]),
        ("data/a/[2-9].tar", ["data/a/2.tar"]),
        ("data/a*/x/*", ["data/a/x/3.tar"]),
        ("data/**/?.tar", ["data/a/1.tar", "data/a/2.tar", "data/a/x/3.tar", "data/b/1.tar"]),
        ("**/1.tar", ["data/a/1.tar", "data/b/1.tar"]),
        ("data/{odd*", ["data/{odd.tar"]),
        ("nothing/*.tar", []),
        ("data/*", ["data/{odd.tar"]),
    ],
)
def test_patterns(store: Store, pattern: str, found: list[str]) -> None:
    for path in ("top.tar", "data/a/1.tar", "data/a/2.tar", "data/a/x/3.tar", "data/b/1.tar", "data/{odd.tar"):
        store.write(path, b"1")
    assert list(store.glob(pattern)) == found


def test_a_pattern_that_cannot_be(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"expected one such as train/\*\*/\*\.tar"):
        list(store.glob("a**/b.tar"))


def test_a_failed_write_leaves_the_old_object_and_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path), retry=QUICK)
    store.write("x", b"old")

    def fail(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(TransientStorageError, match="No space left"):
        store.write("x", b"new")
    monkeypatch.undo()
    assert store.read("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_store_that_recovers_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://recovers", retry=QUICK)
    store.write("x", b"1")
    original, failures = store.fs.cat_file, [ConnectionError("reset"), TimeoutError("slow")]

    def flaky(*arguments: object, **options: object) -> bytes:
        if failures:
            raise failures.pop()
        return original(*arguments, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(store.fs, "cat_file", flaky)
    assert store.read("x") == b"1" and not failures


def test_a_store_that_asks_to_slow_down_gets_fewer_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowDownError(Exception):
        status = 503

    def fail_once(*arguments: object, **options: object) -> bytes:
        monkeypatch.undo()
        raise SlowDownError

    store = Store("memory://slow-down", retry=QUICK)
    store.write("x", b"1")
    before = store._limit.value
    monkeypatch.setattr(store.fs, "cat_file", fail_once)
    assert store.read("x") == b"1" and store._limit.value == before // 2


def test_a_short_put_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://short", retry=QUICK)
    original = store.fs.pipe_file
    monkeypatch.setattr(store.fs, "pipe_file", lambda path, data: original(path, data[:-1]))
    with pytest.raises(TransientStorageError, match="holds 2 bytes after a put of 3"):
        store.write("x", b"123")


def test_listing_of_odd_folders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.jpg").write_bytes(b"1")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / f"{TEMPORARY_PREFIX}abc").write_bytes(b"half")
    found = {info.path: info for info in Store(str(tmp_path)).list()}
    assert "sub/x.jpg" in found and len(found) < 20
    assert not found["broken.jpg"].regular and not found["pipe.jpg"].regular
    assert not any(TEMPORARY_PREFIX in path for path in found)
    assert any(TEMPORARY_PREFIX in info.path for info in Store(str(tmp_path)).list(temporary=True))


def test_a_listing_that_fails_in_its_middle_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailingFolder:
        def __init__(self, path: str) -> None:
            self._inner = scandir(path)

        def __enter__(self) -> FailingFolder:
            return self

        def __exit__(self, *_: object) -> None:
            self._inner.close()

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            yield next(self._inner)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    scandir = os.scandir
    for name in ("a", "b"):
        (tmp_path / name).touch()
    monkeypatch.setattr(os, "scandir", FailingFolder)
    with pytest.raises(TransientStorageError, match=f"{tmp_path}: cannot be listed"):
        list(Store(str(tmp_path)).list())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@host/bucket/a", "s3://host/bucket/a"),
        ("https://host/a.jpg?X-Amz-Signature=abc", "https://host/a.jpg"),
        ("/plain/path?odd", "/plain/path?odd"),
    ],
)
def test_secrets_are_not_shown(url: str, shown: str) -> None:
    assert display_url(url) == shown


def test_an_unknown_protocol_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"nosuch://x.*expected a path or a URL"):
        Store("nosuch://x")


def test_a_link_to_an_outer_folder_doubles_nothing(tmp_path: Path) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "x.png").write_bytes(b"1")
    (tmp_path / "root" / "a" / "up").symlink_to("..")
    (tmp_path / "root" / "b").symlink_to("a")  # another name of a folder is taken
    assert sorted(info.path for info in Store(str(tmp_path / "root")).list()) == ["a/x.png", "b/x.png"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(MissingObjectError, match="a part of its path is a file"):
        Store(str(tmp_path / "out")).write("plan/x.json", b"{}")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    sync = os.fsync

    def of_files_alone(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    Store(str(tmp_path), retry=QUICK).write("x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.EACCES, TransientStorageError, "no permission to write it"),
        (errno.ENOSPC, DiskFullError, "no room"),
        (errno.EDQUOT, DiskFullError, "no room"),
    ],
)
def test_no_right_and_no_room_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], says: str
) -> None:
    attempts = []

    def fail(source: object, target: object) -> None:
        attempts.append(source)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(kind, match=says) as caught:
        Store(str(tmp_path), retry=RetryConfig(attempts=8)).write("x", b"1")
    assert len(attempts) == 1 and os.listdir(tmp_path) == [] and "the network" not in str(caught.value)


def test_a_remote_store_without_room_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class FullError(Exception):
        status = 507

    def fail(*_: object, **__: object) -> None:
        attempts.append(1)
        raise FullError

    attempts: list[int] = []
    store = Store("memory://full", retry=RetryConfig(attempts=8))
    monkeypatch.setattr(store.fs, "pipe_file", fail)
    with pytest.raises(DiskFullError, match="no room"):
        store.write("x", b"1")
    assert len(attempts) == 1


def test_a_server_that_cannot_be_reached_when_its_store_is_opened() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(TransientStorageError, match="its store cannot be reached .*ConnectionRefusedError"):
        Store(f"ftp://127.0.0.1:{port}/images")


@pytest.mark.parametrize(("folder", "name"), [("/", "x.pt"), (".", "x.pt"), ("a/b", "x.pt"), ("memory://a", "x.pt")])
def test_the_folder_of_one_file(folder: str, name: str) -> None:
    url = {"/": f"/{name}", ".": name}.get(folder, f"{folder}/{name}")
    store, found = open_parent(url)
    assert (store.location, found) == (folder, name)


def test_plain_words_among_the_options_may_be_shown_and_secrets_may_not() -> None:
    options = {"config_kwargs": {"s3": {"addressing_style": "path"}}, "secret": "path-of-secrets", "headers": {"Authorization": "letters"}}
    text = "the path of letters is path-of-secrets"
    assert masked(text, options) == "the path of *** is ***"
    assert masked("12345 at 54321", {"password": 12345, "port": 54321, "jwt": ["hidden"]}) == "*** at 54321"
