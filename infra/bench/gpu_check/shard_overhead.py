"""`actor_overhead` without Ray: the cost of the work on a shard beside the network, on images that are already decoded.

One side is the product's own work on shards in this process (batches, tokenizer with its overlap, codec, shard file, commit). The other
side is a bare loop of the same network on batches that are already on the device. The sides take turns and medians count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import seconds_of

from tokenshards.pipeline.config import PlanConfig, RunConfig
from tokenshards.pipeline.conversion.request import TokenizeRequest
from tokenshards.pipeline.conversion.tokenize import Conversion
from tokenshards.pipeline.job.batches import DecodedBatch
from tokenshards.pipeline.job.context import open_context
from tokenshards.pipeline.job.decoded_rows import DecodedRow
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.job.shard_job import JobContext, tokenize_shard
from tokenshards.pipeline.planning.plan import read_shard_rows
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.runners.stage_usage import RunUsage
from tokenshards.pipeline.tokenizers.networks.network import scaled, to_device


class TimedRunner:
    """Runs shards in this process, from decoded batches. The first shard warms up and does not count."""

    def __init__(self) -> None:
        self.images_per_second = 0.0
        self.context: JobContext | None = None

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        """Return that no shard failed, and keep the rate."""
        context = self.context = open_context(job)
        size, batch = context.plan.spec.preprocess.size, context.plan.batch_rows
        pixels = [np.random.default_rng(seed).integers(0, 256, (batch, size, size, 3), np.uint8) for seed in range(2)]
        images, began = 0, 0.0
        for place, shard in enumerate(shards):
            if place == 1:
                began = time.perf_counter()
            listener.started(shard)
            commit = tokenize_shard(context, shard, batches=self._decoded(context, shard, pixels))
            listener.committed(shard, ShardSummary.of(commit))
            images += commit.rows if place else 0
        self.images_per_second = images / (time.perf_counter() - began)
        listener.measured(RunUsage())
        return {}

    def _decoded(self, context: JobContext, shard: int, pixels: list[Any]) -> Generator[DecodedBatch]:
        rows = list(read_shard_rows(context.out, context.plan, shard))
        batch = context.plan.batch_rows
        for number, first in enumerate(range(0, len(rows), batch)):
            taken = rows[first : first + batch]
            made = [DecodedRow(row.sample_id, row.label, row.meta, 500, 375, row.size) for row in taken]
            yield DecodedBatch(pixels[number % 2], list(range(len(made))), made, inputs=len(made), bytes_in=sum(row.size for row in taken))


def measure_overhead(images: Path, tokenizer: Path, folder: Path, *, shard_rows: int, repeats: int) -> dict[str, Any]:
    """Return images/s of both sides and their ratio."""
    ours, bare = [], []
    for repeat in range(repeats):
        runner = TimedRunner()
        request = TokenizeRequest(
            source_url=str(images),
            out_url=str(folder / f"out{repeat}"),
            tokenizer_url=str(tokenizer),
            plan=PlanConfig(shard_rows=shard_rows),
            run=RunConfig(workers=1),
        )
        outcome = Conversion(request, TerminalReporter(quiet=True), runner).run()
        assert runner.context is not None
        ours.append(runner.images_per_second)
        bare.append(bare_rate(runner.context, max(1, outcome.images - shard_rows)))
    return {
        "images_per_second": round(statistics.median(ours), 1),
        "bare_images_per_second": round(statistics.median(bare), 1),
        "ratio": round(statistics.median(ours) / statistics.median(bare), 3),
        "bar_of_actor_overhead": 0.95,
        "images_of_a_run": outcome.images,
        "batch": PlanConfig().batch_rows,
        "runs": {"ours": [round(value, 1) for value in ours], "bare": [round(value, 1) for value in bare]},
    }


def bare_rate(context: JobContext, images: int) -> float:
    """Return images/s of the tokenizer's network alone, on batches that are already on the device."""
    tokenizer: Any = context.tokenizer
    preprocess, batch = context.plan.spec.preprocess, context.plan.batch_rows
    pixels = np.random.default_rng(0).integers(0, 256, (batch, preprocess.size, preprocess.size, 3), np.uint8)
    values = scaled(to_device(pixels), preprocess.colour_range)
    network, count = tokenizer._encoder, max(1, images // batch)

    def loop() -> None:
        for _ in range(count):
            network.queue(values)

    with torch.inference_mode():
        network.queue(values)
        return count * batch / seconds_of(loop)
