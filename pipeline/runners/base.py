"""The interface of a runner: its input, its reports and its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tokenshards.pipeline import errors
from tokenshards.pipeline.errors import TokenshardsError, TransientStorageError
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.runners.stage_usage import RunUsage

__all__ = ["RunListener", "Runner", "broken_event", "error_of"]


class RunListener(Protocol):
    """Receives the events of a run on the driver's thread."""

    def started(self, shard: int) -> None:
        """A worker began a shard, for the first time or again after a failure."""

    def progressed(self, shard: int, inputs: int, bytes_in: int, quarantined: int) -> None:
        """A worker processed more inputs of a shard in flight."""

    def committed(self, shard: int, summary: ShardSummary) -> None:
        """A shard was published."""

    def committed_elsewhere(self, shard: int, summary: ShardSummary) -> None:
        """Another run that shares this dataset published a shard. This run does not count the other run's work."""

    def abandoned(self, shard: int) -> None:
        """An attempt at a shard ended without a commit. The inputs of this attempt no longer count."""

    def measured(self, usage: RunUsage) -> None:
        """Tell how busy the workers were. Called once, at the end."""

    def unreadable(self, count: int, examples: Sequence[str]) -> None:
        """A shard stays uncommitted because some objects cannot be read, although the store answers for other objects."""

    def watched(self, standing: dict[str, Any]) -> None:
        """Tell the state of the workers in plain JSON types: `workers` counts workers by state, `longest` is the longest activity."""

    def noted(self, message: str, **details: Any) -> None:
        """Tell a person about an event: a worker died, a store failed, an input was isolated."""

    def tick(self) -> None:
        """Called several times a second. An exception stops the run."""


def broken_event(error: TokenshardsError) -> dict[str, Any]:
    """Return the message of a worker that cannot start."""
    kind = "transient" if isinstance(error, TransientStorageError) else "fatal"
    return {"event": "broken", "kind": kind, "error": type(error).__name__, "exit_code": error.exit_code, "message": str(error)}


def error_of(event: dict[str, Any]) -> TokenshardsError:
    """Return the error that a worker met, of the same class and with the same exit code."""
    known = getattr(errors, str(event["error"]), None)
    kind = known if isinstance(known, type) and issubclass(known, TokenshardsError) else TokenshardsError
    error = kind.__new__(kind, event["message"])
    Exception.__init__(error, event["message"])  # some classes make this message from other arguments
    error.exit_code = int(event["exit_code"])
    return error


class Runner(Protocol):
    """Runs shards until each shard is committed or has used all its attempts."""

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        """Return the shards that stay uncommitted, each with its last error. Stop all workers before returning or raising."""
        ...
