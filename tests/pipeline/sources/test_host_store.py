"""Hosts that a table names: limits of each URL, one dead host beside others, a network that is away. All on a real server."""

from __future__ import annotations

import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.sources.web_server import BODY, Server, closed_port
from tokenshards.pipeline.activity import WAITING_FOR_STORE, activities
from tokenshards.pipeline.config import RetryConfig, SourceConfig, UrlLimits
from tokenshards.pipeline.errors import BadInput, Reason, TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.job.inputs import REMOTE_FETCH_THREADS, URLS_AHEAD
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.fetch import fetch_ahead, fetch_file, urls_to_probe
from tokenshards.pipeline.sources.hosts import health as host_health
from tokenshards.pipeline.sources.hosts import store as host_store
from tokenshards.pipeline.sources.hosts import uris as table_uris
from tokenshards.pipeline.sources.hosts.failures import BUSY_PATIENCE, LATE_PATIENCE, HostFailure
from tokenshards.pipeline.sources.hosts.store import HostStore
from tokenshards.pipeline.storage.store import Store

QUICK = RetryConfig(attempts=2, first_delay_seconds=0.0)
LIMITS = UrlLimits(attempts=2, timeout_seconds=0.4, total_seconds=1.0)
TRUSTED = SourceConfig(allow_private_hosts=True, urls=LIMITS)
STOP = replace(TRUSTED, unreadable="stop")
NO_HOST = "http://no-such-host.invalid/x.jpg"


def row_of(path: str) -> PlanRow:
    return PlanRow(kind="file", sample_id=path, path=path, size=-1, version="", inputs=1)


class Table:
    """Rows of a table whose hosts are those of the server."""

    def __init__(self, folder: Path, web: Server, config: SourceConfig = TRUSTED) -> None:
        self.store, self.config = Store(str(folder), retry=QUICK), config
        self.others = [web.url("ok.jpg", "127.0.0.9")]

    def fetch(self, url: str, **options: Any) -> bytes:
        return fetch_file(self.store, row_of(url), self.config, **{"others": [url, *self.others], **options})

    def bad(self, url: str, **options: Any) -> BadInput:
        with pytest.raises(BadInput) as caught:
            self.fetch(url, **options)
        return caught.value

    def outage(self, url: str, **options: Any) -> str:
        with pytest.raises(TransientStorageError) as caught:
            self.fetch(url, **options)
        assert not isinstance(caught.value, UnreadableObjectError)
        return str(caught.value)


@pytest.fixture
def table(tmp_path: Path, web: Server) -> Table:
    return Table(tmp_path, web)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dns", r"no-such-host.invalid has no address .* \(3 attempts, the last after others answered\)"),
        ("refused", r"127.0.0.1:\d+ refuses connections .* \(3 attempts"),
        ("tls", r"has no valid TLS .* \(3 attempts"),
        ("http_403", r"127.0.0.1:\d+ answers 403 Forbidden \(3 attempts"),
        ("timeout", r"was silent for 0.4 seconds \(3 attempts"),
        ("too_slow", r"sent \d+ bytes in 1 seconds, and not the end \(1 attempt\)"),
        ("status", r"answers 500 Internal Server Error \(4 attempts"),
        ("circle", r"redirects more than 9 times \(3 attempts"),
        ("cut", r"gave no whole answer .* \(3 attempts"),
    ],
)
def test_what_a_host_says_while_others_answer(web: Server, tmp_path: Path, kind: str, words: str) -> None:
    url = {
        "dns": NO_HOST,
        "refused": f"http://127.0.0.1:{closed_port()}/x.jpg",
        "tls": web.url("x.jpg").replace("http:", "https:"),
        "http_403": web.url("status/403"),
        "timeout": web.url("silent.jpg"),
        "too_slow": web.url("drip.jpg"),
        "status": web.url("status/500"),
        "circle": web.url("circle.jpg"),
        "cut": web.url("cut.jpg"),
    }[kind]
    reason = {"tls": "refused", "status": "unreadable", "circle": "unreadable", "cut": "refused"}.get(kind, kind)
    bad = Table(tmp_path, web).bad(url)
    assert bad.reason == reason
    assert bad.detail.startswith(url.partition("?")[0]) and bad.detail.endswith("although other objects can be read")
    assert re.search(words, bad.detail), bad.detail
    with pytest.raises(UnreadableObjectError) as stopped:
        Table(tmp_path, web, STOP).fetch(url)
    assert stopped.value.objects == (url,)


def test_a_url_that_drips_for_ever_ends_in_its_time(table: Table, web: Server) -> None:
    began = time.monotonic()
    assert table.bad(web.url("drip.jpg")).reason == Reason.TOO_SLOW
    assert LIMITS.total_seconds <= time.monotonic() - began < LIMITS.total_seconds + 2


@pytest.mark.parametrize("kind", ["huge", "endless"])
def test_a_body_above_the_limit_is_not_read_to_its_end(table: Table, web: Server, kind: str) -> None:
    began = time.monotonic()
    bad = table.bad(web.url(f"{kind}.jpg"), max_bytes=20_000)
    assert bad.reason == Reason.TOO_LARGE and "expected at most 20000" in bad.detail
    assert time.monotonic() - began < LIMITS.total_seconds
    assert len(web.requests) == 1, "a second attempt would be as long"


def test_a_pause_that_a_host_asks_for_is_kept(table: Table, web: Server) -> None:
    table.config = replace(TRUSTED, urls=replace(LIMITS, total_seconds=20.0))
    web.failures, web.headers = [503, 429], {"Retry-After": "1"}
    table.config = replace(table.config, urls=replace(table.config.urls, attempts=3))
    assert table.fetch(web.url("flaky.jpg")) == BODY
    times = [moment for moment, _, _ in web.requests]
    assert len(times) == 3 and min(times[1] - times[0], times[2] - times[1]) >= 0.99


def test_a_pause_longer_than_the_time_of_an_image_is_not_waited_for(table: Table, web: Server) -> None:
    began = time.monotonic()
    bad = table.bad(web.url("busy/600"))
    assert bad.reason == Reason.UNREADABLE and "answers 429 Too Many Requests and asks for a pause of 600 seconds (1 attempt)" in bad.detail
    bad = table.bad(web.url("ok.jpg"))
    assert "asks for a pause of 600 seconds more" in bad.detail or "asks for a pause of 599 seconds more" in bad.detail
    assert web.asked[f"127.0.0.1:{web.server_address[1]}"] == 1, "the host is left alone"
    assert time.monotonic() - began < LIMITS.total_seconds + 2


def test_requests_to_one_host_at_a_time_are_bounded(table: Table, web: Server) -> None:
    table.config = replace(TRUSTED, urls=replace(LIMITS, per_host=3))
    urls = [web.url(f"slow/{index}", host) for index in range(12) for host in ("127.0.0.1", "127.0.0.2")]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(table.fetch, urls)) == [BODY] * 24
    assert max(web.most_in_flight.values()) == 3


def test_a_network_that_is_away_quarantines_nothing(table: Table, web: Server) -> None:
    table.others += [f"http://127.0.0.3:{closed_port()}/y.jpg"]
    assert table.fetch(table.others[0]) == BODY
    web.status = 503
    seen: list[set[str]] = []
    web.on_request = lambda: seen.append({found.stage for found in activities()})
    assert "no other host answers either" in table.outage(web.url("x.jpg"))
    assert len(seen) >= 3 and all(WAITING_FOR_STORE in stages for stages in seen), "the reader is seen to wait, in its probes too"
    for index in range(5):
        table.outage(web.url(f"x{index}.jpg"))
    web.status = 200
    assert table.fetch(web.url("x.jpg")) == BODY, "no host was taken for dead"


def test_one_object_of_each_of_eight_other_hosts_is_probed(table: Table, web: Server) -> None:
    web.status = 503
    table.others = [web.url(f"{name}.jpg", f"127.0.1.{index}") for name in "ab" for index in range(1, 12)]
    table.outage(f"http://127.0.0.1:{closed_port()}/x.jpg")
    assert len(web.asked) == 8 and set(web.asked.values()) == {1}


def test_a_table_of_one_host(table: Table, web: Server) -> None:
    table.others = [web.url("ok.jpg")]
    assert table.bad(web.url("silent.jpg")).reason == Reason.TIMEOUT, "the host answers for another object, so this one is to blame"
    assert table.bad(web.url("status/403")).reason == Reason.HTTP_403
    for _ in range(LATE_PATIENCE):
        assert table.bad(web.url("drip.jpg")).reason == Reason.TOO_SLOW
    assert table.fetch(web.url("x.jpg")) == BODY, "a host that answers for others is not dead"


def test_a_dead_host_alone_in_its_table_is_an_outage(table: Table) -> None:
    port = closed_port()
    table.others = [f"http://127.0.0.1:{port}/b.jpg"]
    assert "the table names no other host" in table.outage(f"http://127.0.0.1:{port}/a.jpg")


@pytest.mark.parametrize("status", [403, 503])
def test_what_can_be_read_after_the_probes_is_read(table: Table, web: Server, status: int) -> None:
    busy_again = int(status == 503)  # a busy server gets all its retries again, any other one more attempt
    web.failures = [status] * (LIMITS.attempts + busy_again)
    assert table.fetch(web.url("flaky.jpg")) == BODY and web.failures == []


def test_a_dead_host_is_not_asked_for_each_image(table: Table, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_health, "FIRST_REST_SECONDS", 60.0)
    details = [table.bad(web.url(f"silent/{index}")).detail for index in range(20)]
    asked = web.asked[f"127.0.0.1:{web.server_address[1]}"]
    assert asked == LATE_PATIENCE * (LIMITS.attempts + 1), "each of the first images in all its attempts, no other one"
    host = f"127.0.0.1:{web.server_address[1]}"
    expected = f"{web.url('silent/19')}: not asked for, because its host failed for 3 images in a row: {host} was silent for 0.4 seconds"
    assert details[-1].startswith(expected) and details[-1].endswith("although other hosts answer")
    assert table.fetch(web.url("ok.jpg", "127.0.0.2")) == BODY


def test_a_host_without_connections_is_dead_after_one_image(table: Table) -> None:
    port = closed_port()
    first, second = (table.bad(f"http://127.0.0.1:{port}/{index}.jpg") for index in range(2))
    assert (first.reason, second.reason) == ("refused", "refused")
    assert "3 attempts" in first.detail and "not asked for, because its host failed for the image before" in second.detail


def test_an_overloaded_host_is_given_more_time(table: Table, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_health, "FIRST_REST_SECONDS", 60.0)
    for index in range(BUSY_PATIENCE + 3):
        assert table.bad(web.url(f"status/{(429, 502, 503, 504)[index % 4]}")).reason == Reason.UNREADABLE
    assert web.asked[f"127.0.0.1:{web.server_address[1]}"] == BUSY_PATIENCE * 2 * LIMITS.attempts
    store = HostStore(web.url(""), storage_options={}, retry=RetryConfig(), limits=LIMITS, public_only=False)
    assert store._limit.value < LIMITS.per_host, "fewer requests at a time are sent to a host that says it is overloaded"
    busy = HostFailure(reason=Reason.UNREADABLE, words="", busy=True)
    assert store._pause(1, None) <= 0.2 and 1.0 <= store._pause(1, busy) <= 2.0 < store._pause(3, busy) <= 10.0


def test_a_dead_host_lives_again(table: Table, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(HostStore, "_health", host_health.HostHealth(lambda: now[0] + time.monotonic()))
    for index in range(LATE_PATIENCE):
        table.bad(web.url(f"silent/{index}"))
    asked, store = len(web.requests), HostStore(web.url(""), storage_options={}, retry=QUICK, limits=LIMITS, public_only=False)
    table.bad(web.url("ok.jpg"))
    assert len(web.requests) == asked
    now[0] += host_health.FIRST_REST_SECONDS
    assert "not asked for" in table.bad(web.url("ok.jpg")).detail, "no image waits for the trial"
    while store._health.death(store.host) is not None:
        time.sleep(0.01)
    assert table.fetch(web.url("ok.jpg")) == BODY


def test_a_trial_of_a_host_that_is_still_dead(table: Table, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_health, "FIRST_REST_SECONDS", 0.0)
    for index in range(LATE_PATIENCE):
        table.bad(web.url(f"silent/{index}"))
    asked = len(web.requests)
    for index in range(5):
        began = time.monotonic()
        assert "not asked for" in table.bad(web.url(f"silent/{index}")).detail
        assert time.monotonic() - began < LIMITS.timeout_seconds
        time.sleep(0.05)
    assert len(web.requests) > asked


def test_what_answers_is_not_dead_however_many_images_fail(table: Table, web: Server) -> None:
    for index in range(2 * LATE_PATIENCE):
        table.bad(web.url(f"status/{(403, 500, 404, 401)[index % 4]}"))
    assert table.fetch(web.url("ok.jpg")) == BODY


def test_a_host_that_redirects_to_a_dead_one_is_not_dead(table: Table, web: Server) -> None:
    for _ in range(3):
        bad = table.bad(web.url(f"to/127.0.0.1:{closed_port()}/x.jpg"))
        assert bad.reason == Reason.REFUSED and "after a redirect refuses connections" in bad.detail
    assert table.fetch(web.url("ok.jpg")) == BODY


def test_an_image_of_a_dead_host_waits_while_the_network_is_away(table: Table, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{closed_port()}/x.jpg"
    table.bad(url)
    web.status = 503
    table.bad(url)  # another host answered a moment ago
    monkeypatch.setattr(host_store, "PROBE_SECONDS", 0.0)
    table.outage(url)


def test_many_images_of_hosts_of_which_a_fifth_are_dead(table: Table, web: Server) -> None:
    table.config = replace(TRUSTED, urls=replace(LIMITS, timeout_seconds=0.5, total_seconds=5.0))
    port = closed_port()
    hosts = [f"127.0.2.{index}" for index in range(1, 101)]

    def url(index: int) -> str:
        number = index * 7919 % 100
        if number < 10:
            return f"http://{hosts[number]}:{port}/{index}.jpg"
        return web.url(f"{'silent' if number < 20 else 'ok'}/{index}", hosts[number])

    rows = [row_of(url(index)) for index in range(2_000)]
    others, began = urls_to_probe(rows), time.monotonic()

    def fetch(row: PlanRow) -> bytes:
        return fetch_file(table.store, row, table.config, others=others)

    results = [result for _, result in fetch_ahead(rows, fetch, threads=REMOTE_FETCH_THREADS, ahead=URLS_AHEAD)]
    assert sum(result == BODY for result in results) == 1_600
    reasons = [result.reason for result in results if isinstance(result, BadInput)]
    assert (reasons.count(Reason.REFUSED), reasons.count(Reason.TIMEOUT)) == (200, 200)
    assert time.monotonic() - began < 60, "each of them alone would take 1.5 seconds"


def test_stores_of_hosts_travel_to_workers() -> None:
    store = HostStore("http://x", storage_options={}, retry=QUICK, limits=LIMITS, public_only=True)
    again = pickle.loads(pickle.dumps(store))
    assert isinstance(again, HostStore) and again.limits == LIMITS and again.host == "x"


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
