"""Submit `tokenize` as a job to a Ray cluster: check the request before anything is sent, send code and job, return a handle."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec.core import split_protocol

from tokenshards.pipeline.conversion.request import Reporter
from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.storage.redaction import S3_PROTOCOLS
from tokenshards.pipeline.storage.side_options import PROFILE_VARIABLES, options_of, parse_pairs
from tokenshards.pipeline.storage.store import display_url, is_absolute
from tokenshards.pipeline.submit.forwarding import credentials, forwarded_variables, refuse_secret_options, refuse_secret_urls
from tokenshards.pipeline.submit.job_client import ray_client, start_job
from tokenshards.pipeline.submit.job_entry import CLUSTER_PYTHON
from tokenshards.pipeline.submit.ray_dashboard import Dashboard, Versions
from tokenshards.pipeline.submit.shipped_code import Project, read_project, stage_code

__all__ = ["Submission", "Submitted", "submit"]

MIN_PYTHON = (3, 11)
RUNNER_ARGUMENTS = ("--runner", "ray", "--join")
"""With --join a second submission does not wait until the first one's driver counts as dead."""
_PROFILE_ARGUMENT = re.compile(r"--(storage|src|out|tokenizer)-option=profile=")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """All settings of a `submit` command, checked: nothing in them is a secret."""

    source_url: str
    out_url: str
    arguments: tuple[str, ...] = ()
    """Options of `tokenize` as words of a command line."""
    tokenizer_url: str | None = None
    submission_id: str | None = None
    local_paths: bool = False
    """All nodes share the local paths."""
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
        for text in self.arguments:
            option, _, value = text.partition("=")
            if option.endswith("-option"):  # one by one: a later value of the same option hides no earlier one from Ray
                refuse_secret_options(parse_pairs([value]), option)
            if option == "--masks" and is_absolute(value):  # a relative path begins at SRC on a node
                _check_reachable(option, value, self.local_paths)
            refuse_secret_urls(option, [text])

    def given(self, kind: str) -> dict[str, Any]:
        """Return the storage options among the arguments that were given for one side, or as `storage` for all sides."""
        return parse_pairs(text.partition("=")[2] for text in self.arguments if text.startswith(f"--{kind}-option="))


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The handle of a job that the cluster accepted."""

    submission_id: str
    dashboard: Dashboard
    client: Any
    """Ray's JobSubmissionClient."""


def _check_reachable(name: str, url: str, local_paths: bool) -> None:
    """Raise ConfigError for a local path: on a cluster it would be on the disk of some node, or in a container that ends."""
    protocol, path = split_protocol(url)
    if protocol not in (None, "file", "local"):
        return
    if not local_paths:
        raise ConfigError(
            f"{name} is the local path {shorten(url)}; expected a URL such as s3://bucket/folder, because each node has its own disk. "
            "If all nodes mount this path (NFS, EFS, Lustre, or one machine), add --local-paths"
        )
    if not path.startswith("/"):
        raise ConfigError(f"{name} is the relative path {shorten(url)}; expected an absolute path, the same on every node")


def submit(submission: Submission, dashboard: Dashboard, reporter: Reporter) -> Submitted:
    """Check the cluster, send the code, start the job; return once the cluster has accepted the job.

    Raises ConfigError if the request is wrong or the cluster cannot run the job, ClusterError if the cluster cannot be reached.
    """
    project = read_project()
    variables = forwarded_variables(os.environ)
    if submission.forward_credentials:
        variables = credentials(_one_profile(submission)) | variables
        for name in PROFILE_VARIABLES.values():  # the nodes get the credentials of the profile and do not have the profile itself
            variables.pop(name, None)
        reporter.say(
            "warning: --forward-credentials puts your AWS credentials into the job's runtime_env, which Ray shows in job info, "
            "the dashboard and logs to everybody who reaches this cluster"
        )
    versions = dashboard.connect()
    for note in _check_versions(versions, dashboard.address, project):
        reporter.say(f"note: {note}")
    if _wanted_gpus(submission.arguments) > 0 and dashboard.gpus() == 0:
        reporter.say(
            "warning: no node of the cluster has a GPU now, but --gpus-per-actor requires one: the job waits until a GPU node "
            "joins, and gives up after --give-up-after seconds"
        )
    for name in _pointing_home(variables, dashboard.address):
        reporter.say(f"note: {name} is {variables[name]}: on a node of the cluster this address means the node itself")
    if versions.python:
        variables[CLUSTER_PYTHON] = versions.python
    # As -P. Python before 3.11 ignores it, so that job_entry can report the old version.
    variables["PYTHONSAFEPATH"] = "1"
    arguments = submission.arguments
    if submission.forward_credentials:
        arguments = tuple(word for word in arguments if not _PROFILE_ARGUMENT.match(word))
    words = ("tokenize", submission.source_url, submission.out_url, *RUNNER_ARGUMENTS, *arguments)
    shown = {"src": display_url(submission.source_url), "out": display_url(submission.out_url), "tokenshards": project.version}
    submission_id = submission.submission_id or _new_id(submission.out_url)
    environment: dict[str, Any] = {"env_vars": variables}
    if submission.install_dependencies:
        environment["pip"] = list(project.requirements)
    client = ray_client(dashboard)
    with tempfile.TemporaryDirectory(prefix="tokenshards-") as folder:
        environment["py_modules"] = [str(path) for path in stage_code(Path(folder), project)]
        start_job(
            client,
            dashboard,
            entrypoint=f"exec python -m tokenshards.pipeline.submit.job_entry {shlex.join(words)}",
            submission_id=submission_id,
            runtime_env=environment,
            metadata=shown,
        )
    return Submitted(submission_id=submission_id, dashboard=dashboard, client=client)


def _wanted_gpus(arguments: tuple[str, ...]) -> float:
    given = [text.partition("=")[2] for text in arguments if text.startswith("--gpus-per-actor=")]
    return float(given[-1]) if given else 0.0


def _one_profile(submission: Submission) -> str | None:
    """Return the AWS profile whose credentials to send, None for the default ones; raises ConfigError if the sides have different ones."""
    urls = {"src": submission.source_url, "out": submission.out_url, "tokenizer": submission.tokenizer_url}
    found: dict[str, Any] = {}
    for side, url in urls.items():
        if url is not None and split_protocol(url)[0] in S3_PROTOCOLS:
            options = options_of(side, url, submission.given("storage"), submission.given(side))
            if not options.get("anon"):
                found[side] = options.get("profile")
    if len(set(found.values())) > 1:
        seen = ", ".join(f"{side} {profile or 'without a profile'}" for side, profile in found.items())
        raise ConfigError(
            f"--forward-credentials sends one set of AWS credentials, but the sides have different profiles ({seen}). "
            "Use one profile with access to all sides, or give the nodes their own credentials"
        )
    profile = next(iter(found.values()), submission.given("storage").get("profile"))
    return None if profile is None else str(profile)


def _check_versions(versions: Versions, address: str, project: Project) -> Iterator[str]:
    """Yield notes about versions; raise ConfigError if the cluster cannot run the job. Minor versions of Ray may differ."""
    import ray

    needed, here = project.ray.partition(">=")[2], ray.__version__
    if _numbers(versions.ray) < _numbers(needed) or _numbers(versions.ray)[:1] != _numbers(here)[:1]:
        raise ConfigError(
            f"{address} runs Ray {versions.ray}, this machine {here}; expected {needed} or newer there, with the same major version. "
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
    """Return the variables whose URL is a loopback address, unless the cluster is on this machine."""
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
