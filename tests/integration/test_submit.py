"""`submit`: the whole way of a job through a real cluster with token authentication, and one clear sentence for what cannot work."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import SilentReporter, content, convert, start_cli, write_images
from tests.ports import free_ports
from tests.ray_clusters import RayCluster
from tests.s3_servers import ACCESS_KEY, NO_CREDENTIALS, SECRET_KEY, S3Server, moto_server, rclone_server
from tests.submitting import SMALL, await_job, foreign_folder, node_env, rest, submit_cli
from tokenshards.pipeline.errors import ClusterError, ConfigError, TokenshardsError
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.submit.job_client import ray_client
from tokenshards.pipeline.submit.job_watch import watch_job
from tokenshards.pipeline.submit.ray_dashboard import Dashboard
from tokenshards.pipeline.submit.submission import Submission, Submitted, submit

# For a busy machine: a cluster is a dozen processes, each of which imports much. Where nothing else runs, 120 s are enough for each.
pytestmark = pytest.mark.timeout(300)

TOKEN = "a-token-of-the-cluster-0123456789abcdef"
IMAGES = 60


@pytest.fixture(scope="module")
def servers(place: Path) -> Iterator[dict[str, S3Server]]:
    with moto_server() as moto, rclone_server(place / "rclone") as rclone:
        yield {server.name: server for server in (moto, rclone)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submit")


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[RayCluster]:
    """Two nodes that stand in, and have on their path, a folder with another `pipeline` and `cli.py`."""
    foreign = foreign_folder(place / "foreign_node")
    env = node_env(PYTHONPATH=str(foreign), AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
    with RayCluster(cpus=1, jobs=True, token=TOKEN, env=env, cwd=str(foreign)) as started:
        started.add_node()
        yield started


@pytest.fixture(scope="module")
def images(place: Path) -> Path:
    write_images(place / "src", IMAGES)
    return place / "src"


def many(folder: Path) -> Path:
    """Enough work to be interrupted in the middle: many small shards."""
    if not folder.exists():
        write_images(folder, 240, side=96)
    return folder


@pytest.mark.parametrize("name", ["moto", "rclone"])
def test_from_s3_to_s3_from_a_folder_with_another_pipeline(
    cluster: RayCluster, servers: dict[str, S3Server], name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = servers[name]
    s3.upload(images, "s3://bucket/src")
    monkeypatch.chdir(foreign_folder(tmp_path / "foreign_client"))
    env = {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_DEFAULT_REGION": "us-east-1", "RAY_ADDRESS": "127.0.0.1:1"}
    out, errors = submit_cli(cluster, "s3://bucket/src", "s3://bucket/out", *SMALL, "--tail", "--license", "it's ours; $HOME", env=env)
    assert "s3://bucket/out: complete" in out and "the job" not in out
    assert "succeeded" in errors
    job = rest(cluster, "/api/jobs/")[0]
    assert job["submission_id"].startswith("tokenshards-out-")
    assert job["metadata"]["src"] == "s3://bucket/src" and job["metadata"]["out"] == "s3://bucket/out"
    assert {name for name in job["runtime_env"]["env_vars"] if name.startswith("AWS_")} == {"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"}
    assert {Path(uri).suffix for uri in job["runtime_env"]["py_modules"]} == {".zip"} and "working_dir" not in job["runtime_env"]
    for variable, value in s3.env.items():
        monkeypatch.setenv(variable, value)
    convert(images, tmp_path / "local", tokenizer="s3://bucket/out/tokenizer", batch_rows=64)
    assert content("s3://bucket/out") == content(tmp_path / "local")
    assert load_manifest(Store("s3://bucket/out")).card["licence"] == "it's ours; $HOME"


def test_no_wait_prints_the_id_and_a_second_submission_continues(cluster: RayCluster, images: Path, place: Path) -> None:
    (place / "token").write_text(TOKEN + "\n")
    env = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(place / "token")}
    arguments = (str(images), str(place / "out"), "--local-paths", *SMALL)
    out, errors = submit_cli(cluster, *arguments, "--no-wait", "--submission-id", "first.try", env=env)
    assert out == "first.try\n" and "ray job stop" in errors
    assert await_job(cluster, "first.try", "SUCCEEDED")["driver_exit_code"] == 0
    home = place / "home" / ".ray"
    home.mkdir(parents=True)
    shutil.copy(place / "token", home / "auth_token")
    out, _ = submit_cli(cluster, *arguments, "--json", "--tail", env={"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": "", "HOME": str(home.parent)})
    report = json.loads(out)
    assert report["status"] == "succeeded" and report["exit_code"] == 0 and report["seconds"] > 0
    assert "already complete" in rest(cluster, f"/api/jobs/{report['submission_id']}/logs")["logs"]
    assert len(content(place / "out")) == IMAGES
    _, errors = submit_cli(cluster, *arguments, "--submission-id", "first.try", expect=2)
    assert "never accepts an id twice" in errors


def test_the_exit_code_and_the_end_of_the_log_of_a_failing_job(cluster: RayCluster, place: Path) -> None:
    out, errors = submit_cli(cluster, str(place / "nothing"), str(place / "out1"), "--local-paths", "--json", expect=2)
    assert json.loads(out)["exit_code"] == 2 and json.loads(out)["status"] == "failed"
    assert "ended with exit code 2" in errors and "nothing there; check the path" in errors


def test_a_killed_driver_then_the_same_command_again(cluster: RayCluster, place: Path) -> None:
    arguments = (str(many(place / "many")), str(place / "killed"), "--local-paths", *SMALL, "--shard-rows", "4")
    env = {**NO_CREDENTIALS, **cluster.client_env}
    process = start_cli("submit", *arguments, "--address", cluster.dashboard, env=env)
    await_commits(place / "killed")
    drivers = cluster.nodes[0].find("cli", "tokenize", str(place / "killed"))
    assert drivers
    for driver in drivers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(driver.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 137, errors
    assert " of 240 images  " in errors, "its progress came from the run's record"
    out, _ = submit_cli(cluster, *arguments)
    title, *table = out.splitlines()
    assert title == f"{place / 'killed'}: complete" and any(line.startswith("images") for line in table), "the report, without --tail"
    assert len(content(place / "killed")) == 240


def test_ctrl_c_leaves_the_job_and_ray_stops_it(cluster: RayCluster, place: Path) -> None:
    arguments = (str(many(place / "many")), str(place / "left"), "--local-paths", *SMALL, "--shard-rows", "2", "--submission-id", "left")
    process = start_cli("submit", *arguments, "--address", cluster.dashboard, "--tail", env={**NO_CREDENTIALS, **cluster.client_env})
    await_commits(place / "left")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "the job continues" in errors and "ray job stop" in errors and "Traceback" not in errors
    assert rest(cluster, "/api/jobs/left")["status"] == "RUNNING"
    assert rest(cluster, "/api/jobs/left/stop", post=True) == {"stopped": True}
    await_job(cluster, "left", "STOPPED")
    assert watch_job(handle_of(cluster.dashboard, "left"), SilentReporter()).exit_code == 143


def await_commits(out: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(out.glob("commits/*/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def handle_of(address: str, submission_id: str) -> Submitted:
    dashboard = Dashboard(address, {"RAY_AUTH_TOKEN": TOKEN})
    dashboard.connect()
    return Submitted(submission_id=submission_id, dashboard=dashboard, client=ray_client(dashboard))


def test_nodes_that_cannot_install_the_code_are_one_sentence(cluster: RayCluster, tmp_path: Path) -> None:
    handle = handle_of(cluster.dashboard, "broken")
    (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel at all")
    environment = {"py_modules": [str(tmp_path / "broken-1.0-py3-none-any.whl")]}
    handle.client.submit_job(entrypoint="true", submission_id="broken", runtime_env=environment)
    with pytest.raises(ClusterError, match="ended job broken: .*Failed to install.*is invalid.*Nothing ran") as caught:
        watch_job(handle, SilentReporter())
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


class Proxy:
    """A TCP proxy whose connections can all be cut at once."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listening.accept()[0]
                far = socket.create_connection(self._upstream)
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()
        self.cut()


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # how Ray's client calls aiohttp
def test_a_tail_that_loses_its_connection_shows_every_line_once(cluster: RayCluster) -> None:
    handle = handle_of(cluster.dashboard, "counting")
    handle.client.submit_job(entrypoint="for i in $(seq 40); do echo line $i; sleep 0.1; done", submission_id="counting")
    proxy = Proxy(cluster.dashboard)
    shown: list[str] = []

    def write_log(text: str) -> None:
        if "line 5\n" in text:
            assert rest(cluster, "/api/jobs/counting")["status"] == "RUNNING"
            threading.Thread(target=proxy.cut, daemon=True).start()
        shown.append(text)

    end = watch_job(handle_of(proxy.address, "counting"), SilentReporter(), write_log=write_log)
    proxy.close()
    assert end.exit_code == 0 and len(shown) > 2
    assert [line for line in "".join(shown).splitlines() if line.startswith("line ")] == [f"line {i}" for i in range(1, 41)]


class _Answers(BaseHTTPRequestHandler):
    """A dashboard of some other version."""

    pages: dict[str, Any] = {}

    def do_GET(self) -> None:
        page = self.pages.get(self.path)
        body = json.dumps(page).encode()
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(handler: Any) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("ray", "python", "says"),
    [
        ("2.9.3", "3.11.7", "runs Ray 2.9.3, this machine 2."),
        ("3.1.0", "3.11.7", "with the same major version"),
        ("2.60.0", "3.10.4", "runs Python 3.10.4; expected 3.11 or newer"),
    ],
)
def test_versions_that_cannot_work_are_one_sentence(ray: str, python: str, says: str) -> None:
    pages = {
        "/api/version": {"version": "4", "ray_version": ray},
        "/api/v0/cluster_metadata": {"data": {"rayVersion": ray, "pythonVersion": python}},
    }
    asked = Submission(source_url="s3://a/b", out_url="s3://a/c")
    with served(type("Other", (_Answers,), {"pages": pages})) as address, pytest.raises(ConfigError, match=says):
        submit(asked, Dashboard(address, {}), SilentReporter())


def test_an_address_that_cannot_work_is_one_sentence(cluster: RayCluster, tmp_path: Path) -> None:
    closed, no_token = free_ports(1)[0], {"RAY_AUTH_TOKEN": ""}
    (tmp_path / "empty").write_text("")
    cases: list[tuple[str, dict[str, str], int, str]] = [
        (f"http://127.0.0.1:{closed}", {}, 3, "is the cluster up"),
        (f"http://{cluster.address}", {}, 2, "port 6379 is for nodes"),
        (f"ray://{cluster.address}", {}, 2, "ray:// is the address of Ray Client"),
        ("auto", {}, 2, "expected the address of the dashboard"),
        (cluster.dashboard.replace("http", "https"), {}, 2, "https:// only if TLS is set up"),
        (cluster.dashboard.replace("http://", "http://me:secret-word@"), {}, 2, "holds a user or password"),
        (cluster.dashboard, {**no_token, "RAY_AUTH_MODE": ""}, 2, "requires a token, but this machine has none"),
        (cluster.dashboard, no_token, 2, "RAY_AUTH_MODE is token, but there is no token"),
        (cluster.dashboard, {"RAY_AUTH_MODE": "disabled"}, 2, "requires a token, but RAY_AUTH_MODE is disabled here"),
        (cluster.dashboard, {"RAY_AUTH_TOKEN": "another-token"}, 2, "refuses the token of this machine (403)"),
        (cluster.dashboard, {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "no")}, 2, "which cannot be read"),
        (cluster.dashboard, {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "empty")}, 2, "which is empty"),
    ]
    with served(partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as other:
        cases.append((other, {}, 2, "not as the dashboard of a Ray cluster"))
        for address, env, code, says in cases:
            with pytest.raises(TokenshardsError) as caught:
                Dashboard(address, {**cluster.client_env, "HOME": str(tmp_path), **env}).connect()
            text = str(caught.value)
            assert says in text and "\n" not in text and caught.value.exit_code == code, (address, text)
            assert "secret-word" not in text and TOKEN not in text and "another-token" not in text
    _, errors = submit_cli(cluster, "s3://a/b", "s3://a/c", env={"RAY_AUTH_TOKEN": "another-token"}, expect=2)
    assert errors.startswith("error: ") and "refuses the token" in errors and errors.count("\n") == 1


def test_a_head_that_dies_is_one_sentence(cluster: RayCluster) -> None:
    """The last of this file, because it ends the cluster."""
    job = handle_of(cluster.dashboard, "lost")
    job.client.submit_job(entrypoint="sleep 100", submission_id="lost")
    await_job(cluster, "lost", "RUNNING")
    cluster.nodes[0].kill()
    reporter = SilentReporter()
    with pytest.raises(ClusterError, match="was lost while job .*[Ss]ubmit the same command again") as caught:
        watch_job(job, reporter, lost_seconds=1.0)
    assert caught.value.exit_code == 3 and any("does not answer" in line for line in reporter.lines)
