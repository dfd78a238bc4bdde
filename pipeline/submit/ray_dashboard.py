"""The dashboard of a Ray cluster over HTTP: reachability, authentication, versions, state of a job. Does not import Ray.

Ray's own client has no time limits and prefers RAY_ADDRESS to the given address. So this module makes every request that must not hang or
must fail with one clear sentence.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from tokenshards.pipeline.errors import ClusterError, ConfigError, shorten
from tokenshards.pipeline.runners.ray_token import find_token

__all__ = ["Dashboard", "Versions", "said_by_ray", "within"]

T = TypeVar("T")

REQUEST_SECONDS = 15.0
SHOWN_CHARACTERS = 600
EXPECTED = "expected the address of the dashboard, such as http://head:8265"


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Versions that the processes of the cluster run; `python` is "" if an old Ray does not report it."""

    ray: str
    python: str


_EXCEPTION = re.compile(r"^[\w.]*(Error|Exception)(?=: |$)", re.MULTILINE)


def said_by_ray(message: str) -> str:
    """Return a message of Ray on one line without tracebacks: its last exception; a long one is shortened in the middle."""
    last = list(_EXCEPTION.finditer(message))
    said = " ".join(message[last[-1].start() if last else 0 :].split()).rstrip(". ")
    if len(said) > SHOWN_CHARACTERS:  # the cause is at the end
        said = f"{said[: SHOWN_CHARACTERS // 4]} … {said[-3 * SHOWN_CHARACTERS // 4 :]}"
    return said


class Dashboard:
    """The dashboard of one cluster. A request that is not answered completely within `REQUEST_SECONDS` is an error.

    ConfigError means that the request or the address is wrong; ClusterError means that the cluster cannot answer now.
    """

    def __init__(self, address: str, environ: Mapping[str, str] | None = None) -> None:
        self.address = _checked(address)
        self.headers: dict[str, str] = {}
        """Headers that a client must send with each request."""
        self._environ = os.environ if environ is None else environ
        self._known = False
        """True once the server answered as a dashboard: later errors do not mean that the address is wrong."""

    def connect(self) -> Versions:
        """Contact the cluster, authenticate if it requires that, and return its versions."""
        environ = self._environ
        mode = environ.get("RAY_AUTH_MODE", "").strip().lower()
        token = find_token(environ)
        if mode == "token" and not token:
            raise ConfigError(f"RAY_AUTH_MODE is token, but there is no token; {_WHERE_TOKENS_ARE}")
        # Send the token only to a server that asks for one. Ray before 2.52 does not have this page.
        asked = self._get("/api/authentication_mode", missing_ok=True)
        if isinstance(asked, dict) and asked.get("authentication_mode") == "token":
            if mode == "disabled":
                raise ConfigError(
                    f"{self.address} requires a token, but RAY_AUTH_MODE is disabled here; set it to token. {_WHERE_TOKENS_ARE}"
                )
            if not token:
                raise ConfigError(f"{self.address} requires a token, but this machine has none; {_WHERE_TOKENS_ARE}")
            self.headers = {"Authorization": f"Bearer {token}"}
        versions = self._get("/api/version")
        if not isinstance(versions, dict) or not isinstance(versions.get("ray_version"), str):
            raise ConfigError(f"{self.address} answers, but not as the dashboard of a Ray cluster; {EXPECTED}")
        more = self._get("/api/v0/cluster_metadata", missing_ok=True)
        data = more.get("data") if isinstance(more, dict) else None
        python = data.get("pythonVersion") if isinstance(data, dict) else None
        self._known = True
        return Versions(ray=versions["ray_version"], python=python if isinstance(python, str) else "")

    def gpus(self) -> float | None:
        """Return the number of GPUs of the nodes that are alive; None if the cluster does not report it."""
        try:
            found = self._get("/api/v0/nodes?detail=1&limit=10000", missing_ok=True)
            nodes = found["data"]["result"]["result"]
            return sum(float(node["resources_total"].get("GPU", 0)) for node in nodes if node["state"] == "ALIVE")
        except (ClusterError, TypeError, KeyError, AttributeError):  # only a warning depends on this number
            return None

    def job(self, submission_id: str) -> dict[str, Any] | None:
        """Return `status`, `message`, `driver_exit_code` and more of a job; None if the cluster has no job with this id."""
        found = self._get(f"/api/jobs/{quote(submission_id)}", missing_ok=True)
        return found if isinstance(found, dict) and "status" in found else None

    def log(self, submission_id: str) -> str:
        """Return all output of a job so far."""
        found = self._get(f"/api/jobs/{quote(submission_id)}/logs", missing_ok=True)
        return str(found["logs"]) if isinstance(found, dict) and "logs" in found else ""

    def _get(self, path: str, *, missing_ok: bool = False) -> Any:
        """Return a page as JSON; with `missing_ok` return None if the page is missing or is not JSON."""
        request = urllib.request.Request(self.address + path, headers={"User-Agent": "tokenshards", **self.headers})

        def read() -> bytes:
            with _OPENER.open(request, timeout=REQUEST_SECONDS) as answer:
                body: bytes = answer.read()
                return body

        try:
            return json.loads(within(REQUEST_SECONDS, read))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise ConfigError(self.refused(error.code)) from None
            if error.code in (404, 405) and missing_ok:
                return None
            if error.code >= 500 or self._known:
                raise ClusterError(f"{self.address} answers {error.code} {error.reason}; is the head healthy? Try again later") from None
            raise ConfigError(
                f"{self.address} answers {error.code} {error.reason}, not as the dashboard of a Ray cluster; {EXPECTED}"
            ) from None
        except ValueError:
            if self._known:
                raise ClusterError(f"{self.address} does not answer with JSON; is the head healthy? Try again later") from None
            if missing_ok:
                return None
            raise ConfigError(f"{self.address} answers, but not as the dashboard of a Ray cluster; {EXPECTED}") from None
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def refused(self, code: int) -> str:
        """Return the message for an answer of 401 or 403."""
        if self.headers:
            return f"{self.address} refuses the token of this machine ({code}): it is not the token of that cluster; {_WHERE_TOKENS_ARE}"
        return f"{self.address} refuses to answer without authentication ({code}); {_WHERE_TOKENS_ARE}"

    def _unreachable(self, error: Exception) -> ClusterError | ConfigError:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        said = shorten(str(reason) or type(reason).__name__)
        if isinstance(reason, http.client.HTTPException | ConnectionResetError) and not self._known:
            return ConfigError(
                f"{self.address} does not answer as a web address ({said}): port 6379 is for nodes, 10001 for Ray Client; {EXPECTED}"
            )
        if isinstance(reason, ssl.SSLError) and not self._known:
            return ConfigError(f"{self.address}: no TLS connection ({said}); {EXPECTED}, and https:// only if TLS is set up")
        return ClusterError(
            f"no answer from {self.address} ({said}): is the cluster up, can this machine reach its dashboard "
            f"(`ray start --dashboard-host`, `kubectl port-forward`), and is the port right? {EXPECTED[0].upper()}{EXPECTED[1:]}"
        )


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of `call` or raise its error; raise TimeoutError if it takes longer, and then leave its thread running.

    The time limits of HTTP clients apply to each read, so a server that sends a byte now and then could hold them for ever.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(seconds)
    except FutureTimeoutError:
        if outcome.done():  # the call itself raised it
            raise
        raise TimeoutError(f"it did not answer within {seconds:.0f} s") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because a redirect would carry the token to another server."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
_WHERE_TOKENS_ARE = (
    "put the cluster's token (from `ray get-auth-token` on the head) into ~/.ray/auth_token, a file named by RAY_AUTH_TOKEN_PATH, "
    "or RAY_AUTH_TOKEN"
)


def _checked(address: str) -> str:
    if set("@?#") & set(address):  # checked first, because the later messages show the address
        seen = "a user or password" if "@" in address else "a query"
        raise ConfigError(f"--address holds {seen}; {EXPECTED}. Give a token as Ray expects it: {_WHERE_TOKENS_ARE}")
    scheme, separator, rest = address.strip().partition("://")
    if not separator:
        scheme, rest = "http", scheme
    if scheme not in ("http", "https") or not rest or rest == "auto":
        hint = "; ray:// is the address of Ray Client, which runs no jobs" if scheme == "ray" else ""
        raise ConfigError(f"--address is {shorten(address)}; {EXPECTED}{hint}")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port
    except ValueError:
        raise ConfigError(f"--address is {shorten(address)}; {EXPECTED}") from None
    if not parts.hostname or (port is not None and port == 0):
        raise ConfigError(f"--address is {shorten(address)}; {EXPECTED}")
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"
