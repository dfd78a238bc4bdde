"""A dataset that is planned and not begun, for tests of the work on one shard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import convert
from tokenshards.pipeline.errors import IncompleteError
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.runners.base import RunListener


class Planner:
    """A runner that only keeps the job, so that its plan is there and nothing is done."""

    job: JobSpec

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        self.job = job
        return dict.fromkeys(shards, "only planned")


def planned_job(src: Path, out: Path, **changes: Any) -> JobSpec:
    """Plan a dataset; return the job that its workers would be given."""
    planner = Planner()
    with pytest.raises(IncompleteError):
        convert(src, out, runner=planner, **{"batch_rows": 8, **changes})
    return planner.job
