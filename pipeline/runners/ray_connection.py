"""Join a Ray cluster, notice the loss of its head, and explain each failure to join in one clear sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.exceptions import AuthenticationError, RayError

from tokenshards.pipeline.errors import ClusterError, ConfigError
from tokenshards.pipeline.runners.ray_token import find_token

if TYPE_CHECKING:
    import grpc

__all__ = ["HeadWatch", "joined_cluster"]

CHECK_SECONDS = 10.0
JOIN_ATTEMPTS = 5
_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"
"""Ray's variable for the number of attempts to join a head. Ray makes about one attempt a second."""
ASK_SECONDS = 5.0
HEAD_SECONDS = 40.0
_TLS_FILES = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")


@contextlib.contextmanager
def joined_cluster(address: str | None) -> Iterator[None]:
    """Join the cluster as a driver for the duration of the block. If this process has already joined a cluster, keep that connection.

    Raises ClusterError with one sentence if the cluster cannot be reached, wants a token, or runs another version of Ray or Python. Raises
    ConfigError if the address holds a password, or if the token or the TLS files of this machine cannot be used.
    """
    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or ""
    if "@" in where:
        raise ConfigError(f"{'--address' if address else 'RAY_ADDRESS'} holds a user or password; expected host:port, such as head:6379")
    if address is not None and address.startswith("http"):
        raise ClusterError(
            f"--address is {address}, an address for submitting jobs; a driver joins at host:port, such as head:6379. "
            "Use `tokenshards submit` with this address"
        )
    if _with_token():
        find_token(os.environ)  # Ray would refuse a bad token with a text that holds the token
    head = _HealthCheck.of_environment()
    named = ":" in where and "://" not in where
    if named:
        head.check(where)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it, Ray warns about actors that ask for no GPU
    try:
        # Ray puts the current folder first on the workers' import path, and that folder may hold another `pipeline`.
        with contextlib.chdir("/"), _own_sigterm(), _few_attempts() if named else contextlib.nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise _refusal(address, error) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray's threads print messages of raylets and autoscaler to stdout
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _few_attempts() -> Iterator[None]:
    """Limit the time in which Ray tries to join a live head to seconds instead of half a minute."""
    before = os.environ.get(_ATTEMPTS)
    os.environ.setdefault(_ATTEMPTS, str(JOIN_ATTEMPTS))
    try:
        with _silent_stderr():
            yield
    finally:
        if before is None:
            os.environ.pop(_ATTEMPTS, None)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide the many warnings that Ray's C++ code writes for every attempt. Our error tells the cause in one sentence."""
    if sys.stderr is None:  # stderr is closed: no output shows anyway
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep our handler of SIGTERM. The handler that `ray.init` sets ends the process without any cleanup."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class HeadWatch:
    """Notices a lost head before Ray does. After a minute Ray would end the whole process with its own message."""

    def __init__(self) -> None:
        self._address = str(ray.get_runtime_context().gcs_address)
        self._head = _HealthCheck.of_environment()  # read once, so that a TLS file that disappears later does not end the run
        self._asked = self._answered = time.monotonic()

    def check(self) -> None:
        """Ask the head every few seconds for an answer. Raise ClusterError if the head has not answered for 40 seconds."""
        now = time.monotonic()
        if now - self._asked >= ASK_SECONDS:
            self.answers()
        silent = now - self._answered
        if silent > HEAD_SECONDS:
            raise ClusterError(
                f"{self._address}: the head of the Ray cluster has not answered for {silent:.0f} s. No committed shard is lost. "
                "When the cluster is back, or on another cluster, run the same command again: it continues"
            )

    def answers(self) -> bool:
        """Ask the head now. Ray's calls that need the head, such as a new actor, block forever if the head is gone."""
        now = time.monotonic()
        if now - self._asked > HEAD_SECONDS:  # we did not ask for a while, so the silence proves nothing
            self._answered = now
        self._asked = now
        try:
            self._head.check(self._address, timeout_seconds=1.0)
        except ClusterError:
            return False
        self._answered = now
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class _HealthCheck:
    """gRPC's own health check. Every head answers the check, with or without a token. `ray.init` tries a wrong address for minutes."""

    tls: grpc.ChannelCredentials | None

    @classmethod
    def of_environment(cls) -> _HealthCheck:
        """Return the check that RAY_USE_TLS asks for. Raises ConfigError if a TLS file cannot be used."""
        return cls(tls=_tls_credentials() if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true") else None)

    def check(self, address: str, timeout_seconds: float = CHECK_SECONDS) -> None:
        """Raise ClusterError if no head answers in time."""
        import grpc

        with grpc.insecure_channel(address) if self.tls is None else grpc.secure_channel(address, self.tls) as channel:
            try:
                channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=timeout_seconds)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise ClusterError(
                        f"{address}: no Ray head answers at this address{'' if self.tls is None else ' over TLS'}. Start one with "
                        "`ray start --head`, or check --address: expected host:port of the head, 6379 unless it was started with --port. "
                        "RAY_USE_TLS must have the same value as on the head"
                    ) from None


def _tls_credentials() -> grpc.ChannelCredentials:
    import grpc

    read = []
    for name in _TLS_FILES:
        try:
            read.append(Path(os.environ[name]).read_bytes())
        except (KeyError, OSError) as error:
            seen = f"is {os.environ[name]!r}, which cannot be read ({error.strerror})" if isinstance(error, OSError) else "is not set"
            raise ConfigError(f"RAY_USE_TLS is set, but {name} {seen}; expected a PEM file, as on the nodes of the cluster") from None
    return grpc.ssl_channel_credentials(*read)


def _with_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").strip().lower() == "token"


def _refusal(address: str | None, error: Exception) -> ClusterError:
    where = address or os.environ.get("RAY_ADDRESS") or "a Ray cluster on this machine"
    said = " ".join(str(error).split())
    if isinstance(error, AuthenticationError) or _says(error, "Unauthenticated", "auth token", "AuthToken"):
        return ClusterError(
            f"{where}: the Ray cluster wants a token and got {'another token' if _with_token() else 'none'}. Set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token of the cluster; `ray get-auth-token` shows it on the head"
        )
    if "ersion mismatch" in said:
        return ClusterError(f"{where}: {said[:300]}. Use the Python and Ray versions of the cluster here too")
    return ClusterError(f"{where}: no Ray cluster answers there ({said[:300]}). Start one with `ray start --head`, or check --address")


def _says(error: BaseException | None, *words: str) -> bool:
    """Return whether an error or one of its causes holds one of these words. Ray puts the last attempt into a cause."""
    while error is not None:
        if any(word in str(error) for word in words):
            return True
        error = error.__cause__
    return False
