"""Training on a Ray cluster: Ray Train starts, watches and restarts the workers, each of which trains as under torchrun.

The run directory is the only memory: a group that starts again resumes from its last checkpoint, with as many workers as there are
then. Ray Train is given no checkpoint to keep, so it needs no storage that nodes share; it writes to a folder of this machine that goes
at the end. News and the wish to stop pass over a board, one small actor beside the terminal (board.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from types import FrameType
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
from ray._private.state import available_resources_per_node
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokenshards.pipeline.errors import (
    ClusterError,
    ConfigError,
    IncompleteError,
    TokenshardsError,
    TrainingError,
    TransientStorageError,
    shorten,
)
from tokenshards.pipeline.malloc import keep_freed_memory
from tokenshards.pipeline.runners.ray_connection import HeadWatch
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.cluster.board import Board, BoardReporter, News
from tokenshards.stem_adaptors.cluster.cluster_config import ADDRESS_ADVICE, ClusterConfig, answering_address
from tokenshards.stem_adaptors.cluster.code_identity import code_identity, require_code
from tokenshards.stem_adaptors.cluster.run_mark import marked, require_mark
from tokenshards.stem_adaptors.ranks import joined_ranks
from tokenshards.stem_adaptors.training.run_directory import CHECKPOINT, RUN_JSON
from tokenshards.stem_adaptors.training.trainer import Reporter, Trainer, TrainResult
from tokenshards.stem_adaptors.training.training_job import TrainingJob

__all__ = ["train_on_cluster"]

LOOK_SECONDS = 0.2
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",  # after which it counts the nodes again: one that died may have been among them
}
"""What Ray reads from the environment, unless it is set there."""
STOP_SECONDS = 60.0
"""How long workers may take to stop in order."""
WITHDRAW_SECONDS = 5.0
DEMAND_SECONDS = 200.0
"""How long Ray Train keeps places for a training that was killed and could not withdraw what it had asked for."""


def train_on_cluster(job: TrainingJob, cluster: ClusterConfig, reporter: Reporter, *, resume: bool) -> TrainResult:
    """Train on the workers of a Ray cluster and show here what they say; SIGINT and SIGTERM end it with a checkpoint.

    Raises ConfigError where the cluster cannot be reached, runs other code or has too little room, IncompleteError where it loses its
    head, or its workers for longer than it may, TrainingError where they die again and again, and what a training raises on one machine.
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
    if not resume and out.info(RUN_JSON) is not None:
        raise ConfigError(f"{out.url} already holds a run. Add --resume to continue it, or give another --out")
    with _connected(cluster.address), marked(out) as mark, tempfile.TemporaryDirectory(prefix="tokenshards-ray-") as folder:
        _require_same_code()
        return _Driver(job, cluster, reporter, out, mark).run(folder)


class _Driver:
    """Starts the workers and follows them to the end."""

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
        """Return the result of the workers, or raise what ended them."""
        try:
            return self._follow(folder)
        except (ClusterError, ray.exceptions.RayError) as error:
            raise IncompleteError(
                f"the training lost the head of the Ray cluster, or its own process there ({_one_line(error)}); expected both to last. "
                "What is in the checkpoint is kept: when the cluster answers again, or on another, --resume continues"
            ) from None
        finally:
            if self._head.answers():
                _withdraw_demand(self._train_run)

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
        """Start Ray Train in a thread of its own, and return that."""
        self._failure: BaseException | None = None
        thread = threading.Thread(target=self._fit, args=(folder,), name="ray-train", daemon=True)
        thread.start()
        return thread

    def _count_end(self, failure: BaseException | None) -> None:
        """Count what ended Ray Train itself, such as a death before the workers had found each other."""
        if failure is None:
            raise TrainingError("Ray Train ended without a result; expected one. --resume continues; Ray's logs of this cluster say more")
        if isinstance(getattr(failure, "controller_failure", None), WorkerGroupStartupTimeoutError):
            return  # nobody died: there was no place yet, and how long that may last is --ray-wait
        _give_places_back()  # Ray Train does so itself, and withdraws its demand, unless it was killed
        _withdraw_demand(self._train_run)
        self._count_loss({"reason": _one_line(failure)})

    def _fit(self, folder: str) -> None:
        try:
            trainer = self._trainer(folder)
            self._train_run = trainer.train_run_context.run_id
            trainer.fit()
        except BaseException as error:  # whatever it is, the driver's own thread tells it
            self._failure = error

    def _trainer(self, folder: str) -> Any:
        fewest, most = self._cluster.workers
        return ray.train.torch.TorchTrainer(
            _take_part,
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
                # How often workers may die is decided here, where a new checkpoint is seen; Ray tells of deaths after the start alone.
                failure_config=ray.train.FailureConfig(max_failures=-1, controller_failure_limit=self._cluster.losses),
                callbacks=[_Losses(self._board)],
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
            self._reporter.say(f"training{again} on {news['workers']} workers of {_amount(self._resources())}")
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
        """Raise where no place was found for the workers in the time for it; workers that have one may take as long as they need."""
        waited = time.monotonic() - self._waiting_since
        if self._running or waited < self._cluster.wait_seconds or not self._head.answers() or _has_place():
            return
        total, free = ray.cluster_resources(), ray.available_resources()
        fewest, resources = self._cluster.workers[0], self._resources()
        if waited < DEMAND_SECONDS and fewest < self._cluster.workers[1] and _free_places(resources) >= fewest:
            if not self._told_of_demand:
                self._told_of_demand = True
                self._reporter.say(
                    "waiting: there is room, but Ray keeps it for another training, for three minutes even if that was killed"
                )
            return
        nodes = sum(node["Alive"] for node in ray.nodes())
        text = (
            f"no place for the workers after {waited:.0f} s: asked for {fewest} workers of {_amount(resources)} "
            f"each; the cluster has {nodes} nodes with {_amount(total, always_gpu=True)}, of which {_amount(free, always_gpu=True)} "
            "are free. "
        )
        if self._groups:
            raise IncompleteError(
                f"{text}Add nodes, then --resume continues, or give fewer --ray-workers (such as 1-{self._cluster.workers[1]})"
            )
        raise ConfigError(f"{text}Add nodes, ask for less with --ray-workers, --gpus-per-worker and --cpus-per-worker, or raise --ray-wait")


_BROKEN = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
"""What a worker says whose peer is gone."""


class _Losses(ray.train.UserCallback):  # type: ignore[misc]
    """Tells the board of dead workers; lives in Ray Train's controller."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called when at least one worker has failed."""
        # A death breaks the connections of the others: it is the cause, and what they say of it is not.
        reasons = [_one_line(error) for error in worker_exceptions.values()]
        causes = [reason for reason in reasons if not any(word in reason.lower() for word in _BROKEN)]
        news = {"kind": "lost", "reason": causes[0] if causes else "the connection to one of them broke"}
        self._board.exchange.remote([news])


def _take_part(config: dict[str, Any]) -> None:
    """Train as one worker of the group that Ray Train made."""
    board, rank = config["board"], ray.train.get_context().get_world_rank()
    with BoardReporter(lambda news: ray.get(board.exchange.remote(news))) as reporter:
        try:
            require_code(config["code"])
            job = TrainingJob.from_json(ray.get(board.job.remote()))
            require_mark(job.open_out(), config["mark"])
            keep_freed_memory()
            device = job.train.device
            if config["gpus"] and device in ("auto", "cuda"):
                device = str(ray.train.torch.get_device())  # Ray's own choice, where a worker has several
            with joined_ranks(device) as (ranks, place):
                if ranks.is_main:
                    reporter.tell("began", workers=ranks.world_size)

                def listen(trainer: Trainer) -> None:
                    reporter.on_stop = trainer.request_stop

                # Who started this saw no older run, or was told to continue it: what is here now is this very run.
                result = job.run(job.open_data(), ranks, place, reporter, resume=True, started=listen)
            if ranks.is_main:
                fields = {"record": result.record, "best_top1": result.best_top1, "best_epoch": result.best_epoch}
                reporter.tell("done", result=fields)
        except SystemExit as stop:
            if rank == 0:
                reporter.tell("stopped", exit_code=stop.code)
        except TransientStorageError:
            raise  # the group starts again
        except TokenshardsError as error:
            reporter.tell("failed", message=str(error), hint=error.hint, exit_code=error.exit_code)


def _require_same_code() -> None:
    """Ask every node for its code, before a worker fails over it."""

    def identity() -> str:
        try:
            from tokenshards.stem_adaptors.cluster.code_identity import code_identity
        except ImportError:
            return ""
        return code_identity()

    expected, asked = code_identity(), {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
            asked[node["NodeManagerAddress"]] = ray.remote(identity).options(num_cpus=0, scheduling_strategy=there).remote()
    for host, answer in asked.items():
        found = ray.get(answer)
        if found != expected:
            raise ConfigError(
                f"the node {host} {f'runs tokenshards {found}' if found else 'has no tokenshards[train]'}; this terminal runs {expected}. "
                "Install the same on every node"
            )


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Join the cluster as a driver and leave it, which ends all that was started there."""
    target = answering_address(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.chdir("/"):  # Ray puts the current folder first on the workers' path, whatever `pipeline` may lie in it
            ray.init(address=target, log_to_driver=False, logging_level=logging.CRITICAL)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"the Ray cluster at {target} asks for a token ({_one_line(error)}). Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH to its file, as on the nodes"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"the Ray cluster at {target} cannot be joined ({_one_line(error)}). {ADDRESS_ADVICE}") from None
    signal.signal(signal.SIGTERM, before)  # `ray.init` sets one of its own, which ends the process before anything is put in order
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray's own threads print what raylets and autoscaler say: no place for it
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Yield a list that the first SIGINT or SIGTERM is put into; the second one ends the process."""
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


def _has_place() -> bool:
    """Whether the workers of this driver have been given their place."""
    return any(state == "CREATED" for state in _places().values())


def _free_places(resources: dict[str, float]) -> int:
    """Return how many workers of this size would fit on what is free now."""
    asked = {name: amount for name, amount in resources.items() if amount > 0}
    nodes = available_resources_per_node().values()
    return sum(int(min((free.get(name, 0) // amount for name, amount in asked.items()), default=0)) for free in nodes)


def _places() -> dict[str, str]:
    """Return the state of each placement group of this driver: their ids end in that of its job."""
    job, groups = ray.get_runtime_context().get_job_id(), ray.util.placement_group_table().values()
    return {group["placement_group_id"]: group["state"] for group in groups if group["placement_group_id"].endswith(job)}


def _give_places_back() -> None:
    for name, state in _places().items():
        if state != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


def _withdraw_demand(train_run: str) -> None:
    """Take back what a run of Ray Train asked for: else the next one, where it may have fewer workers, starts with what that leaves."""
    with contextlib.suppress(ValueError, ray.exceptions.RayError):  # no coordinator, or none that can be reached
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.cancel_request.remote(f"train-{train_run}"), timeout=WITHDRAW_SECONDS)


def _amount(resources: dict[str, float], *, always_gpu: bool = False) -> str:
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus or always_gpu else "")


def _one_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[-1] if lines else type(error).__name__, 200)
