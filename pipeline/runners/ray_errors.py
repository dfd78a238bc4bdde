"""Classify Ray's errors and describe them to a person in one line."""

from __future__ import annotations

import re

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

__all__ = ["call_failed", "in_one_line", "machine_left"]


def call_failed(error: RayError) -> bool:
    """Return True if the code of a call raised an error and the actor lives."""
    return isinstance(error, RayTaskError) and not isinstance(error, RayActorError)


def machine_left(error: RayError) -> bool:
    """Return True if an actor was lost with its machine, so that no shard is to blame.

    A broken connection does not show the cause, but is often the first sign that a node is leaving. When a node runs out of memory, Ray may
    kill any process on the node.
    """
    innocent = isinstance(error, ActorUnavailableError | OutOfMemoryError) or getattr(error, "preempted", False)
    return innocent or "node has died" in str(error)


def in_one_line(error: Exception) -> str:
    """Return the useful part of Ray's errors, which hold many lines of remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayTaskError) or any(line.startswith("Traceback") for line in lines):
        lines = lines[-1:]
    text = " ".join(lines)
    if isinstance(error, RayActorError):
        text = re.sub(r"^The actor died unexpectedly before.*?ip: \S+ ", "", text)
    text = text[:400]
    if "No module named" in text:
        return f"{text}; the nodes lack a package that tokenshards needs. Install it in their image, or use `tokenshards submit`"
    return text
