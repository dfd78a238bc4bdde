"""The report of a `tokenize` run: what `tokenshards.tokenize` returns and what the command prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenshards.pipeline.conversion.request import Outcome
from tokenshards.pipeline.reports.storage_table import dataset_report
from tokenshards.pipeline.storage.store import Store, display_url
from tokenshards.pipeline.words import short_repr

__all__ = ["TokenizeReport", "join_reports", "report_of"]


@dataclass(frozen=True, kw_only=True)
class TokenizeReport:
    """The datasets that a run made or found complete. With splits the numbers are sums.

    >>> report = tokenshards.tokenize("photos", "photos.tokens")
    >>> report.images, report.quarantined, report.already_complete, report.to_json()["complete"]
    (72, 0, True, True)
    """

    url: str
    """Where the dataset is, or the folder of its splits."""
    images: int
    """Images in the dataset."""
    quarantined: int
    """Inputs that cannot become tokens; `tokenshards quarantine URL` lists them."""
    already_complete: bool
    """True where there was nothing left to do."""
    understood: dict[str, Any] | None
    """What was understood of the input: kind, labels, splits, doubts. None where an earlier run made the plan."""
    said: tuple[str, ...] = ()
    """What a terminal would have shown."""
    splits: Mapping[str, TokenizeReport] = field(default_factory=dict)
    rows: tuple[tuple[str, str], ...] = ()
    """The storage table as (name, value) text; empty with splits."""
    value: dict[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        splits, done = list(self.splits) or None, self.already_complete
        return short_repr(self, url=self.url, images=self.images, quarantined=self.quarantined, already_complete=done, splits=splits)

    def to_json(self) -> dict[str, Any]:
        """Return what `tokenize --json` prints."""
        return {"splits": {name: part.to_json() for name, part in self.splits.items()}} if self.splits else self.value


def report_of(out: str, options: Mapping[str, Any], outcome: Outcome, said: tuple[str, ...] = ()) -> TokenizeReport:
    """Survey the dataset of a finished run. This needs a listing."""
    rate = None if outcome.already_complete or not outcome.images else outcome.images / max(1e-9, outcome.seconds)
    storage = dataset_report(Store(out, storage_options=dict(options)), rate)
    usage = outcome.usage.rows() if outcome.usage is not None else []
    busy = {} if outcome.usage is None else {stage: round(share, 4) for stage, share in outcome.usage.busy_shares().items()}
    understood = {} if outcome.understood is None else {"understood": outcome.understood}
    return TokenizeReport(
        url=display_url(out),
        images=storage.images_committed,
        quarantined=storage.images_quarantined,
        already_complete=outcome.already_complete,
        understood=outcome.understood,
        said=said,
        rows=(*storage.rows(), *usage),
        value={**storage.to_json(), "busy": busy, **understood},
    )


def join_reports(out: str, splits: Mapping[str, TokenizeReport], said: tuple[str, ...]) -> TokenizeReport:
    """Return the report of a run that made one dataset per split."""
    parts = splits.values()
    return TokenizeReport(
        url=display_url(out),
        images=sum(part.images for part in parts),
        quarantined=sum(part.quarantined for part in parts),
        already_complete=all(part.already_complete for part in parts),
        understood=None,
        said=said,
        splits=dict(splits),
    )
