"""What an error of Ray means, and how it is told to a person: in one line."""

from __future__ import annotations

import re

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

__all__ = ["call_failed", "in_one_line", "machine_left"]


def call_failed(error: RayError) -> bool:
    """Return True where the code of a call raised an error and its actor lives."""
    return isinstance(error, RayTaskError) and not isinstance(error, RayActorError)


def machine_left(error: RayError) -> bool:
    """Return True where an actor was lost with its machine, so that no shard is to blame.

    A connection that breaks says nothing of the cause; of a node that leaves, it is the first sign. When a node has no memory left, Ray
    kills whoever is there.
    """
    innocent = isinstance(error, ActorUnavailableError | OutOfMemoryError) or getattr(error, "preempted", False)
    return innocent or "node has died" in str(error)


def in_one_line(error: Exception) -> str:
    """Return what a person needs of Ray's errors, which run over many lines of remote traceback."""
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
