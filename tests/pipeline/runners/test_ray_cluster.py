"""What a cluster has room for, by its nodes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from pipeline.errors import ClusterError, ConfigError, TokenshardsError
from pipeline.runners import ray_cluster
from pipeline.runners.ray_cluster import (
    ASK_SECONDS,
    HEAD_SECONDS,
    ClusterSize,
    FreeCpus,
    HeadWatch,
    cluster_size,
    joined_cluster,
    node_is_alive,
)


class Nodes:
    """The nodes that Ray would show, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cpus: dict[str, float] = {}
        self.gone: set[str] = set()
        self.asked = 0
        self.now = 1000.0
        monkeypatch.setattr(ray_cluster.ray, "nodes", self.shown)
        monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: self.now)

    def shown(self) -> list[dict[str, object]]:
        self.asked += 1
        resources = {name: {"CPU": cpus, "GPU": 1.0, "memory": 1e9} if cpus else {"memory": 1e9} for name, cpus in self.cpus.items()}
        return [{"NodeID": name, "Alive": name not in self.gone, "Resources": found} for name, found in resources.items()]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    return Nodes(monkeypatch)


@pytest.mark.parametrize(
    ("cpus", "held", "pending", "largest"),
    [
        ({"a": 4, "b": 8}, {}, 0, 8),
        ({"a": 4, "b": 8}, {"b": 6}, 0, 4),
        ({"a": 4, "b": 8}, {"a": 4, "b": 8}, 0, 0),
        ({"a": 4, "b": 8}, {"a": 4, "b": 4}, 2, 2),
        ({"a": 4, "b": 8}, {"a": 4, "b": 4}, 6, 0),
        ({"a": 4}, {"a": 4, "left": 16}, 0, 0),
        ({"head": 0, "a": 2}, {"a": 1}, 0, 1),
        ({"head": 0}, {}, 0, 0),
        ({}, {}, 0, 0),
    ],
)
def test_free_cpus_of_one_node(nodes: Nodes, cpus: dict[str, float], held: dict[str, int], pending: int, largest: int) -> None:
    nodes.cpus = cpus
    assert FreeCpus().largest(held, pending) == largest


def test_nodes_are_asked_for_every_few_seconds_and_those_that_left_have_no_cpus(nodes: Nodes) -> None:
    nodes.cpus = {"a": 4, "b": 2}
    free = FreeCpus()
    assert [free.largest({}, 0) for _ in range(50)] == [4] * 50 and nodes.asked == 1
    nodes.gone.add("a")
    assert free.largest({}, 0) == 4, "not asked again yet"
    nodes.now += ASK_SECONDS
    assert free.largest({}, 0) == 2 and nodes.asked == 2


def test_size_and_life_of_nodes(nodes: Nodes) -> None:
    nodes.cpus = {"head": 0, "a": 4, "b": 2}
    nodes.gone.add("b")
    assert str(cluster_size()) == "2 nodes, 4 CPUs, 1 GPUs" and str(ClusterSize(1, 3, 0.0)) == "1 node, 3 CPUs"
    assert [node_is_alive(name) for name in ("a", "b", "c")] == [True, False, False]


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"), [(1, 0.0, 12), (5, 0.0, 2), (0, 0.0, 12), (1, 0.5, 4), (5, 0.5, 2), (1, 0.3, 6), (1, 4.0, 0), (16, 0.0, 0)]
)
def test_room_for_actors(cpus: int, gpus: float, room: int) -> None:
    count: Callable[[int, float], int] = ClusterSize(3, 12, 2.0).room_for
    assert count(cpus, gpus) == room


def test_a_head_that_stays_silent_ends_the_run_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch)
    with socket.socket() as closed:  # bound and not listening: nobody answers, and nobody else takes the port
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(ray_cluster.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        watch = HeadWatch()
        for seconds in range(0, int(HEAD_SECONDS), 6):
            nodes.now = 1000.0 + seconds
            watch.check()
        assert not watch.answers()
        nodes.now = 1001.0 + HEAD_SECONDS
        with pytest.raises(ClusterError, match=r"has not answered for 41 s\. .* run the same command again"):
            watch.check()
    long_silence = 10 * HEAD_SECONDS
    nodes.now += long_silence
    watch.check()  # nobody had asked meanwhile: it begins to count only now


class Head(grpc.GenericRpcHandler):
    """Answers a knock as a head with token authentication does, and keeps what it was sent."""

    def __init__(self, token: str = "") -> None:
        self._token = token
        self.sent: list[str | None] = []

    def service(self, handler_call_details: Any) -> Any:
        self.sent.append(dict(handler_call_details.invocation_metadata).get("authorization"))

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self._token and self.sent[-1] != f"Bearer {self._token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


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
    """The knock alone: what follows it would start or join a real cluster."""
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **_: None)
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_init")
def test_a_token_goes_as_ray_sends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-the-file\n")
    head = Head()
    with listening(head) as address:
        for mode, token in (("", ""), ("disabled", "here"), ("token", ""), ("token", "here\n")):
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
            with joined_cluster(address):
                pass
    assert head.sent == [None, None, "Bearer of-the-file", "Bearer here"]


@pytest.mark.usefixtures("no_init")
def test_a_token_that_no_header_can_carry_is_refused_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (tmp_path / "token").write_bytes(b"s3cr3t\xff")
    cases = [{"RAY_AUTH_TOKEN": "s3cr3t\nline"}, {"RAY_AUTH_TOKEN": "s3cr3té"}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}]
    with listening(Head("another")) as address:
        for environ in cases:
            monkeypatch.setenv("RAY_AUTH_TOKEN", "")
            for name, value in environ.items():
                monkeypatch.setenv(name, value)
            with pytest.raises(ConfigError, match=r"RAY_AUTH_TOKEN.*expected") as caught, joined_cluster(address):
                pass
            assert "s3cr3t" not in str(caught.value)
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cr3t")
        with pytest.raises(ClusterError, match="got another one") as refused, joined_cluster(address):
            pass
        assert "s3cr3t" not in str(refused.value)


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
        assert watch.answers() and len(head.sent) == 2
        with pytest.raises(ConfigError, match=r"key\.pem', which cannot be read \(No such file"), joined_cluster(address):
            pass
        monkeypatch.setenv("RAY_USE_TLS", "0")
        with pytest.raises(ClusterError, match="no Ray head answers there.* RAY_USE_TLS must be as there"), joined_cluster(address):
            pass
