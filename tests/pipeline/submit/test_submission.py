"""What a cluster is sent, and one sentence with the right exit code for each way in which it does not take a job."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.datasets import SilentReporter
from tests.submitting import foreign_folder
from tokenshards.pipeline.errors import ClusterError, ConfigError, TokenshardsError
from tokenshards.pipeline.submit import job_client, ray_dashboard
from tokenshards.pipeline.submit.job_entry import CLUSTER_PYTHON
from tokenshards.pipeline.submit.ray_dashboard import Dashboard
from tokenshards.pipeline.submit.submission import Submission, Submitted, submit

PAGES: dict[str, Any] = {
    "/api/version": {"ray_version": ray.__version__},
    "/api/v0/cluster_metadata": {"data": {"pythonVersion": "3.11.7"}},
}
TRACEBACK = 'Traceback (most recent call last):\n  File "/ray/job_head.py", line 420, in submit_job\n    raise it\n'
RESET, SILENCE = -1, -2


class FakeDashboard(ThreadingHTTPServer):
    """Answers as a dashboard of this Ray; `answer` is what it says to a new job: a status and a text, or a fault."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: tuple[int, str] = (200, '{"submission_id": "mine", "job_id": null}')
        self.packages: dict[str, bytes] = {}
        self.jobs: list[dict[str, Any]] = []
        self.done = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def submit(self, reporter: SilentReporter | None = None, **changes: Any) -> Submitted:
        asked = {"source_url": "s3://bucket/src", "out_url": "s3://bucket/out", "submission_id": "mine", **changes}
        return submit(Submission(**asked), Dashboard(self.address, {}), reporter or SilentReporter())


class _Handler(BaseHTTPRequestHandler):
    server: FakeDashboard

    def do_GET(self) -> None:
        page = PAGES.get(self.path)
        self._say(404 if page is None else 200, json.dumps(page))

    def do_PUT(self) -> None:
        self.server.packages[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._say(200, "")

    def do_POST(self) -> None:
        self.server.jobs.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        code, text = self.server.answer
        if code == SILENCE:
            self.server.done.wait(30)
        if code < 0:
            self.close_connection = True
        else:
            self._say(code, text)

    def _say(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[FakeDashboard]:
    with FakeDashboard() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.done.set()
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        ((500, "No available agent to submit job, please try again later."), ClusterError, "No available agent .*; nothing was started"),
        (
            (500, f"{TRACEBACK}aiohttp.ClientOSError: [Errno 104] Connection reset by peer\n"),
            ClusterError,
            r"job mine \(500: aiohttp",
        ),
        (
            (500, f"{TRACEBACK}TimeoutError\n"),
            ClusterError,
            r"\(500: TimeoutError\): the job may have started\. See `ray job status .* mine`",
        ),
        ((504, "<html><title>from the proxy</title></html>"), ClusterError, r"\(504: Gateway Timeout\): the job may have started"),
        ((RESET, ""), ClusterError, "no answer from http.* to job mine .*: the job may have started"),
        ((SILENCE, ""), ClusterError, "no answer from http.* to job mine .*: the job may have started"),
        ((400, f"{TRACEBACK}ValueError: no such field\n"), ConfigError, r"\(400: ValueError: no such field\); nothing was started"),
        (
            (500, f"{TRACEBACK}RuntimeError: Request failed with status code 400: {TRACEBACK}ValueError: bad runtime_env\n."),
            ConfigError,
            r"\(500: ValueError: bad runtime_env\); nothing was started",
        ),
        (
            (500, f"{TRACEBACK}RuntimeError: Request failed with status code 400: ValueError: Job with id mine already exists.\n."),
            ConfigError,
            "never accepts an id twice",
        ),
        ((403, "no"), ConfigError, r"without authentication \(403\)"),
    ],
)
def test_a_job_that_is_not_taken_is_one_sentence(
    fake: FakeDashboard, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str], kind: type[TokenshardsError], says: str
) -> None:
    if answer[0] == SILENCE:
        monkeypatch.setattr(job_client, "SUBMIT_SECONDS", 3.0)
    fake.answer = answer
    started = time.monotonic()
    with pytest.raises(kind, match=says) as caught:
        fake.submit()
    assert time.monotonic() - started < 20, "no answer is waited for without an end"
    assert len(fake.jobs) == 1, "a job is never sent twice"
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and "<html>" not in text


def test_a_cluster_that_goes_away_before_the_job_is_sent(fake: FakeDashboard) -> None:
    dashboard = Dashboard(fake.address, {})
    dashboard.connect()
    client = job_client.ray_client(dashboard)
    fake.shutdown()
    fake.server_close()
    with pytest.raises(ClusterError, match="no answer from .* is the cluster up.* Nothing was started") as caught:
        job_client.start_job(client, dashboard, submission_id="mine", entrypoint="true")
    assert "may have started" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://me:s3cr3t@head:82x5", "user or password"),
        ("ray://me:s3cr3t@head", "user or password"),
        ("me:s3cr3t@head", "user or password"),
        ("http://[me:s3cr3t@head", "user or password"),
        ("http://head:82x5?token=s3cr3t", "holds a query"),
        ("http://head:8265/#s3cr3t", "holds a query"),
        ("http://head:82x5", "head:82x5"),
        ("ray://head", "Ray Client"),
    ],
)
def test_an_address_with_a_secret_is_refused_without_it(address: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Dashboard(address)
    assert "s3cr3t" not in str(caught.value)


def test_the_credentials_of_the_named_profile_go_and_its_name_stays(
    fake: FakeDashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "default")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "default")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "config").write_text("[profile prod]\nregion = eu-west-1\n")
    (tmp_path / "credentials").write_text("[prod]\naws_access_key_id = prod-id\naws_secret_access_key = prod-value\n")
    given = ("--storage-option=profile=prod", "--storage-option=anon=false")
    fake.submit(arguments=given)
    fake.submit(arguments=given, forward_credentials=True)
    fake.submit(forward_credentials=True)
    kept, forwarded, default = fake.jobs
    sent = [{name: value for name, value in job["runtime_env"]["env_vars"].items() if name.startswith("AWS_A")} for job in fake.jobs]
    assert sent == [{}, {"AWS_ACCESS_KEY_ID": "prod-id"}, {"AWS_ACCESS_KEY_ID": "default"}]
    assert forwarded["runtime_env"]["env_vars"]["AWS_SECRET_ACCESS_KEY"] == "prod-value"
    assert forwarded["runtime_env"]["env_vars"]["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert "AWS_DEFAULT_REGION" not in default["runtime_env"]["env_vars"]
    assert shlex.split(kept["entrypoint"])[-2:] == list(given)
    words = shlex.split(forwarded["entrypoint"])
    assert words[-1] == given[1] and given[0] not in words
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    fake.submit(arguments=given, forward_credentials=True)
    assert fake.jobs[-1]["runtime_env"]["env_vars"]["AWS_DEFAULT_REGION"] == "eu-north-1"
    for side in ("SRC", "OUT"):
        monkeypatch.setenv(f"TOKENSHARDS_{side}_PROFILE", "prod")
    fake.submit()
    fake.submit(forward_credentials=True, arguments=("--out-option=profile=prod",))
    kept, forwarded = (job["runtime_env"]["env_vars"] for job in fake.jobs[-2:])
    assert kept["TOKENSHARDS_SRC_PROFILE"] == kept["TOKENSHARDS_OUT_PROFILE"] == "prod" and "AWS_ACCESS_KEY_ID" not in kept
    assert forwarded["AWS_ACCESS_KEY_ID"] == "prod-id" and not any(name.startswith("TOKENSHARDS_SRC") for name in forwarded)
    assert "profile" not in fake.jobs[-1]["entrypoint"]


def test_the_entry_speaks_under_an_old_python_and_never_runs_the_code_of_a_foreign_folder(fake: FakeDashboard, tmp_path: Path) -> None:
    fake.submit()
    job = fake.jobs[0]
    assert [f"/api/packages/gcs/{uri.removeprefix('gcs://')}" for uri in job["runtime_env"]["py_modules"]] == list(fake.packages)
    places = []
    for number, data in enumerate(fake.packages.values()):
        places.append(str(tmp_path / "at" / str(number)))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(places[-1])
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    # As a Python before 3.11 does: it knows no -P.
    python.write_text(f'#!/bin/sh\n[ "$1" = -P ] && {{ echo "Unknown option: -P" >&2; exit 2; }}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    sent = {**job["runtime_env"]["env_vars"], "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(places)}
    env = {**os.environ, **sent, CLUSTER_PYTHON: "3.8.1"}
    shown = subprocess.run(job["entrypoint"], shell=True, cwd=foreign_folder(tmp_path / "foreign"), env=env, capture_output=True, text=True)
    assert shown.returncode == 2 and "Ray runs Python 3.8.1 here" in shown.stderr, shown.stderr


@pytest.mark.parametrize(
    ("wanted", "nodes", "warned"),
    [("1", [{"CPU": 4.0}], True), ("1", [{"CPU": 4.0}, {"GPU": 1.0}], False), ("0", [{"CPU": 4.0}], False), ("0.5", None, False)],
)
def test_a_cluster_without_the_gpu_that_is_asked_for_is_said_at_once(
    fake: FakeDashboard, monkeypatch: pytest.MonkeyPatch, wanted: str, nodes: list[dict[str, float]] | None, warned: bool
) -> None:
    if nodes is not None:
        listed = [{"state": "ALIVE", "resources_total": node} for node in nodes]
        dead = {"state": "DEAD", "resources_total": {"GPU": 8.0}}
        monkeypatch.setitem(PAGES, "/api/v0/nodes?detail=1&limit=10000", {"data": {"result": {"result": [*listed, dead]}}})
    reporter = SilentReporter()
    fake.submit(reporter, arguments=(f"--gpus-per-actor={wanted}",))
    assert any("no node of the cluster has a GPU now" in line for line in reporter.lines) == warned and len(fake.jobs) == 1


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_dashboard, "REQUEST_SECONDS", 1.0)
    stop = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            while not stop.wait(0.1):
                self.wfile.write(b" ")
                self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with pytest.raises(ClusterError, match="it did not answer within 1 s"):
            Dashboard(f"http://127.0.0.1:{server.server_address[1]}", {}).connect()
        stop.set()
        server.shutdown()
