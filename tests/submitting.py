"""Parts that the tests of submitted jobs share: a cluster that has only its nodes' credentials, and the client's side of it."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.datasets import run_cli
from tests.ray_clusters import RayCluster
from tests.s3_servers import NO_CREDENTIALS

BIN = str(Path(sys.executable).parent)
SMALL = ("--size", "16", "--codes", "16", "--max-bad", "1", "--sample", "40", "--workers", "1")


def node_env(**more: str) -> dict[str, str]:
    """Return the environment of nodes whose `python` is this one, and which find no code of ours beside what is shipped."""
    return {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": "", **NO_CREDENTIALS, **more}


def foreign_folder(folder: Path) -> Path:
    """Make a folder with a `tokenshards`, a `pipeline` and a `cli.py` of somebody else, which must never run."""
    for name in ("tokenshards/__init__.py", "pipeline/__init__.py", "cli.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise RuntimeError('the code of somebody else runs')\n")
    return folder


def submit_cli(cluster: RayCluster, *arguments: str, expect: int = 0, env: dict[str, str] | None = None) -> tuple[str, str]:
    """Run `submit` against a cluster with its token and no credentials; return stdout and stderr."""
    given = {**NO_CREDENTIALS, **cluster.client_env, **(env or {})}
    return run_cli("submit", *arguments, "--address", cluster.dashboard, env=given, expect=expect)


def rest(cluster: RayCluster, path: str, *, post: bool = False) -> Any:
    """Return a page of the dashboard as JSON."""
    headers = {"Authorization": f"Bearer {cluster.token}"} if cluster.token else {}
    request = urllib.request.Request(f"{cluster.dashboard}{path}", headers=headers, method="POST" if post else "GET")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def await_job(cluster: RayCluster, submission_id: str, *statuses: str) -> dict[str, Any]:
    """Wait until a job has one of the statuses; return what the cluster says of it."""
    deadline = time.monotonic() + 60
    while True:
        found: dict[str, Any] = rest(cluster, f"/api/jobs/{submission_id}")
        if found["status"] in statuses:
            return found
        assert found["status"] in ("PENDING", "RUNNING") and time.monotonic() < deadline, found
        time.sleep(0.1)
