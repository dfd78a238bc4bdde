"""The job that a worker receives and the summary that a worker returns. Both are plain data, so any runner can send them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tokenshards.pipeline.config import RetryConfig, SourceConfig

if TYPE_CHECKING:
    from tokenshards.pipeline.shards.commit import Commit

__all__ = ["JobSpec", "ShardSummary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """Where a worker finds dataset, source and plan, in plain data."""

    out_url: str
    out_options: dict[str, Any] = field(repr=False)
    source_url: str
    """Root of the relative paths in the plan."""
    source_config: SourceConfig
    plan_id: str
    retry: RetryConfig
    run_uuid: str
    """Uuid of the driver's run. Workers write logs below `runs/<run_uuid>/`."""
    join: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types. The options may hold credentials: send the value, never store the value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> JobSpec:
        """Return the job that `to_json` described."""
        config = SourceConfig.from_json(value["source_config"])
        return cls(**{**value, "source_config": config, "retry": RetryConfig(**value["retry"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """The numbers of a commit that a worker sends to the driver."""

    rows: int
    quarantined: int
    inputs_seen: int
    bytes_in: int
    seconds: dict[str, float]
    absent: int = 0
    left_out_count: int = 0
    lost: int = 0
    """Further inputs of damaged containers, estimated by bytes."""

    @property
    def inputs(self) -> int:
        """Inputs of the shard; files that were left out of a container are none."""
        return self.inputs_seen - self.left_out_count

    @property
    def images_tried(self) -> int:
        """Inputs that are there, whether they became rows or failed."""
        return self.inputs - self.absent

    @classmethod
    def of(cls, commit: Commit) -> ShardSummary:
        """Return the summary of a commit."""
        return cls(**{field.name: getattr(commit, field.name) for field in fields(cls)})
