"""Stores on real S3 servers of two makes: verified puts, listings, errors that tell what is wrong, faults that heal."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from botocore.exceptions import ClientError
from fsspec.asyn import AsyncFileSystem

from tests.s3_servers import FaultyProxy, S3Server, faulty_proxy, moto_server, rclone_server
from tokenshards.pipeline.config import RetryConfig
from tokenshards.pipeline.errors import BadInput, ConfigError, MissingObjectError, Reason, StoreAccessError, TransientStorageError
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.fetch import fetch_file
from tokenshards.pipeline.storage import fsspec_requests as remote
from tokenshards.pipeline.storage import s3
from tokenshards.pipeline.storage.listing import Folder, Page, walk
from tokenshards.pipeline.storage.redaction import display_url, has_credentials, masked
from tokenshards.pipeline.storage.request_limit import RequestLimit
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.submit.forwarding import refuse_secret_urls

QUICK = RetryConfig(attempts=4, first_delay_seconds=0.01)
PATIENT = RetryConfig(attempts=12, first_delay_seconds=0.01, max_delay_seconds=0.05)


@pytest.fixture(scope="module", params=["moto", "rclone"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    running = moto_server() if request.param == "moto" else rclone_server(tmp_path_factory.mktemp("rclone"))
    with running as found:
        found.create_bucket("bucket")
        yield found


@pytest.fixture(scope="module")
def proxied(server: S3Server) -> Iterator[tuple[S3Server, FaultyProxy]]:
    with faulty_proxy(server, seed=5) as proxy:
        yield server.through(proxy.endpoint), proxy


@pytest.fixture
def proxy(proxied: tuple[S3Server, FaultyProxy]) -> Iterator[FaultyProxy]:
    proxied[1].calm()
    yield proxied[1]
    proxied[1].calm()


@pytest.fixture
def store(proxied: tuple[S3Server, FaultyProxy], proxy: FaultyProxy, request: pytest.FixtureRequest) -> Store:
    return Store(f"s3://bucket/{request.node.originalname}", storage_options=proxied[0].options, retry=QUICK)


def operations(proxy: FaultyProxy) -> dict[str, int]:
    found: dict[str, int] = proxy.report()["operations"]
    return found


def test_one_request_for_each_operation(store: Store, proxy: FaultyProxy) -> None:
    store.write("a/b c%d+é.bin", b"123")
    assert operations(proxy) == {"put": 1}, "the etag of the answer is the check"
    assert store.read("a/b c%d+é.bin") == b"123" and store.read("a/b c%d+é.bin", 1, 9) == b"23"
    assert operations(proxy) == {"put": 1, "get": 2}
    info = store.info("a/b c%d+é.bin")
    assert info is not None and (info.size, info.version, info.regular) == (3, hashlib.md5(b"123").hexdigest(), True)
    assert operations(proxy) == {"put": 1, "get": 2, "head": 1}
    assert [(entry.path, entry.version) for entry in store.list()] == [(info.path, info.version)]
    store.delete("a/b c%d+é.bin")
    store.delete("a/b c%d+é.bin")
    assert store.info("a/b c%d+é.bin") is None and list(store.list()) == []
    with pytest.raises(MissingObjectError, match="b c"):
        store.read("a/b c%d+é.bin")


def test_empty_objects_and_ranges_beyond_the_end(store: Store, proxy: FaultyProxy) -> None:
    store.write("empty", b"")
    store.write("three", b"123")
    proxy.calm()
    assert store.read("empty") == b"" == store.read("empty", 0, 5) == store.read("three", 3, 9)
    assert operations(proxy) == {"get": 3}


def test_a_large_object_goes_in_parts_and_never_half(store: Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data = os.urandom(12 << 20)
    store.write("large", data)
    assert operations(proxy) == {"multipart": 5, "head": 1}  # begin, three parts, complete
    assert store.read("large") == data and store.read("large", 5 << 20, (5 << 20) + 3) == data[5 << 20 : (5 << 20) + 3]
    proxy.set(internal_error=0.6)
    with pytest.raises(TransientStorageError):
        Store(store.location, storage_options=store.storage_options, retry=RetryConfig(attempts=1)).write("half", data)
    proxy.calm()
    assert store.info("half") is None
    proxy.set(lost=0.2)
    Store(store.location, storage_options=store.storage_options, retry=PATIENT).write("large", data[::-1])
    assert store.read("large") == data[::-1]


def test_a_mapped_file_can_be_put(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    for size in (1000, 11 << 20):
        (tmp_path / "file").write_bytes(os.urandom(size))
        with open(tmp_path / "file", "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            store.write("mapped", mapped)  # type: ignore[arg-type]
        assert store.read("mapped") == (tmp_path / "file").read_bytes()


def test_a_put_that_the_store_changed_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.fs.pipe_file
    monkeypatch.setattr(store.fs, "pipe_file", lambda path, data, **options: original(path, data[:-1] + b"?"))
    with pytest.raises(TransientStorageError, match="bytes that differ from"):
        store.write("x", b"123")


def tree(store: Store, paths: list[str]) -> set[str]:
    bucket, _, root = store.root.partition("/")
    client = S3Server("", store.storage_options["client_kwargs"]["endpoint_url"]).client()
    for path in paths:
        client.put_object(Bucket=bucket, Key=f"{root}/{path}", Body=b"1")
    return set(paths)


def test_listings_are_complete_whatever_the_shape(store: Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ["top.jpg", *(f"a/b{b}/c/x{x}.jpg" for b in range(3) for x in range(3)), *(f"many/{n:02d}/x.jpg" for n in range(20))]
    wanted = tree(store, shape)
    monkeypatch.setattr(s3, "PAGE_KEYS", 4)
    for fanout, many in ((16, 500), (2, 500), (2, 3)):
        monkeypatch.setattr(s3, "FANOUT", fanout)
        monkeypatch.setattr(s3, "MANY_FOLDERS", many)
        found = [entry.path for entry in store.list()]
        assert len(found) == len(wanted) and set(found) == wanted, (fanout, many)
    assert sorted(entry.path for entry in store.list("a/b1")) == [f"a/b1/c/x{x}.jpg" for x in range(3)]
    assert list(store.glob("many/0?/*.jpg")) == [f"many/{n:02d}/x.jpg" for n in range(10)]
    assert next(store.list("many"), None) is not None  # and the requests in flight are waited for
    assert operations(proxy)["list"] > 10


def test_a_pattern_loses_no_folder_to_an_outage(store: Store, proxy: FaultyProxy) -> None:
    wanted = sorted(tree(store, [f"data/{folder}/{part}.tar" for folder in range(9) for part in range(2)]))
    tree(store, ["data/top.tar", "data/0/deeper/x.tar", "data/0/x.jpg"])
    proxy.calm()
    assert list(store.glob("data/*/*.tar")) == wanted
    assert operations(proxy) == {"list": 10}, "folders that cannot match are not listed"
    patient = Store(store.location, storage_options=store.storage_options, retry=PATIENT)
    proxy.set(slow_down=0.4)
    assert list(patient.glob("data/*/*.tar")) == wanted
    proxy.calm()
    proxy.set(forbidden_seconds=60)
    with pytest.raises(TransientStorageError, match="it continues"):
        list(store.glob("data/*/*.tar"))


def test_a_missing_bucket_is_one_sentence_and_never_a_missing_object(proxied: tuple[S3Server, FaultyProxy], proxy: FaultyProxy) -> None:
    gone = Store("s3://no-such-bucket/x", storage_options=proxied[0].options)
    began = time.monotonic()
    for use in (
        lambda: gone.read("a.jpg"),
        lambda: gone.write("a.jpg", b"1"),
        lambda: gone.info("a.jpg"),
        lambda: list(gone.list()),
        lambda: fetch_file(gone, PlanRow(kind="file", sample_id="a", path="a.jpg", size=3, version="", inputs=1)),
    ):
        with pytest.raises(StoreAccessError, match="there is no such bucket at http"):
            use()
    assert proxy.report()["requests"] <= 6, f"no retries, for {time.monotonic() - began:.0f} s"


def test_a_uri_of_a_table_that_names_no_bucket_is_one_bad_input(server: S3Server, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("a.jpg", b"123")

    def fetch(path: str) -> bytes:
        return fetch_file(store, PlanRow(kind="file", sample_id="a", path=path, size=-1, version="", inputs=1))

    assert fetch(f"{store.url}/a.jpg") == b"123"
    for path, reason in (
        ("s3://no-such-bucket/a.jpg", "missing: s3://no-such-bucket/a.jpg"),
        ("s3://No Bucket!/a.jpg", "bad_uri: s3://No Bucket!/a.jpg"),
        ("s3:///a.jpg", "bad_uri: "),
    ):
        with pytest.raises(BadInput, match=reason):
            fetch(path)
    again = pickle.loads(pickle.dumps(StoreAccessError("it is gone", bad_name=Reason.MISSING)))
    assert (str(again), again.bad_name) == ("it is gone", Reason.MISSING), "workers send it to the driver"
    for name, value in server.env.items():
        monkeypatch.setenv(name, "" if "KEY" in name else value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    elsewhere = PlanRow(kind="file", sample_id="a", path="s3://bucket/a.jpg", size=-1, version="", inputs=1)
    with pytest.raises(StoreAccessError, match="there are no credentials"):
        fetch_file(Store("memory://elsewhere", retry=QUICK), elsewhere)


def test_missing_credentials_are_one_sentence(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**server.env, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreAccessError, match="there are no credentials for S3"):
        Store("s3://bucket", retry=QUICK).read("x")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreAccessError, match="nobody"):
        Store("s3://bucket", retry=QUICK).read("x")


@pytest.mark.parametrize("endpoint", ["http://me:topsecret@no host:9000", "me:topsecret@host", "https://me:topsecret@host:port"])
def test_a_password_in_the_endpoint_is_in_no_message(endpoint: str) -> None:
    store = Store("s3://bucket", storage_options={"key": "k", "secret": "s", "endpoint_url": endpoint}, retry=QUICK)
    with pytest.raises(TransientStorageError, match=r"s3://bucket/x: .*host") as caught:
        store.read("x")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("fault", ["slow_down", "internal_error", "reset", "truncated", "lost"])
def test_faults_heal(store: Store, proxy: FaultyProxy, fault: str) -> None:
    patient = Store(store.location, storage_options=store.storage_options, retry=PATIENT)
    data = os.urandom(100_000)
    patient.write("first", data)
    proxy.set(**{fault: 0.4})
    for index in range(6):
        patient.write(f"x{index}", data)
        assert patient.read(f"x{index}") == data == patient.read("first") and patient.read("first", 10, 20) == data[10:20]
    assert len(list(patient.list())) == 7
    assert proxy.report()["injected"][fault] > 0


def test_a_while_of_403_is_an_outage_and_each_attempt_one_request(store: Store, proxy: FaultyProxy) -> None:
    store.write("x", b"1")
    proxy.calm()
    proxy.set(forbidden_seconds=60)
    with pytest.raises(TransientStorageError, match="it continues"):
        fetch_file(store, PlanRow(kind="file", sample_id="x", path="x", size=1, version="", inputs=1))
    assert proxy.report()["requests"] == QUICK.attempts
    proxy.calm()
    proxy.set(forbidden_seconds=0.05)
    assert Store(store.location, storage_options=store.storage_options, retry=PATIENT).read("x") == b"1"


def test_changed_content_of_the_same_size_is_found_by_its_etag(store: Store) -> None:
    store.write("x", b"123")
    info = store.info("x")
    assert info is not None
    row = PlanRow(kind="file", sample_id="x", path="x", size=info.size, version=info.version, inputs=1)
    assert fetch_file(store, row) == b"123"
    store.write("x", b"124")
    with pytest.raises(BadInput, match="changed_since_plan"):
        fetch_file(store, row)
    assert fetch_file(store, replace(row, version="")) == b"124"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"endpoint": "http://host:9000"}, "storage option endpoint is not an option of S3; expected endpoint_url"),
        ({"region": "eu-west-1"}, 'region is not an option of S3; expected client_kwargs={"region_name": "eu-west-1"}'),
        ({"aws_secret_access_key": "topsecret"}, "aws_secret_access_key is not an option of S3; expected secret"),
        ({"nonsense": 1}, "nonsense is not an option of S3; expected one of anon, "),
        ({"client_kwargs": "foo"}, 'client_kwargs is of type str; expected a JSON object, such as client_kwargs={"region_name"'),
        ({"config_kwargs": "foo"}, "config_kwargs is of type str; expected a JSON object, such as config_kwargs={"),
        ({"s3_additional_kwargs": 1}, "s3_additional_kwargs is of type int; expected a JSON object, such as s3_additional_kwargs={}"),
        ({"client_kwargs": {"region": "x"}}, "client_kwargs.region is not an option of S3; expected client_kwargs={"),
        ({"config_kwargs": {"timeout": 1}}, "config_kwargs.timeout is not an option of S3; expected one of "),
        ({"secret": 1e5}, "secret is of type float; expected text"),
    ],
)
def test_a_wrong_option_is_named_at_once_and_its_value_hidden(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Store("s3://bucket", storage_options=options)
    assert says in str(caught.value) and not any(hidden in str(caught.value) for hidden in ("topsecret", "100000"))


def test_right_options_pass_and_a_secret_of_digits_is_text(server: S3Server) -> None:
    options = {**server.options, "profile": None, "config_kwargs": None, "use_ssl": False, "max_concurrency": 2, "listings_expiry_time": 1}
    options["client_kwargs"] = {**options["client_kwargs"], "verify": False}
    assert Store("s3://bucket", storage_options=options).info("nothing") is None
    digits = Store("s3://bucket", storage_options={"key": 123, "secret": 45678})
    assert digits.storage_options == {"key": "123", "secret": "45678"} and (digits.fs.key, digits.fs.secret) == ("123", "45678")


def test_each_web_host_has_a_limit_of_its_own() -> None:
    first, second, again = (Store(url) for url in ("https://a.org/x", "https://b.org/x", "https://a.org/y"))
    assert first._limit is again._limit is not second._limit
    one, other, same = (Store(f"s3://{bucket}/x") for bucket in ("a", "b", "a"))
    assert one._limit is same._limit is not other._limit


class ListingClient(AsyncFileSystem):  # type: ignore[misc]
    """An asynchronous client with a cache of listings, as those of Google's and Azure's stores; its answers take some time."""

    protocol = "listingtest"
    objects: ClassVar[dict[str, bytes]] = {}

    async def _ls(self, path: str, detail: bool = True, **options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] | None = self.dircache.get(path)
        if found is None:
            await asyncio.sleep(0.2)
            found = [{"name": name, "size": len(data), "type": "file"} for name, data in self.objects.items()]
            self.dircache[path] = found
        return found

    async def _pipe_file(self, path: str, data: bytes, **options: Any) -> None:
        await asyncio.sleep(len(data) / 2_000_000)
        self.objects[path] = data

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        await asyncio.sleep(1.0 if path.endswith("slow") else len(self.objects[path]) / 2_000_000)
        return self.objects[path][start:end]

    async def _info(self, path: str, **options: Any) -> dict[str, Any]:
        await asyncio.sleep(1.0 if path.endswith("slow") else 0)
        return {"name": path, "size": len(self.objects[path]), "type": "file"}


@pytest.fixture
def listing_client() -> Iterator[type[ListingClient]]:
    fsspec.register_implementation("listingtest", ListingClient, clobber=True)
    yield ListingClient
    ListingClient.objects.clear()


def test_listings_are_not_cached_but_for_those_who_ask_for_it(listing_client: type[ListingClient]) -> None:
    asked = {"use_listings_cache": True, "skip_instance_cache": False}
    for options, found in (({}, ["a", "b"]), (asked, ["a"])):
        here, there = (Store("listingtest://bucket", storage_options=options, retry=QUICK) for _ in range(2))
        assert (here.fs is there.fs) == bool(options)
        listing_client.objects.clear()
        listing_client.objects["bucket/a"] = b"1"
        assert [info.path for info in here.list()] == ["a"]
        listing_client.objects["bucket/b"] = b"1"
        assert [info.path for info in here.list()] == [info.path for info in there.list()] == found


def test_large_objects_and_listings_get_the_time_that_they_need(
    listing_client: type[ListingClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 0.1)
    store = Store("listingtest://bucket", retry=RetryConfig(attempts=1))
    store.write("large", bytes(400_000))
    assert [info.size for info in store.list()] == [400_000]
    assert len(store.read("large", 0, 400_000)) == 400_000
    listing_client.objects["bucket/slow"] = b""
    for request in (lambda: store.info("slow"), lambda: store.read("slow"), lambda: store.read("slow", 0, 1)):
        with pytest.raises(TransientStorageError, match="FSTimeoutError: it did not end in time"):
            request()


@pytest.mark.parametrize("secret", ["topsecret", "top/secret", "/topsecret/", "topsecret/+"])
def test_credentials_in_an_s3_url_are_refused_unseen(secret: str, tmp_path: Path) -> None:
    url = f"s3://akey:{secret}@bucket/x"
    with pytest.raises(ConfigError, match="s3://bucket/x has credentials in the URL") as caught:
        Store(url)
    with pytest.raises(BadInput, match="bad_uri: s3://bucket/x has credentials in the URL") as refused:
        fetch_file(Store(str(tmp_path)), PlanRow(kind="file", sample_id="a", path=url, size=3, version="", inputs=1))
    with pytest.raises(ConfigError, match="--to is a URL with user:password@") as unsent:
        refuse_secret_urls("--to", [url])
    for message in (str(caught.value), str(refused.value), str(unsent.value), masked(f"no {url}", {})):
        assert "topsecret" not in message and "top/secret" not in message and "akey" not in message


@pytest.mark.parametrize("url", ["s3://bucket/a:b@c/x", "s3://arn:aws:s3:us-west-2:1:accesspoint/point/a@b", "s3://bucket/x"])
def test_an_at_sign_in_a_key_is_no_password(url: str) -> None:
    assert not has_credentials(url) and display_url(url) == url == masked(url, {})
    refuse_secret_urls("--to", [url])


def test_messages_of_clients_are_masked() -> None:
    options = {"key": "AKIAKEY", "client_kwargs": {"aws_secret_access_key": "topsecret", "region_name": "us-east-1"}}
    text = "AKIAKEY/topsecret in us-east-1 at https://user:pw@host/x.jpg?X-Amz-Signature=abc, said 403"
    assert masked(text, options) == "***/*** in us-east-1 at https://host/x.jpg, said 403"
    azure = "az://c/x.jpg (https://a.blob.core.windows.net/c/x.jpg?spr=https,http;x=[1]&sig=abc): 403, see 'https://host/?sig=abc'"
    assert masked(azure, {}) == "az://c/x.jpg (https://a.blob.core.windows.net/c/x.jpg): 403, see 'https://host/'"


def test_the_limit_of_requests_halves_when_throttled_and_recovers_slowly() -> None:
    clock = [0.0]
    limit = RequestLimit(most=16, clock=lambda: clock[0])
    limit.throttled()
    limit.throttled()  # of the same burst
    assert limit.value == 8
    clock[0] += 2
    limit.throttled()
    assert limit.value == 4
    for _ in range(8 * 4):
        with limit.slot():
            pass
    assert limit.value == 5, "one more after eight rounds"
    for _ in range(10_000):
        with limit.slot():
            pass
    assert limit.value == 16, "never above what it began with"


def test_a_walk_keeps_few_pages_and_passes_errors_on() -> None:
    asked: list[str] = []

    def fetch(folder: Folder) -> Page:
        asked.append(folder.path)
        if folder.path == "bad":
            raise TransientStorageError("an outage")
        further = [Folder(f"{folder.path}{n}", folder.depth + 1) for n in range(10)] if folder.depth < 2 else []
        return Page([{"name": folder.path}], further)

    assert len([page for page in walk(Folder("x"), fetch)]) == 111
    asked.clear()
    pages = walk(Folder("x"), fetch, threads=4)
    next(pages)
    next(pages)
    pages.close()  # type: ignore[attr-defined]
    assert len(asked) < 12
    with pytest.raises(TransientStorageError):
        list(walk(Folder("x"), lambda folder: fetch(Folder("bad") if folder.depth else folder)))


def test_a_key_with_a_url_inside_is_listed_and_read_under_its_own_name(store: Store, proxied: tuple[S3Server, FaultyProxy]) -> None:
    if proxied[0].name == "rclone":
        pytest.skip("rclone keeps objects as files, which have no such names")
    store.write("scraped/http://host/x.jpg", b"content")
    assert [info.path for info in store.list()] == ["scraped/http://host/x.jpg"]
    row = PlanRow(kind="file", sample_id="x", path="scraped/http://host/x.jpg", size=7, version="", inputs=1)
    assert fetch_file(store, row) == b"content"


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        ("KeyTooLongError", MissingObjectError, "S3 does not allow a key as long as this"),
        ("InvalidObjectState", TransientStorageError, "the object is archived"),
        ("NoSuchBucket", StoreAccessError, "there is no such bucket"),
    ],
)
def test_answers_of_s3_that_no_retry_mends(code: str, kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("s3://bucket/folder", storage_options={"anon": True, "endpoint_url": "http://127.0.0.1:1"}, retry=RetryConfig(attempts=8))
    asked = []

    def answer(full: str, start: int | None, end: int | None, *, size: int = 0) -> bytes:
        asked.append(full)
        raise ClientError({"Error": {"Code": code, "Message": "said"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "GetObject")

    monkeypatch.setattr(store._remote, "read", answer)
    with pytest.raises(kind, match=f"s3://bucket/folder/a.jpg: .*{says}" if code != "NoSuchBucket" else says) as caught:
        store.read("a.jpg")
    assert len(asked) == 1
    if isinstance(caught.value, MissingObjectError):
        assert caught.value.object_path == "a.jpg", "below the root of its store"


def test_a_name_that_no_bucket_can_have() -> None:
    with pytest.raises(StoreAccessError, match="3 to 63 lowercase letters, digits, dots or hyphens"):
        Store("s3://No Bucket!/x", storage_options={"key": "k", "secret": "s"}, retry=QUICK).read("a.jpg")
