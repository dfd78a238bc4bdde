"""Pauses that a host asks for, and the host of a URL."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from tokenshards.pipeline.errors import Reason
from tokenshards.pipeline.sources.hosts.failures import failure_of, host_of
from tokenshards.pipeline.storage.web_hosts import Download

DOWNLOAD = Download(url="http://h/x", most_bytes=1, silence_seconds=1.0, total_seconds=1.0)


class ClientResponseError(Exception):
    """As aiohttp's."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__()
        self.status, self.message, self.headers = status, "words", headers or {}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), (" 7 ", 7.0), ("-7", 0.0), ("1.5", 0.0), ("soon", 0.0), ("", 0.0), ("9" * 30, 999_999_999.0), ("²", 0.0)],
)
def test_retry_after(text: str, seconds: float) -> None:
    assert failure_of(ClientResponseError(503, {"Retry-After": text}), DOWNLOAD, {}).quiet_seconds == seconds
    assert failure_of(ClientResponseError(403, {"Retry-After": text}), DOWNLOAD, {}).quiet_seconds == 0.0


def test_retry_after_a_date() -> None:
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    assert 55 < failure_of(ClientResponseError(429, {"Retry-After": in_a_minute}), DOWNLOAD, {}).quiet_seconds <= 61
    gone = formatdate(time.time() - 60, usegmt=True)
    assert failure_of(ClientResponseError(429, {"Retry-After": gone}), DOWNLOAD, {}).quiet_seconds == 0.0


@pytest.mark.parametrize(
    ("status", "reason", "of_host", "answered", "busy"),
    [
        *((status, Reason.HTTP_403, False, True, False) for status in (401, 403, 451)),
        *((status, Reason.UNREADABLE, True, False, True) for status in (429, 502, 503, 504)),
        (500, Reason.UNREADABLE, False, True, True),
        (400, Reason.UNREADABLE, False, True, False),
    ],
)
def test_statuses(status: int, reason: Reason, of_host: bool, answered: bool, busy: bool) -> None:
    failure = failure_of(ClientResponseError(status), DOWNLOAD, {})
    assert (failure.reason, failure.of_host, failure.answered, failure.busy) == (reason, of_host, answered, busy)
    assert failure.words == f"answers {status} words"


def test_hosts_of_urls() -> None:
    for url in ("http://Host:80/a", "https://user:secret@host:80/a@b", "http://host:80?x=/y", "http://host:80"):
        assert host_of(url) == "host:80"
