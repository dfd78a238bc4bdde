"""The log of a training: one record per epoch, as JSON lines and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

__all__ = ["MetricsLog"]


class MetricsLog:
    """One record per epoch, as JSON lines and as CSV."""

    def __init__(self, records: Sequence[dict[str, Any]] = ()) -> None:
        self.records = list(records)

    @classmethod
    def parse(cls, data: bytes) -> MetricsLog:
        """Read JSON lines, without a last line that a crash cut short."""
        records = []
        for line in data.decode("utf-8", "replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return cls(records)

    @classmethod
    def counted_from_one(cls, records: Sequence[dict[str, Any]]) -> tuple[MetricsLog, int]:
        """Return the log of a checkpoint, and what was added to its epochs: 1 where they count from 0, as in earlier versions."""
        shift = 1 if records and records[0]["epoch"] == 0 else 0
        return cls([{**record, "epoch": record["epoch"] + shift} for record in records]), shift

    def before(self, epoch: int) -> MetricsLog:
        """Return the records of earlier epochs."""
        return MetricsLog([record for record in self.records if record["epoch"] < epoch])

    def to_jsonl(self) -> bytes:
        """Return one JSON object per line."""
        return b"".join(json.dumps(record).encode() + b"\n" for record in self.records)

    def to_csv(self) -> bytes:
        """Return a table with every column that any record has."""
        columns = list(dict.fromkeys(name for record in self.records for name in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue().encode()
