"""The dashboard of a Ray cluster over HTTP: is it there, may we talk to it, which versions does it run, how is a job. Imports no Ray.

Ray's own client has no time limits and prefers RAY_ADDRESS to the address that it is given, so everything that must not hang, or must end
in one clear sentence, is asked here.
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
    """What the processes of the cluster run; `python` is empty where an old Ray does not tell."""

    ray: str
    python: str


_EXCEPTION = re.compile(r"^[\w.]*(Error|Exception)(?=: |$)", re.MULTILINE)


def said_by_ray(message: str) -> str:
    """Return what a message of Ray says on one line, without its tracebacks: the last exception, and where that is long its end."""
    last = list(_EXCEPTION.finditer(message))
    said = " ".join(message[last[-1].start() if last else 0 :].split()).rstrip(". ")
    if len(said) > SHOWN_CHARACTERS:  # what went wrong stands at the end
        said = f"{said[: SHOWN_CHARACTERS // 4]} … {said[-3 * SHOWN_CHARACTERS // 4 :]}"
    return said


class Dashboard:
    """One cluster's dashboard. Every answer comes as a whole within `REQUEST_SECONDS`, or is an error.

    A ConfigError means that the request or the address is wrong, a ClusterError that the cluster is in no state to answer.
    """

    def __init__(self, address: str, environ: Mapping[str, str] | None = None) -> None:
        self.address = _checked(address)
        self.headers: dict[str, str] = {}
        """What a client must send with each request."""
        self._environ = os.environ if environ is None else environ
        self._known = False
        """It has answered as a dashboard: whatever it answers later, the address was right."""

    def connect(self) -> Versions:
        """Find the cluster, authenticate where it asks for that, and return its versions."""
        environ = self._environ
        mode = environ.get("RAY_AUTH_MODE", "").strip().lower()
        token = find_token(environ)
        if mode == "token" and not token:
            raise ConfigError(f"RAY_AUTH_MODE is token, but no token is there; {_WHERE_TOKENS_ARE}")
        # The token goes to a server that asks for one, and to no other. Ray before 2.52 has no such page.
        asked = self._get("/api/authentication_mode", missing_ok=True)
        if isinstance(asked, dict) and asked.get("authentication_mode") == "token":
            if mode == "disabled":
                raise ConfigError(f"{self.address} wants a token, but RAY_AUTH_MODE is disabled here; set it to token. {_WHERE_TOKENS_ARE}")
            if not token:
                raise ConfigError(f"{self.address} wants a token, and this machine has none; {_WHERE_TOKENS_ARE}")
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
        """Return how many GPUs the nodes that are there have; None where the cluster does not tell."""
        try:
            found = self._get("/api/v0/nodes?detail=1&limit=10000", missing_ok=True)
            nodes = found["data"]["result"]["result"]
            return sum(float(node["resources_total"].get("GPU", 0)) for node in nodes if node["state"] == "ALIVE")
        except (ClusterError, TypeError, KeyError, AttributeError):  # it is for a warning alone
            return None

    def job(self, submission_id: str) -> dict[str, Any] | None:
        """Return what the cluster knows of a job: `status`, `message`, `driver_exit_code` and more; None where it knows none of this id."""
        found = self._get(f"/api/jobs/{quote(submission_id)}", missing_ok=True)
        return found if isinstance(found, dict) and "status" in found else None

    def log(self, submission_id: str) -> str:
        """Return all that a job has printed so far."""
        found = self._get(f"/api/jobs/{quote(submission_id)}/logs", missing_ok=True)
        return str(found["logs"]) if isinstance(found, dict) and "logs" in found else ""

    def _get(self, path: str, *, missing_ok: bool = False) -> Any:
        """Return a page as JSON; None for one that is not there, or is no JSON, where `missing_ok`."""
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
                raise ClusterError(f"{self.address} answers with something else than JSON; is the head healthy? Try again later") from None
            if missing_ok:
                return None
            raise ConfigError(f"{self.address} answers, but not as the dashboard of a Ray cluster; {EXPECTED}") from None
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def refused(self, code: int) -> str:
        """Return the sentence on an answer that asks for other authentication."""
        if self.headers:
            return f"{self.address} refuses the token of this machine ({code}): it is not the cluster's; {_WHERE_TOKENS_ARE}"
        return f"{self.address} refuses to answer without authentication ({code}); {_WHERE_TOKENS_ARE}"

    def _unreachable(self, error: Exception) -> ClusterError | ConfigError:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        said = shorten(str(reason) or type(reason).__name__)
        if isinstance(reason, http.client.HTTPException | ConnectionResetError) and not self._known:
            return ConfigError(
                f"{self.address} does not answer as a web address ({said}): port 6379 is for nodes, 10001 for Ray Client; {EXPECTED}"
            )
        if isinstance(reason, ssl.SSLError) and not self._known:
            return ConfigError(f"{self.address}: no TLS connection ({said}); {EXPECTED}, and https:// only where TLS is set up")
        return ClusterError(
            f"no answer from {self.address} ({said}): is the cluster up, its dashboard where this machine reaches it "
            f"(`ray start --dashboard-host`, `kubectl port-forward`), and the port right? {EXPECTED[0].upper()}{EXPECTED[1:]}"
        )


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns; raise what it raises, and TimeoutError where it takes longer: then its thread is left behind.

    The time limits of HTTP clients are for each read, so a server that sends a byte now and then would hold them without an end.
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
    """A redirect would carry the token to another server."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
_WHERE_TOKENS_ARE = (
    "put the cluster's token (of `ray get-auth-token` on the head) into ~/.ray/auth_token, a file named by RAY_AUTH_TOKEN_PATH, "
    "or RAY_AUTH_TOKEN"
)


def _checked(address: str) -> str:
    if set("@?#") & set(address):  # before anything that would show it
        seen = "a user or password" if "@" in address else "a query"
        raise ConfigError(f"--address holds {seen}; {EXPECTED}, and a token as Ray keeps it: {_WHERE_TOKENS_ARE}")
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
