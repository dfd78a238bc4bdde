"""The progress of a run. The run record, the progress bar, `status` and the terminal of `submit` show this one message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["RunProgress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """Counts of one run, including shards in flight, in plain JSON types."""

    images_planned: int | None = None
    """Images of the whole dataset; None while tars are uncounted."""
    images_before: int = 0
    """Committed inputs that are not this run's work: committed before this run began, or by a concurrent run."""
    images_seen: int = 0
    bytes_in: int = 0
    images_quarantined: int = 0
    images_absent: int = 0
    """Absent inputs of the shards that this run committed."""
    shards_committed: int = 0
    work_seconds: float = 0.0
    """Time since the work on the first shard began."""
    workers: dict[str, int] = field(default_factory=dict)
    """Workers by state."""
    longest: dict[str, Any] | None = None
    """The longest activity of a worker that is slow or waits for the store: `stage`, `input`, `seconds`, `retries_left`."""

    def to_json(self) -> dict[str, Any]:
        """Return the counters of a run record."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunProgress:
        """Return the progress that `to_json` described. Unknown fields of other versions are left out."""
        return cls(**{part.name: value[part.name] for part in fields(cls) if part.name in value})

    @property
    def images_done(self) -> int:
        """Finished inputs of the dataset, by this run or another."""
        return self.images_before + self.images_seen

    @property
    def images_per_second(self) -> float:
        """Rate of this run alone."""
        return self.images_seen / self.work_seconds if self.work_seconds > 0 else 0.0

    @property
    def left_seconds(self) -> float | None:
        """Remaining time for the dataset at the rate of this run; None if unknown."""
        rate = self.images_per_second
        return None if self.images_planned is None or rate <= 0 else max(0, self.images_planned - self.images_done) / rate

    def rate_text(self) -> str:
        """Return images and megabytes per second, and the number of quarantined and absent images."""
        megabytes = self.bytes_in / max(1e-9, self.work_seconds) / 1e6
        absent = f"  {self.images_absent} absent" if self.images_absent else ""
        return f"{self.images_per_second:,.0f} images/s  {megabytes:,.1f} MB/s  {self.images_quarantined} quarantined{absent}"

    def line(self) -> str:
        """Return the progress as one line."""
        of = "" if self.images_planned is None else f" of {self.images_planned:,}"
        left = "" if self.left_seconds is None else f"  ETA {self.left_seconds:,.0f} s"
        return f"{self.images_done:,}{of} images  {self.rate_text()}{left}{self.state_text()}"

    def state_text(self) -> str:
        """Return the activity that delays the run; empty if there is none."""
        if self.longest is None:
            return ""
        doing = self.longest
        return f"  {str(doing['stage']).replace('_', ' ')} {doing['input']} for {doing['seconds']:.0f} s"
