"""Real Ray clusters of separate `ray start` processes on this machine, so that a node is something one can kill."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from tests.datasets import ROOT
from tests.ports import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
START_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
# A node that leaves is noticed in about 10 seconds, not 30: the tests would only wait for it.
_QUICK = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_timeout_ms": "5000",
}


@dataclass
class Node:
    """One `ray start --block` and everything below it."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """SIGKILL the node whole: raylet, workers and all, as a spot instance ends."""
        members = [self.process.pid, *(child.pid for child in _descendants(self.process.pid))]
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def alive(self) -> bool:
        """True while its raylet runs: where that ends in order, as after the loss of an agent, `ray start --block` stays behind."""
        children = psutil.Process(self.process.pid).children() if self.process.poll() is None else []
        return any(child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE for child in children)

    def find(self, *words: str) -> list[psutil.Process]:
        """Return the node's processes whose command line or title holds each of `words`."""
        found = []
        for child in _descendants(self.process.pid):
            with contextlib.suppress(psutil.Error):
                line = " ".join(child.cmdline())
                if all(word in line for word in words):
                    found.append(child)
        return found


def _end_with_parent() -> None:
    """SIGTERM, on which `ray start --block` ends its node: a run that is killed would leave its clusters to the next."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@dataclass
class RayCluster:
    """A head, and nodes that join it; use as a context manager.

    `jobs` starts the dashboard, which takes submitted jobs: ten processes more, each of which imports Ray. `token` turns Ray's token
    authentication on. `env` is the environment of every node: this is where credentials belong. `cwd` is the
    folder that every node is started in.
    """

    cpus: int = 1
    jobs: bool = False
    token: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = "/"
    object_store_bytes: int = 200 << 20
    nodes: list[Node] = field(default_factory=list)

    def __enter__(self) -> RayCluster:
        self._folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: Ray puts sockets of 107 characters below it
        try:
            self._start_head()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in reversed(self.nodes):
            node.kill()
        self.nodes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """Where a driver on this machine joins."""
        return f"127.0.0.1:{self._port}"

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    @property
    def session_folder(self) -> Path:
        """Ray's own files and logs of all nodes."""
        return self._folder

    @property
    def client_env(self) -> dict[str, str]:
        """Return what a client needs to reach the cluster: the token, or that there is none."""
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        if self.token is None:
            return {**quiet, "RAY_AUTH_MODE": "disabled"}
        return {**quiet, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def _start_head(self) -> None:
        self._port, self._dashboard_port, agent, metrics, runtime_env, client = free_ports(6)
        self._start(
            "--head",
            "--port", str(self._port),
            "--include-dashboard", str(self.jobs).lower(),
            "--dashboard-host", "127.0.0.1",
            "--dashboard-port", str(self._dashboard_port),
            "--dashboard-agent-listen-port", str(agent),
            "--metrics-export-port", str(metrics),
            "--runtime-env-agent-port", str(runtime_env),
            "--ray-client-server-port", str(client),
            "--temp-dir", str(self._folder),
        )  # fmt: skip
        if self.jobs:
            self._await_dashboard()

    def add_node(self, *, cpus: int | None = None) -> Node:
        """Start another node and wait until the cluster counts it; again where Ray gives up after 30 s on a busy machine."""
        try:
            return self._join(cpus)
        except RuntimeError as error:
            if "timed out during startup" not in str(error):
                raise
            self.nodes.pop().kill()
            return self._join(cpus)

    def _join(self, cpus: int | None) -> Node:
        agent, metrics, runtime_env = free_ports(3)
        return self._start(
            "--address", self.address,
            "--dashboard-agent-listen-port", str(agent),
            "--metrics-export-port", str(metrics),
            "--runtime-env-agent-port", str(runtime_env),
            cpus=cpus,
        )  # fmt: skip

    def _start(self, *arguments: str, cpus: int | None = None) -> Node:
        command = [
            RAY, "start", "--block", "--disable-usage-stats",
            "--num-cpus", str(self.cpus if cpus is None else cpus),
            "--object-store-memory", str(self.object_store_bytes),
            "--include-log-monitor", "false",
            *arguments,
        ]  # fmt: skip
        log = Path(tempfile.mkstemp(suffix=".log", dir=self._folder)[1])
        with log.open("wb") as output:
            environment = {**os.environ, **self.client_env, **_QUICK, "OMP_NUM_THREADS": "1", **self.env}
            process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=self.cwd, env=environment, start_new_session=True, preexec_fn=_end_with_parent
            )
        node = Node(process, log)
        self.nodes.append(node)
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ray start failed (exit code {process.poll()}):\n{log.read_text()}")
            time.sleep(0.05)
        return node

    def _await_dashboard(self) -> None:
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                request = urllib.request.Request(f"{self.dashboard}/api/jobs/", headers=headers)
                with urllib.request.urlopen(request, timeout=5):
                    return
            except (urllib.error.URLError, OSError) as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the dashboard does not answer: {error}\n{self.nodes[0].log.read_text()}") from error
                time.sleep(0.1)
