"""A worker of a training on a Ray cluster, and the report of dead workers from Ray Train's controller."""

from __future__ import annotations

from typing import Any

import ray
import ray.train
import ray.train.torch

from tokenshards.pipeline.errors import TokenshardsError, TransientStorageError
from tokenshards.pipeline.malloc import keep_freed_memory
from tokenshards.stem_adaptors.cluster.board import BoardReporter
from tokenshards.stem_adaptors.cluster.code_identity import require_code
from tokenshards.stem_adaptors.cluster.ray_connection import one_line
from tokenshards.stem_adaptors.cluster.run_mark import require_mark
from tokenshards.stem_adaptors.ranks import joined_ranks
from tokenshards.stem_adaptors.training.trainer import Trainer
from tokenshards.stem_adaptors.training.training_job import TrainingJob

__all__ = ["Losses", "take_part"]

_BROKEN = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
"""Parts of error messages that a worker gives when another worker is gone."""


class Losses(ray.train.UserCallback):  # type: ignore[misc]
    """Tells the board about dead workers; lives in Ray Train's controller."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Report the failure; Ray calls this when at least one worker has failed."""
        # A death breaks the connections of the other workers. The death is the cause; the errors of the other workers are not.
        reasons = [one_line(error) for error in worker_exceptions.values()]
        causes = [reason for reason in reasons if not any(word in reason.lower() for word in _BROKEN)]
        news = {"kind": "lost", "reason": causes[0] if causes else "the connection to one of them broke"}
        self._board.exchange.remote([news])


def take_part(config: dict[str, Any]) -> None:
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
                device = str(ray.train.torch.get_device())  # Ray's choice, for a worker with several devices
            with joined_ranks(device) as (ranks, place):
                if ranks.is_main:
                    reporter.tell("began", workers=ranks.world_size)

                def listen(trainer: Trainer) -> None:
                    reporter.on_stop = trainer.request_stop

                # The terminal saw no older run, or was told to continue one. A run that exists now is therefore this run.
                result = job.run(job.open_data(), ranks, place, reporter, resume=True, started=listen)
            if ranks.is_main:
                fields = {"record": result.record, "best_score": result.best_score, "best_epoch": result.best_epoch}
                reporter.tell("done", result=fields)
        except SystemExit as stop:
            if rank == 0:
                reporter.tell("stopped", exit_code=stop.code)
        except TransientStorageError:
            raise  # Ray Train starts the group again
        except TokenshardsError as error:
            reporter.tell("failed", message=str(error), hint=error.hint, exit_code=error.exit_code)
