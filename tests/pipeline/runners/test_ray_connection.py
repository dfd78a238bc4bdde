"""The driver joins a cluster's head, refuses clearly, and notices a lost head."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from tokenshards.pipeline.errors import ClusterError, ConfigError, TokenshardsError
from tokenshards.pipeline.runners import ray_connection as ray_cluster
from tokenshards.pipeline.runners.ray_connection import HEAD_SECONDS, HeadWatch, joined_cluster


def test_a_head_that_stays_silent_ends_the_run_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: now)
    with socket.socket() as closed:  # bound but not listening: nobody answers, and no other process takes the port
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(ray_cluster.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        watch = HeadWatch()
        for seconds in range(0, int(HEAD_SECONDS), 6):
            now = 1000.0 + seconds
            watch.check()
        assert not watch.answers()
        now = 1001.0 + HEAD_SECONDS
        with pytest.raises(ClusterError, match=r"has not answered for 41 s\. .* run the same command again"):
            watch.check()
    long_silence = 10 * HEAD_SECONDS
    now += long_silence
    watch.check()  # the driver did not ask meanwhile, so the silence counts only from now on


class Head(grpc.GenericRpcHandler):
    """Answers the health check as any gRPC server may, and records the requests and their metadata."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tokens: list[str | None] = []

    def service(self, handler_call_details: Any) -> Any:
        self.asked.append(handler_call_details.method)
        self.tokens.append(dict(handler_call_details.invocation_metadata).get("authorization"))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


@contextlib.contextmanager
def listening(head: Head, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=(head,))
    where = "127.0.0.1:0"
    port = server.add_insecure_port(where) if credentials is None else server.add_secure_port(where, credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def no_init(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the health check: the next steps would start or join a real cluster."""
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **_: None)
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_init")
def test_only_the_public_health_check_is_asked_and_no_token_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "here")
    with listening(head) as address, joined_cluster(address):
        pass
    assert (head.asked, head.tokens) == (["/grpc.health.v1.Health/Check"], [None])


@pytest.mark.usefixtures("no_init")
def test_a_port_of_something_else_is_one_sentence_at_once() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with (
            pytest.raises(ClusterError, match="no Ray head answers at this address"),
            joined_cluster(f"127.0.0.1:{server.server_address[1]}"),
        ):
            pass
        server.shutdown()


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize(("mode", "got"), [("token", "another token"), ("", "none")])
def test_a_refused_token_is_one_sentence_without_the_page_of_ray(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], mode: str, got: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cr3t")

    def init(**_: Any) -> None:
        os.write(2, b"gcs_client.cc:210: Failed to get cluster ID\n")
        assert os.environ[ray_cluster._ATTEMPTS] == str(ray_cluster.JOIN_ATTEMPTS)
        raise ConnectionError("Failed to connect to Ray cluster") from RuntimeError("Failed. Last connection error: Unauthenticated: RPC")

    monkeypatch.setattr(ray_cluster.ray, "init", init)
    with listening(Head()) as address, pytest.raises(ClusterError, match=f"wants a token and got {got}") as caught, joined_cluster(address):
        pass
    # The head that ends here says goodbye, which a busy gRPC notes too late to be kept back: no head of a user does that.
    said = [line for line in capfd.readouterr().err.splitlines() if "chttp2_transport" not in line]
    assert "s3cr3t" not in str(caught.value) and said == []
    assert ray_cluster._ATTEMPTS not in os.environ
    os.write(2, b"back\n")
    assert capfd.readouterr().err == "back\n"


@pytest.mark.usefixtures("no_init")
def test_a_token_that_no_header_can_carry_is_refused_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (tmp_path / "token").write_bytes(b"s3cr3t\xff")
    cases = [{"RAY_AUTH_TOKEN": "s3cr3t\nline"}, {"RAY_AUTH_TOKEN": "s3cr3té"}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}]
    with listening(Head()) as address:
        for environ in cases:
            monkeypatch.setenv("RAY_AUTH_TOKEN", "")
            for name, value in environ.items():
                monkeypatch.setenv(name, value)
            with pytest.raises(ConfigError, match=r"RAY_AUTH_TOKEN.*expected") as caught, joined_cluster(address):
                pass
            assert "s3cr3t" not in str(caught.value)


@pytest.mark.usefixtures("no_init")
@pytest.mark.parametrize("address", ["me:s3cr3t@head:6379", "http://me:s3cr3t@head:8265", "ray://me:s3cr3t@head"])
def test_a_password_in_an_address_is_never_shown(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    for asked in (address, None):
        with pytest.raises(TokenshardsError, match="holds a user or password") as caught, joined_cluster(asked):
            pass
        assert "s3cr3t" not in str(caught.value)


@pytest.mark.usefixtures("no_init")
def test_a_cluster_with_tls_is_reached_as_ray_reaches_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "RAY_TLS_SERVER_KEY": tmp_path / "key.pem",
        "RAY_TLS_SERVER_CERT": tmp_path / "cert.pem",
        "RAY_TLS_CA_CERT": tmp_path / "cert.pem",
    }
    ask = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*ask, "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    key, certificate = (tmp_path / "key.pem").read_bytes(), (tmp_path / "cert.pem").read_bytes()
    head = Head()
    with listening(head, grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)) as address:
        monkeypatch.setenv("RAY_USE_TLS", "1")
        with pytest.raises(ConfigError, match="RAY_TLS_CA_CERT is not set"), joined_cluster(address):
            pass
        for name, path in files.items():
            monkeypatch.setenv(name, str(path))
        with joined_cluster(address):
            pass
        monkeypatch.setattr(ray_cluster.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        watch = HeadWatch()
        (tmp_path / "key.pem").unlink()
        assert watch.answers() and len(head.asked) == 2
        with pytest.raises(ConfigError, match=r"key\.pem', which cannot be read \(No such file"), joined_cluster(address):
            pass
        monkeypatch.setenv("RAY_USE_TLS", "0")
        with (
            pytest.raises(ClusterError, match="no Ray head answers at this address.* RAY_USE_TLS must have the same value"),
            joined_cluster(address),
        ):
            pass
