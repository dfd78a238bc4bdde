"""Credentials that only the nodes have are in nothing that a job leaves behind or shows."""

from __future__ import annotations

import io
import random
import re
import string
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import zstandard

from tests.datasets import write_images
from tests.ray_clusters import RayCluster
from tests.s3_servers import NO_CREDENTIALS, S3Server, faulty_proxy, moto_server
from tests.secret_scan import SecretScan
from tests.submitting import SMALL, node_env, rest, submit_cli

# For a busy machine: a cluster is a dozen processes, each of which imports much. Where nothing else runs, 120 s are enough for each.
pytestmark = pytest.mark.timeout(300)

KEY_ID, SECRET, SESSION = "AKIANODESONLY0123456", "only/the+nodes/know+this/secret/0123456789", "session-token-of-the-nodes-abcdefghij"
TOKEN = "token-of-the-cluster-that-is-secret-too-012345"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SESSION}
SCAN = SecretScan(KEY_ID, SECRET, SESSION, TOKEN)
# What is no page of state: it measures, waits, streams, or wants parameters that mean so.
_NO_PAGES = re.compile(r"profile|traceback|delay|/logs/tail|memory|/api/v0/logs|test/dump")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture(scope="module")
def cluster(s3: S3Server) -> Iterator[RayCluster]:
    with RayCluster(cpus=1, jobs=True, token=TOKEN, env=node_env(**CREDENTIALS, TOKENSHARDS_TRACEBACK="1")) as started:
        started.add_node()
        yield started


def test_the_watch_sees_a_command_line() -> None:
    with SCAN.watch_command_lines() as shown:
        process = subprocess.Popen([sys.executable, "-c", "input()", f"--key={SECRET}"], stdin=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not shown and time.monotonic() < deadline:
            time.sleep(0.01)
        process.communicate(b"\n")
    assert shown and all(SECRET in line for line in shown)


def pages(cluster: RayCluster, submission_ids: list[str]) -> dict[str, bytes]:
    """Return the answer of every page that the sources of Ray's dashboard name."""
    dashboard = Path(ray.__file__).parent / "dashboard"
    routes = {route for path in dashboard.rglob("*.py") for route in re.findall(r'routes\.get\(\s*"([^"]+)"', path.read_text())}
    nodes = [node["node_id"] for node in rest(cluster, "/api/v0/nodes")["data"]["result"]["result"]]
    actors = [actor["actor_id"] for actor in rest(cluster, "/api/v0/actors")["data"]["result"]["result"]]
    values = {"job_or_submission_id": submission_ids, "node_id": nodes, "actor_id": actors, "job_id": ["01000000"]}
    asked = ["/nodes?view=summary", "/nodes?view=hostNameList", *(f"/api/v0/logs?node_id={node}" for node in nodes)] + [
        f"/api/v0/{kind}?detail=1" for kind in ("actors", "tasks", "workers")
    ]
    for route in routes:
        name = re.search(r"\{(\w+)\}", route)
        if not _NO_PAGES.search(route):
            asked += [route] if name is None else [route.replace(name[0], value) for value in values.get(name[1], [])]
    found = {}
    for path in sorted(asked):
        request = urllib.request.Request(cluster.dashboard + path, headers={"Authorization": f"Bearer {TOKEN}"})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                found[path] = answer.read()
        except urllib.error.HTTPError as error:
            found[path] = error.read()
    return found


def test_the_scan_finds_what_is_there(tmp_path: Path) -> None:
    around = "".join(random.Random(0).choices(string.ascii_letters + string.digits, k=4000))  # enough for a compressor to code each letter
    text = f"{around} {SECRET} {around[::-1]}"
    table = io.BytesIO()
    pq.write_table(pa.table({"path": ["x", text]}), table, compression="zstd")
    hidden = {"plain": text.encode(), "zstd": zstandard.compress(text.encode()), "parquet": table.getvalue()}
    for name, data in hidden.items():
        (tmp_path / name).write_bytes(data)
        assert name == "plain" or SECRET.encode() not in data
    found, read = SCAN.files(tmp_path)
    assert {Path(path).name for path in found} == set(hidden) and read == 3
    assert not SCAN.has(b"only the nodes")


def test_nothing_shows_the_credentials_of_the_nodes(cluster: RayCluster, s3: S3Server, tmp_path: Path) -> None:
    write_images(tmp_path / "src", 40, bad=2)
    s3.upload(tmp_path / "src", "s3://bucket/src")
    region = {"AWS_DEFAULT_REGION": "us-east-1"}
    here = {**region, "AWS_ENDPOINT_URL": s3.endpoint}
    ids = ["works", "fails", "forbidden"]
    said = []
    with SCAN.watch_command_lines() as shown, faulty_proxy(s3) as proxy:
        said += submit_cli(cluster, "s3://bucket/src", "s3://bucket/out", *SMALL, "--tail", "--submission-id", "works", env=here)
        said += submit_cli(cluster, "s3://nobucket/src", "s3://bucket/out2", "--tail", "--submission-id", "fails", env=here, expect=1)
        proxy.set(forbidden_seconds=120)
        arguments = ("s3://bucket/src", "s3://bucket/out", "--retry-attempts", "1", "--tail", "--submission-id", "forbidden")
        said += submit_cli(cluster, *arguments, env={**region, "AWS_ENDPOINT_URL": proxy.endpoint}, expect=1)
        answers = pages(cluster, ids)
    assert "complete" in said[0] and all("Traceback" in log for log in (said[2], said[4])) and "Access Denied" in said[4]
    nodes = [psutil.Process(node.process.pid) for node in cluster.nodes]
    assert all(node.environ()["AWS_SECRET_ACCESS_KEY"] == SECRET for node in nodes), "the nodes have what is searched for"
    assert [text for text in said if SCAN.has(text.encode())] == []
    assert shown == []
    objects = s3.objects("s3://bucket/out")
    assert {"plan.json", "manifest.json"} & {name.rpartition("/")[2] for name in objects} and len(objects) > 5
    assert [name for name, data in objects.items() if SCAN.has(data) or SCAN.has(name.encode())] == []
    assert len(answers) > 40 and all(name in str(sorted(answers)) for name in ids)
    assert [path for path, data in answers.items() if SCAN.has(data)] == []
    found, read = SCAN.files(cluster.session_folder)
    assert read > 40 and found == []


def test_forwarded_credentials_are_shown_by_ray_as_the_warning_says(cluster: RayCluster, s3: S3Server, tmp_path: Path) -> None:
    env = {**NO_CREDENTIALS, **CREDENTIALS, "AWS_ENDPOINT_URL": s3.endpoint}
    _, errors = submit_cli(
        cluster, "s3://nobucket/a", "s3://bucket/b", "--forward-credentials", "--tail", "--submission-id", "shown", env=env, expect=1
    )
    assert "warning: --forward-credentials" in errors and not SCAN.has(errors.encode())
    assert any(SCAN.has(data) for path, data in pages(cluster, ["shown"]).items() if "/jobs/" in path), "the scan reads what Ray shows"
