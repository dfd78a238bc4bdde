"""Ray's job client with two additions: a time limit, and one clear sentence for each way in which a cluster can refuse a job."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from tokenshards.pipeline.errors import ClusterError, ConfigError
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.submit.ray_dashboard import Dashboard, said_by_ray, within

__all__ = ["ray_client", "start_job"]

SUBMIT_SECONDS = 60.0
"""Time limit to send the code (a megabyte) and the job. A head searches ten seconds for an agent that takes a job."""
_STATUS = re.compile(r"status code (\d{3}): ?(.*)", re.DOTALL)


def ray_client(dashboard: Dashboard) -> Any:
    """Return Ray's job client for a dashboard that has already answered. Raises ConfigError if this Ray has no job client."""
    with optional_import("`submit` needs Ray's job client", extra="ray"):
        from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types
        def _check_connection_and_version(self, *arguments: Any, **named: Any) -> None:
            """Skip Ray's check: the dashboard has already answered, and Ray would wait without a time limit."""

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # in Ray these variables override the given address
        return Client(dashboard.address, headers=dict(dashboard.headers))


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def start_job(client: Any, dashboard: Dashboard, *, submission_id: str, **job: Any) -> None:
    """Send the code and start a job; `job` holds the other arguments of Ray's `submit_job`.

    Raises ConfigError if the cluster will never accept the job, ClusterError if it could not start it or if the result is unknown.
    """
    import requests
    from ray.exceptions import AuthenticationError

    try:
        within(SUBMIT_SECONDS, lambda: client.submit_job(submission_id=submission_id, **job))
    except AuthenticationError as error:
        raise ConfigError(dashboard.refused(401 if "required" in str(error) else 403)) from None
    except requests.exceptions.ConnectionError as error:
        if _never_connected(error):
            raise ClusterError(
                f"no answer from {dashboard.address} ({said_by_ray(str(error))}): is the cluster up? Nothing was started"
            ) from None
        raise _no_answer(dashboard, submission_id, error) from None
    except (requests.exceptions.RequestException, TimeoutError) as error:
        raise _no_answer(dashboard, submission_id, error) from None
    except RuntimeError as error:  # Ray's client raises it for every status except 200
        raise _not_accepted(dashboard, submission_id, str(error)) from None


def _never_connected(error: Exception) -> bool:
    from urllib3.exceptions import NewConnectionError

    return isinstance(getattr(error.args[0] if error.args else None, "reason", None), NewConnectionError)


def _no_answer(dashboard: Dashboard, submission_id: str, error: Exception) -> ClusterError:
    said = said_by_ray(str(error)) or type(error).__name__
    return ClusterError(f"no answer from {dashboard.address} to job {submission_id} ({said}): {_in_doubt(dashboard, submission_id)}")


def _not_accepted(dashboard: Dashboard, submission_id: str, message: str) -> ClusterError | ConfigError:
    where = dashboard.address
    if "already" in message and submission_id in message:
        return ConfigError(
            f"the cluster at {where} already had a job {submission_id}, and it never accepts an id twice; "
            "leave --submission-id out, or choose another id: the new job continues the same OUT"
        )
    answer = _STATUS.search(message)
    code, body = (int(answer[1]), answer[2].strip(" .")) if answer else (500, message)
    if code in (401, 403):
        return ConfigError(dashboard.refused(code))
    page = not body or body.startswith("<")  # an HTML page comes from a proxy
    said = f"{code}: {http.client.responses.get(code, 'no reason given') if page else said_by_ray(body)}"
    if code < 500 or "status code 400" in body:  # the head forwards the answer of its agent
        return ConfigError(f"the cluster at {where} did not accept the job ({said}); nothing was started")
    if "No available agent" in body:
        return ClusterError(f"the cluster at {where} did not start the job ({said}); nothing was started")
    return ClusterError(
        f"the cluster at {where} failed while it accepted job {submission_id} ({said}): {_in_doubt(dashboard, submission_id)}"
    )


def _in_doubt(dashboard: Dashboard, submission_id: str) -> str:
    return (
        f"the job may have started. See `ray job status --address {dashboard.address} {submission_id}`; "
        "the same command again continues its work, also while that job runs"
    )
