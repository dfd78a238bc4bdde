"""Decide where a Ray run decodes images, once, after its first large enough shard, and how many CPUs a decoding task takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from tokenshards.pipeline.config import RayConfig
from tokenshards.pipeline.job.job_spec import ShardSummary
from tokenshards.pipeline.runners.decode_placement import DecodeRates, choose_placement
from tokenshards.pipeline.runners.ray_nodes import ClusterView
from tokenshards.pipeline.runners.supervisor import Worker

__all__ = ["RayPlacement"]

MIN_MEASURED_IMAGES = 32


class RayPlacement:
    """`remote` is True if tasks on any node decode the images. `tell` receives the text of each decision."""

    def __init__(self, cluster: RayConfig, view: ClusterView, tell: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._view = view
        self._tell = tell
        self._undecided = cluster.decode == "auto" and cluster.decode_threads > 0
        self._measured: tuple[Worker, DecodeRates] | None = None
        """The rates without the network, and the worker that measures the network."""
        self._told_local = False
        self.remote = cluster.decode == "remote"

    def measure(self, worker: Worker, summary: ShardSummary, actors: int) -> bool:
        """Measure a committed shard. Return True if the worker must measure its network."""
        if not self._undecided or summary.images_tried < MIN_MEASURED_IMAGES:
            return False
        self._undecided = False
        config, size = self._cluster, self._view.size
        actors = min(actors, size.room_for(config.cpus_per_actor, config.gpus_per_actor))
        per_cpu = summary.images_tried / max(1e-9, summary.seconds["decode"])
        rates = DecodeRates(
            decode=per_cpu * config.decode_threads,
            decode_per_cpu=per_cpu,
            encode=summary.images_tried / max(1e-9, summary.seconds["encode"]),
            network=None,
            idle_cpus=size.cpus - actors * config.cpus_per_actor,
            actors=actors,
        )
        self._measured = worker, rates
        if not rates.network_matters:
            self.choose(None)
        return rates.network_matters

    def choose(self, images_per_second: float | None) -> None:
        """Decide with the measured rate of the network. None means that the network does not matter or could not be measured."""
        if self._measured is None:
            return
        placement = choose_placement(replace(self._measured[1], network=images_per_second))
        self._measured = None
        self.remote = placement.remote
        self._tell(f"images are decoded {'on other nodes' if placement.remote else 'beside the tokenizer'}: {placement.why}")

    def forget(self, worker: Worker) -> None:
        """Forget a lost worker. If this worker was measuring, measure another worker later."""
        if self._measured is not None and self._measured[0] is worker:
            self._measured, self._undecided = None, True

    def decode_cpus(self, actors: Counter[str], pending: int) -> int:
        """Return the CPUs of a decoding task, or 0 if actors hold every CPU, because such a task would wait forever."""
        config = self._cluster
        free = self._view.free_cpus(actors, pending, cpus=config.cpus_per_actor, gpus=config.gpus_per_actor)
        cpus = min(config.decode_cpus, free)
        if cpus == 0 and not self._told_local:
            self._told_local = True
            self._tell("no CPU is left beside the actors, so the actors decode the images: add CPU nodes, or lower --max-actors")
        return cpus
