"""What a runner is given, what it reports, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tokenshards.pipeline import errors
from tokenshards.pipeline.errors import TokenshardsError, TransientStorageError
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.runners.stage_usage import RunUsage

if TYPE_CHECKING:
    pass

__all__ = ["RunListener", "Runner", "broken_event", "error_of"]


class RunListener(Protocol):
    """Receives what happens, on the driver's thread."""

    def started(self, shard: int) -> None:
        """A worker began a shard, anew after a failure."""

    def progressed(self, shard: int, inputs: int, bytes_in: int, quarantined: int) -> None:
        """More of a shard in flight was worked through."""

    def committed(self, shard: int, summary: ShardSummary) -> None:
        """A shard was published."""

    def committed_elsewhere(self, shard: int, summary: ShardSummary) -> None:
        """Another run that shares this dataset published a shard: its work is none of ours."""

    def abandoned(self, shard: int) -> None:
        """An attempt at a shard ended without a commit: what it worked through counts no more."""

    def measured(self, usage: RunUsage) -> None:
        """How busy the workers were; once, at the end."""

    def unreadable(self, count: int, examples: Sequence[str]) -> None:
        """A shard stays uncommitted because of objects that cannot be read while their store answers for others."""

    def watched(self, standing: dict[str, Any]) -> None:
        """How the workers are, in plain JSON types: `workers` counts them by state, `longest` is the activity that lasts longest."""

    def noted(self, message: str, **details: Any) -> None:
        """Something a person may want to know: a worker died, a store failed, an input was isolated."""

    def tick(self) -> None:
        """Called several times a second; may raise to stop the run."""


def broken_event(error: TokenshardsError) -> dict[str, Any]:
    """Return what a worker that cannot start says of it."""
    kind = "transient" if isinstance(error, TransientStorageError) else "fatal"
    return {"event": "broken", "kind": kind, "error": type(error).__name__, "exit_code": error.exit_code, "message": str(error)}


def error_of(event: dict[str, Any]) -> TokenshardsError:
    """Return the error that a worker met, of the same class and with the same exit code."""
    known = getattr(errors, str(event["error"]), None)
    kind = known if isinstance(known, type) and issubclass(known, TokenshardsError) else TokenshardsError
    error = kind.__new__(kind, event["message"])
    Exception.__init__(error, event["message"])  # some classes take other arguments, from which they make this message
    error.exit_code = int(event["exit_code"])
    return error


class Runner(Protocol):
    """Runs shards until each is committed or its attempts are used up."""

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        """Return the shards that stay uncommitted, each with the last error. Stops all workers before it returns or raises."""
        ...
