"""What a shard's worker is given, and the few numbers that it gives back: plain data, so that they travel to any worker."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tokenshards.pipeline.config import RetryConfig, SourceConfig

if TYPE_CHECKING:
    from tokenshards.pipeline.shards.commit import Commit

__all__ = ["JobSpec", "ShardSummary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """Where the work is; plain data, so that it can be sent to any worker."""

    out_url: str
    out_options: dict[str, Any] = field(repr=False)
    source_url: str
    """Root that the plan's paths are relative to."""
    source_config: SourceConfig
    plan_id: str
    retry: RetryConfig
    run_uuid: str
    """Of the driver: workers write their logs below `runs/<run_uuid>/`."""
    join: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types. May hold credentials in its options: send it, never store it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> JobSpec:
        """Return the job that `to_json` described."""
        source = value["source_config"]
        config = SourceConfig(**{**source, "meta": tuple(source["meta"])})
        return cls(**{**value, "source_config": config, "retry": RetryConfig(**value["retry"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """The few numbers of a commit that travel to the driver."""

    rows: int
    quarantined: int
    inputs_seen: int
    bytes_in: int
    seconds: dict[str, float]

    @classmethod
    def of(cls, commit: Commit) -> ShardSummary:
        """Return the summary of a commit."""
        return cls(**{field.name: getattr(commit, field.name) for field in fields(cls)})
