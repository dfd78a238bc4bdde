"""`tokenize` as a job of a Ray cluster: what is sent, what is refused before anything is sent, and the handle of what then runs."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fsspec.core import split_protocol

from tokenshards.pipeline.config import FitConfig, PlanConfig, RayConfig, RetryConfig, RunConfig, SourceConfig
from tokenshards.pipeline.conversion.request import Reporter
from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.codecs import get_codec
from tokenshards.pipeline.storage.store import display_url
from tokenshards.pipeline.submit.forwarding import credentials, forwarded_variables, refuse_secret_options, refuse_secret_urls
from tokenshards.pipeline.submit.job_entry import CLUSTER_PYTHON
from tokenshards.pipeline.submit.ray_dashboard import Dashboard, Versions
from tokenshards.pipeline.submit.wheel import Project, build_wheel, read_project

__all__ = ["Submission", "Submitted", "check_values", "ray_client", "submit"]

MIN_PYTHON = (3, 11)
RUNNER_ARGUMENTS = ("--runner", "ray", "--join")
"""Beside --join a second submission never waits until the first one's driver counts as dead."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

Config = TypeVar("Config", FitConfig, PlanConfig, RayConfig)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What `submit` was asked to do."""

    source_url: str
    out_url: str
    arguments: tuple[str, ...] = ()
    """Options for `tokenize`, as words of a command line."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """The storage options among them, parsed."""
    tokenizer_url: str | None = None
    submission_id: str | None = None
    local_paths: bool = False
    """The nodes share the paths that are no URLs."""
    forward_credentials: bool = False
    install_dependencies: bool = False

    def __post_init__(self) -> None:
        if self.submission_id is not None and not _ID.fullmatch(self.submission_id):
            raise ConfigError(
                f"--submission-id is {shorten(self.submission_id)}; expected 1 to 128 letters, digits, dots, dashes or underscores"
            )
        for name, url in (("SRC", self.source_url), ("OUT", self.out_url), ("--tokenizer", self.tokenizer_url)):
            if url is not None:
                _check_reachable(name, url, self.local_paths)
                refuse_secret_urls(name, [url])
        refuse_secret_options(self.storage_options)
        for text in self.arguments:
            refuse_secret_urls(text.partition("=")[0], [text])


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job that the cluster has accepted."""

    submission_id: str
    dashboard: Dashboard
    client: Any
    """Ray's JobSubmissionClient."""


def _check_reachable(name: str, url: str, local_paths: bool) -> None:
    """Raise ConfigError for a path on a disk: on a cluster it would be the disk of whichever node works, or of a container that ends."""
    protocol, path = split_protocol(url)
    if protocol not in (None, "file", "local"):
        return
    if not local_paths:
        raise ConfigError(
            f"{name} is the local path {shorten(url)}; expected a URL such as s3://bucket/folder, because each node has a disk of its own. "
            "If all nodes mount this path (NFS, EFS, Lustre, or one machine), add --local-paths"
        )
    if not path.startswith("/"):
        raise ConfigError(f"{name} is the relative path {shorten(url)}; expected an absolute one, the same on every node")


def check_values(values: Mapping[str, Any]) -> None:
    """Raise ConfigError where an option of `tokenize` has a value that it cannot have; `values` are the parameters of the command."""
    _checked(FitConfig, values)
    get_codec(_checked(PlanConfig, values).codec)
    cluster = {name: value for name, value in values.items() if name != "address"}
    _checked(RayConfig, {**cluster, "idle_timeout_seconds": values["give_up_after"]})
    SourceConfig(tars_per_shard=values["tars_per_shard"])
    RunConfig(
        workers=values["workers"],
        max_bad=values["max_bad"],
        stall_timeout_seconds=values["stall_timeout"],
        retry=RetryConfig(attempts=values["retry_attempts"]),
    )


def _checked(kind: type[Config], values: Mapping[str, Any]) -> Config:
    return kind(**{part.name: values[part.name] for part in fields(kind) if part.name in values})


def submit(submission: Submission, dashboard: Dashboard, reporter: Reporter) -> Submitted:
    """Check the cluster, send the code, start the job. Returns as soon as the cluster has accepted it.

    Raises ConfigError where the request or the cluster is not fit for it, ClusterError where the cluster cannot be reached.
    """
    from ray.runtime_env import RuntimeEnv

    project = read_project()
    variables = forwarded_variables(os.environ)
    if submission.forward_credentials:
        profile = submission.storage_options.get("profile")
        variables = credentials(None if profile is None else str(profile)) | variables
        reporter.say(
            "warning: --forward-credentials puts your AWS credentials into the job's runtime_env, which Ray shows in job info, "
            "the dashboard and logs to everybody who reaches this cluster"
        )
    versions = dashboard.connect()
    for note in _check_versions(versions, dashboard.address, project):
        reporter.say(f"note: {note}")
    for name in _pointing_home(variables, dashboard.address):
        reporter.say(f"note: {name} is {variables[name]}: on a node of the cluster that is the node itself")
    if versions.python:
        variables[CLUSTER_PYTHON] = versions.python
    variables["PYTHONSAFEPATH"] = "1"  # as -P, which a Python before 3.11 would refuse before the entry can say so
    arguments = submission.arguments
    if submission.forward_credentials:  # the nodes get what the profile holds, and have no such profile
        arguments = tuple(word for word in arguments if not word.startswith("--storage-option=profile="))
    words = ("tokenize", submission.source_url, submission.out_url, *RUNNER_ARGUMENTS, *arguments)
    shown = {"src": display_url(submission.source_url), "out": display_url(submission.out_url), "tokenshards": project.version}
    submission_id = submission.submission_id or _new_id(submission.out_url)
    environment: dict[str, Any] = {"py_modules": [_upload_code(dashboard, project)], "env_vars": variables}
    if submission.install_dependencies:
        environment["pip"] = list(project.requirements)
    client = ray_client(dashboard)
    dashboard.submit(
        {
            "entrypoint": f"exec python -m tokenshards.pipeline.submit.job_entry {shlex.join(words)}",
            "submission_id": submission_id,
            "runtime_env": RuntimeEnv(**environment).to_dict(),
            "metadata": shown,
        }
    )
    return Submitted(submission_id=submission_id, dashboard=dashboard, client=client)


def _upload_code(dashboard: Dashboard, project: Project) -> str:
    """Hand the wheel to the cluster and return its URI.

    It goes as the zip file that a wheel is. Ray 2.60 would install a .whl with pip, and where its folder is there already (another node on
    the same machine, an agent that was started again) it deletes that folder under the running job; of a zip file it does neither.
    """
    with tempfile.TemporaryDirectory(prefix="tokenshards-") as folder:
        data = build_wheel(Path(folder), project).read_bytes()
    return dashboard.upload(f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:40]}.zip", data)


def _check_versions(versions: Versions, address: str, project: Project) -> Iterator[str]:
    """Yield notes; raise ConfigError where the cluster cannot run the job. It runs there alone, so near versions may differ."""
    import ray

    needed, here = project.ray.partition(">=")[2], ray.__version__
    if _numbers(versions.ray) < _numbers(needed) or _numbers(versions.ray)[:1] != _numbers(here)[:1]:
        raise ConfigError(
            f"{address} runs Ray {versions.ray}, this machine {here}; expected {needed} or newer there, with the same first number. "
            "Start the cluster from an image with such a Ray, or install the cluster's Ray here"
        )
    if versions.python and _numbers(versions.python) < MIN_PYTHON:
        least = ".".join(str(part) for part in MIN_PYTHON)
        raise ConfigError(
            f"{address} runs Python {versions.python}; expected {least} or newer. Start the cluster from an image with such a Python"
        )
    if versions.ray != here:
        yield f"the cluster runs Ray {versions.ray}, this machine {here}; the job runs in the cluster, so its version counts"


def _pointing_home(variables: Mapping[str, str], address: str) -> list[str]:
    """Return the variables whose URL means the machine that reads it, where the cluster is elsewhere."""
    home = {"localhost", "127.0.0.1", "::1"}
    if urlsplit(address).hostname in home:
        return []
    return [name for name, value in variables.items() if "://" in value and urlsplit(value).hostname in home]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:2])


def _new_id(out_url: str) -> str:
    name = display_url(out_url).rstrip("/").rpartition("/")[2]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32].strip("-") or "job"
    return f"tokenshards-{slug}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def ray_client(dashboard: Dashboard) -> Any:
    """Return Ray's client of a dashboard that has already answered. Raises ConfigError where Ray is here without it."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise ConfigError(f"Ray's client of jobs cannot be imported here ({error}); expected `pip install 'ray[default]'`") from None

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types
        def _check_connection_and_version(self, *arguments: Any, **named: Any) -> None:
            """Ask nothing: the dashboard has answered, and Ray would wait for an answer without an end."""

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray lets them overrule the address that it is given
        return Client(dashboard.address, headers=dict(dashboard.headers))


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
