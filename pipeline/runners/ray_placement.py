"""Where the images of a Ray run are decoded: decided once from its first shard of size, and the CPUs that a decoding task may take."""

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
    """`remote` says whether images are decoded by tasks on any node. `tell` gets each decision, in words."""

    def __init__(self, cluster: RayConfig, view: ClusterView, tell: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._view = view
        self._tell = tell
        self._undecided = cluster.decode == "auto" and cluster.decode_threads > 0
        self._measured: tuple[Worker, DecodeRates] | None = None
        """All but the network, which this worker is asked for."""
        self._told_local = False
        self.remote = cluster.decode == "remote"

    def measure(self, worker: Worker, summary: ShardSummary, actors: int) -> bool:
        """Take in a committed shard; return True where the worker must be asked for the rate of its network."""
        if not self._undecided or summary.inputs_seen < MIN_MEASURED_IMAGES:
            return False
        self._undecided = False
        config, size = self._cluster, self._view.size
        actors = min(actors, size.room_for(config.cpus_per_actor, config.gpus_per_actor))
        per_cpu = summary.inputs_seen / max(1e-9, summary.seconds["decode"])
        rates = DecodeRates(
            decode=per_cpu * config.decode_threads,
            decode_per_cpu=per_cpu,
            encode=summary.inputs_seen / max(1e-9, summary.seconds["encode"]),
            network=None,
            idle_cpus=size.cpus - actors * config.cpus_per_actor,
            actors=actors,
        )
        self._measured = worker, rates
        if not rates.network_matters:
            self.choose(None)
        return rates.network_matters

    def choose(self, images_per_second: float | None) -> None:
        """Decide, now that the network was measured; None where it does not matter or could not be measured."""
        if self._measured is None:
            return
        placement = choose_placement(replace(self._measured[1], network=images_per_second))
        self._measured = None
        self.remote = placement.remote
        self._tell(f"images are decoded {'on other nodes' if placement.remote else 'beside the tokenizer'}: {placement.why}")

    def forget(self, worker: Worker) -> None:
        """A worker is gone; where it was being measured, another one will be."""
        if self._measured is not None and self._measured[0] is worker:
            self._measured, self._undecided = None, True

    def decode_cpus(self, actors: Counter[str], pending: int) -> int:
        """Return the CPUs of a decoding task, 0 where every CPU is an actor's: such a task would wait for ever."""
        config = self._cluster
        free = self._view.free_cpus(actors, pending, cpus=config.cpus_per_actor, gpus=config.gpus_per_actor)
        cpus = min(config.decode_cpus, free)
        if cpus == 0 and not self._told_local:
            self._told_local = True
            self._tell("no CPU is left beside the actors, so images are decoded by them: add CPU nodes, or give fewer --max-actors")
        return cpus
