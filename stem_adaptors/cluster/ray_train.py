"""Training on a Ray cluster. Ray Train starts, watches and restarts the workers; each worker trains as under torchrun.

Only the run directory keeps state. A group of workers that starts again resumes from the last checkpoint, with as many workers as there
are then. Ray Train keeps no checkpoint, so it needs no storage that nodes share; it writes to a folder of this machine that is deleted at
the end. News and stop requests pass over a board, one small actor beside the terminal (board.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokenshards.pipeline.errors import ClusterError, ConfigError, IncompleteError, TrainingError
from tokenshards.pipeline.runners.ray_connection import HeadWatch
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import mixes
from tokenshards.stem_adaptors.cluster.board import Board, News
from tokenshards.stem_adaptors.cluster.cluster_config import ClusterConfig
from tokenshards.stem_adaptors.cluster.code_identity import code_identity
from tokenshards.stem_adaptors.cluster.ray_connection import connected, one_line, require_same_code
from tokenshards.stem_adaptors.cluster.ray_internals import had_no_place
from tokenshards.stem_adaptors.cluster.ray_places import amount, free_places, give_places_back, has_place, withdraw_demand
from tokenshards.stem_adaptors.cluster.ray_worker import Losses, take_part
from tokenshards.stem_adaptors.cluster.run_mark import marked
from tokenshards.stem_adaptors.training.run_directory import CHECKPOINT, RUN_JSON
from tokenshards.stem_adaptors.training.training_job import TrainingJob
from tokenshards.stem_adaptors.training.training_request import Reporter, TrainResult

__all__ = ["train_on_cluster"]

LOOK_SECONDS = 0.2
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",  # then Ray counts the nodes again: one that died may have been counted
}
"""Settings of Ray that are read from the environment; a variable that is already set wins."""
STOP_SECONDS = 60.0
"""How long workers may take for an orderly stop."""
DEMAND_SECONDS = 200.0
"""How long Ray Train keeps places for a training that was killed and could not withdraw its demand."""


def train_on_cluster(job: TrainingJob, cluster: ClusterConfig, reporter: Reporter, *, resume: bool) -> TrainResult:
    """Train on the workers of a Ray cluster and show their news here. SIGINT and SIGTERM end the training with a checkpoint.

    Raises ConfigError where the cluster cannot be reached, runs other code or has too little room; IncompleteError where the cluster loses
    its head, or its workers for longer than allowed; TrainingError where workers die again and again; and the errors of a local training.
    """
    most, batch_size = cluster.workers[1], job.loader.batch_size
    if most > batch_size:
        raise ConfigError(
            f"--ray-workers is {most}; expected at most --batch-size, which is {batch_size}: each worker takes a share of every batch"
        )
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    job = job.made_absolute()
    out = job.open_out()
    begun = out.info(RUN_JSON) is not None
    if not resume and begun:
        raise ConfigError(f"{out.url} already holds a run. Add --resume to continue it, or give another --out")
    if not begun:
        job = _for_any_number_of_workers(job, cluster, reporter)
    with connected(cluster.address), marked(out) as mark, tempfile.TemporaryDirectory(prefix="tokenshards-ray-") as folder:
        require_same_code()
        return _Driver(job, cluster, reporter, out, mark).run(folder)


def _for_any_number_of_workers(job: TrainingJob, cluster: ClusterConfig, reporter: Reporter) -> TrainingJob:
    """Return the job; with a range of workers, mixing goes by what each worker has, so that every number of workers can go on."""
    fewest, most = cluster.workers
    if fewest == most or job.augment.mix_group is not None or not mixes(job.augment):
        return job
    reporter.say(
        f"note: with {fewest} to {most} workers, CutMix, Mixup and ColorAdapt mix the images of each worker, so the result depends on "
        "their number. --set augment.mix_group=N keeps groups of N, and stops where workers do not get whole groups"
    )
    return replace(job, augment=replace(job.augment, mix_group=0))


class _Driver:
    """Starts the workers and follows their news to the end."""

    def __init__(self, job: TrainingJob, cluster: ClusterConfig, reporter: Reporter, out: Store, mark: str | None) -> None:
        self._job, self._cluster, self._reporter, self._out, self._mark = job, cluster, reporter, out, mark
        gpus = cluster.gpus_per_worker
        self._gpus = gpus if gpus is not None else int(ray.cluster_resources().get("GPU", 0) >= cluster.workers[0])
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote(job.to_json())
        self._running = False
        self._groups = 0
        self._waiting_since = time.monotonic()
        self._losses, self._version_at_loss, self._last_loss = 0, "", ""
        self._train_run, self._told_of_demand = "", False
        self._head = HeadWatch()

    def run(self, folder: str) -> TrainResult:
        """Return the result of the workers, or raise the error that ended them."""
        try:
            return self._follow(folder)
        except (ClusterError, ray.exceptions.RayError) as error:
            raise IncompleteError(
                f"the training lost the head of the Ray cluster, or its own process there ({one_line(error)}); expected both to last. "
                "The checkpoint is kept: --resume continues when the cluster answers again, or on another cluster"
            ) from None
        finally:
            if self._head.answers():
                withdraw_demand(self._train_run)

    def _follow(self, folder: str) -> TrainResult:
        with _noted_signals() as signals:
            thread = self._started(folder)
            asked: float | None = None
            while True:
                finished = not thread.is_alive()
                for news in ray.get(self._board.take.remote()):
                    result = self._hear(news)
                    if result is not None:
                        thread.join(STOP_SECONDS)
                        return result
                if signals and asked is None:
                    asked = time.monotonic()
                    ray.get(self._board.stop.remote(signals[0]))
                    self._reporter.say("stopping: the workers save a checkpoint")
                if asked is not None and (not self._running or time.monotonic() - asked > STOP_SECONDS):
                    self._reporter.say("stopped; the same command with --resume continues from the last checkpoint")
                    raise SystemExit(128 + signals[0])
                if finished:
                    self._count_end(self._failure)
                    thread = self._started(folder)
                self._head.check()
                self._require_room()
                time.sleep(LOOK_SECONDS)

    def _started(self, folder: str) -> threading.Thread:
        """Start Ray Train in a thread, and return the thread."""
        self._failure: BaseException | None = None
        thread = threading.Thread(target=self._fit, args=(folder,), name="ray-train", daemon=True)
        thread.start()
        return thread

    def _count_end(self, failure: BaseException | None) -> None:
        """Count an end of Ray Train itself, such as a death before the workers had found each other."""
        if failure is None:
            raise TrainingError("Ray Train ended without a result; expected one. --resume continues; Ray's logs of this cluster say more")
        if had_no_place(failure):
            return  # nobody died: there was no place yet, and --ray-wait limits the wait for one
        give_places_back()  # Ray Train also does this and withdraws its demand, but not where it was killed
        withdraw_demand(self._train_run)
        self._count_loss({"reason": one_line(failure)})

    def _fit(self, folder: str) -> None:
        try:
            trainer = self._trainer(folder)
            self._train_run = trainer.train_run_context.run_id
            trainer.fit()
        except BaseException as error:  # the driver's own thread reports every error
            self._failure = error

    def _trainer(self, folder: str) -> Any:
        fewest, most = self._cluster.workers
        return ray.train.torch.TorchTrainer(
            take_part,
            train_loop_config={"board": self._board, "code": code_identity(), "mark": self._mark, "gpus": self._gpus},
            torch_config=ray.train.torch.TorchConfig(backend="cpu:gloo,cuda:nccl" if self._gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=most if fewest == most else (fewest, most),
                use_gpu=bool(self._gpus),
                resources_per_worker=self._resources(),
            ),
            run_config=ray.train.RunConfig(
                name=f"tokenshards-{uuid.uuid4().hex[:12]}",
                storage_path=folder,
                # This class decides how often workers may die, because it sees new checkpoints. Ray only reports deaths after the start.
                failure_config=ray.train.FailureConfig(max_failures=-1, controller_failure_limit=self._cluster.losses),
                callbacks=[Losses(self._board)],
                worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
            ),
        )

    def _resources(self) -> dict[str, float]:
        return {"CPU": self._cluster.cpus_per_worker, **({"GPU": self._gpus} if self._gpus else {})}

    def _hear(self, news: News) -> TrainResult | None:
        kind = news.pop("kind")
        if kind in ("say", "step", "epoch"):
            getattr(self._reporter, kind)(**news)
        elif kind == "began":
            self._running, self._groups = True, self._groups + 1
            again = " again" if self._groups > 1 else ""
            self._reporter.say(f"training{again} on {news['workers']} workers of {amount(self._resources())}")
        elif kind == "lost":
            self._count_loss(news)
        elif kind == "failed":
            error = TrainingError(news["message"])
            error.hint, error.exit_code = news["hint"], news["exit_code"]
            raise error
        elif kind == "stopped":
            raise SystemExit(news["exit_code"])
        elif kind == "done":
            return TrainResult(**news["result"])
        return None

    def _count_loss(self, news: News) -> None:
        self._running, self._waiting_since, self._last_loss = False, time.monotonic(), news["reason"]
        info = self._out.info(CHECKPOINT)
        version = "" if info is None else info.version
        self._losses = self._losses + 1 if version == self._version_at_loss else 1
        self._version_at_loss = version
        if self._losses >= self._cluster.losses:
            raise TrainingError(
                f"workers died {self._losses} times without a new checkpoint in {self._out.url}; expected progress in between. The last "
                f"time: {self._last_loss}. Mend that, then --resume continues"
            )
        self._reporter.say(f"lost workers ({self._last_loss}); starting again from the last checkpoint")

    def _require_room(self) -> None:
        """Raise where the workers found no place in time. Workers that have a place may take as long as they need."""
        waited = time.monotonic() - self._waiting_since
        if self._running or waited < self._cluster.wait_seconds or not self._head.answers() or has_place():
            return
        total, free = ray.cluster_resources(), ray.available_resources()
        fewest, resources = self._cluster.workers[0], self._resources()
        if waited < DEMAND_SECONDS and fewest < self._cluster.workers[1] and free_places(resources) >= fewest:
            if not self._told_of_demand:
                self._told_of_demand = True
                self._reporter.say(
                    "waiting: there is room, but Ray keeps it for another training, and for three minutes after that training was killed"
                )
            return
        nodes = sum(node["Alive"] for node in ray.nodes())
        text = (
            f"no place for the workers after {waited:.0f} s: asked for {fewest} workers of {amount(resources)} "
            f"each; the cluster has {nodes} nodes with {amount(total, always_gpu=True)}, of which {amount(free, always_gpu=True)} "
            "are free. "
        )
        if self._groups:
            raise IncompleteError(
                f"{text}Add nodes, then --resume continues, or give fewer --ray-workers (such as 1-{self._cluster.workers[1]})"
            )
        raise ConfigError(f"{text}Add nodes, ask for less with --ray-workers, --gpus-per-worker and --cpus-per-worker, or raise --ray-wait")


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Yield a list that receives the first SIGINT or SIGTERM; the second signal ends the process."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
