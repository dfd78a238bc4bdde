"""What a request to a host of others failed by: the quarantine reason, the words, and whether the host or only one image is to blame."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tokenshards.pipeline.errors import Reason, StoreAccessError
from tokenshards.pipeline.storage.redaction import masked
from tokenshards.pipeline.storage.web_hosts import Download, PrivateHostError

__all__ = ["HostFailure", "answered_status", "failure_of", "host_of", "refused_url"]

_FORBIDDEN = (401, 403, 451)
_BUSY_GATEWAYS = (429, 502, 503, 504)
"""Answers about the host as a whole, not about one object."""
_TOO_MANY, _SERVER_ERRORS = 429, 500
_MAY_NAME_A_TIME = (429, 503)
_REFUSED = Reason.REFUSED
NOBODY_PATIENCE, LATE_PATIENCE, BUSY_PATIENCE = 1, 3, 32
"""Images in a row until a host counts as dead: where there is nobody to ask, neither the image nor load is to blame; a host that is silent
or slow may be so for some images; an overloaded one lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFailure:
    """One failed request."""

    reason: Reason
    words: str
    """What the host did, such as "refuses connections"."""
    of_host: bool = False
    """Whether other objects of the host would fail as well."""
    patience: int = LATE_PATIENCE
    """For how many images in a row a host may fail so, until it counts as dead."""
    answered: bool = False
    """Whether the host answered for this object, so that it lives."""
    busy: bool = False
    """Whether the host said that it is overloaded. One more failure then proves little, so the check makes all attempts."""
    hopeless: bool = False
    """Whether another attempt is no use, because the time is over."""
    sure: bool = False
    """Whether the host itself showed until now that it is there, so that no check is needed once others answer."""
    quiet_seconds: float = 0.0
    """For how long the host asks for no requests (`Retry-After`)."""


def host_of(url: str) -> str:
    """Return host and port of a URL."""
    return url.partition("://")[2].partition("/")[0].partition("?")[0].rpartition("@")[2].lower()


def refused_url(error: Exception, where: str, download: Download) -> StoreAccessError | None:
    """Return the error for a URL that may not or cannot be asked for, None for any other failure."""
    if any(isinstance(cause, PrivateHostError) for cause in _causes(error)):
        return StoreAccessError(
            f"{where}: the URL leads to an address that is not public (private, loopback or link-local); a table may name only "
            "public hosts. If you trust the table, add --allow-private-hosts",
            bad_name=Reason.PRIVATE_HOST,
        )
    if isinstance(error, ValueError) and not download.redirects:  # aiohttp raises it for an invalid URL
        return StoreAccessError(f"{where} is not a valid URL ({type(error).__name__})", bad_name=Reason.BAD_URI)
    return None


def answered_status(error: Exception) -> int:
    """Return the status of the answer that the client refused, 0 for any other failure; a broken body has no status of its own."""
    is_answer = any(kind.__name__ == "ClientResponseError" for kind in type(error).__mro__)
    return int(getattr(error, "status", 0)) if is_answer else 0


def failure_of(error: Exception, download: Download, options: dict[str, Any]) -> HostFailure:
    """Return what the client's error means; `options` are storage options, whose secrets no message may show."""
    own = not download.redirects  # after a redirect another host may be to blame
    after = "" if own else "after a redirect "
    if status := answered_status(error):
        return _answer(error, status, own)
    kinds = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}  # by name: aiohttp may be missing
    said = masked(f"{type(error).__name__}: {error}", options)
    if "gaierror" in kinds or "ClientConnectorDNSError" in kinds:
        unknown = own and not any(getattr(cause, "errno", None) == socket.EAI_AGAIN for cause in _causes(error))
        return HostFailure(
            reason=Reason.DNS, words=f"{after}has no address ({said})", of_host=own, patience=NOBODY_PATIENCE if unknown else LATE_PATIENCE
        )
    if "ConnectionTimeoutError" in kinds:  # an overloaded host takes none for a while, too
        return HostFailure(reason=Reason.TIMEOUT, words=f"{after}takes no connection in time", of_host=own)
    if "ServerTimeoutError" in kinds:
        words = f"{after}was silent for {download.silence_seconds:g} seconds"
        return HostFailure(reason=Reason.TIMEOUT, words=words, of_host=own)
    if "TimeoutError" in kinds and not download.answered:
        words = f"{after}did not answer in {download.total_seconds:.3g} seconds"
        return HostFailure(reason=Reason.TIMEOUT, words=words, of_host=own, hopeless=True)
    if "TimeoutError" in kinds:
        words = f"{after}sent {download.received:,} bytes in {download.total_seconds:.3g} seconds, and not the end"
        return HostFailure(reason=Reason.TOO_SLOW, words=words, of_host=own, hopeless=True, sure=True)
    if "ClientSSLError" in kinds:
        return HostFailure(reason=_REFUSED, words=f"{after}has no valid TLS ({said})", of_host=own, patience=NOBODY_PATIENCE)
    if "TooManyRedirects" in kinds:
        return HostFailure(reason=Reason.UNREADABLE, words=f"redirects more than {download.redirects - 1} times", answered=True)
    if "ClientConnectorError" in kinds or "ConnectionRefusedError" in kinds:
        return HostFailure(reason=_REFUSED, words=f"{after}refuses connections ({said})", of_host=own, patience=NOBODY_PATIENCE)
    return HostFailure(reason=_REFUSED, words=f"{after}gave no whole answer ({said})")


def _answer(error: Exception, status: int, own: bool) -> HostFailure:
    after = "" if own else "after a redirect "
    busy = status >= _SERVER_ERRORS or status == _TOO_MANY
    quiet = _retry_after(error) if own and status in _MAY_NAME_A_TIME else 0.0
    words = f"{after}answers {status} {getattr(error, 'message', '')}".rstrip()
    words += f" and asks for a pause of {quiet:.0f} seconds" if quiet else ""
    return HostFailure(
        reason=Reason.HTTP_403 if status in _FORBIDDEN else Reason.UNREADABLE,
        words=words,
        of_host=own and status in _BUSY_GATEWAYS,
        answered=own and status not in _BUSY_GATEWAYS,
        busy=busy,
        patience=BUSY_PATIENCE,
        quiet_seconds=quiet,
    )


def _retry_after(error: Exception) -> float:
    """Return the seconds of a `Retry-After` header, which are a number or the end of the time as a date; 0 without a valid one."""
    text = str((getattr(error, "headers", None) or {}).get("Retry-After", "")).strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
