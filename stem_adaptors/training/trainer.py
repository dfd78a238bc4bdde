"""The training loop on token shards, for any objective. It reads no images and no tokenizer; on a CPU a resumed run is bit-equal.

Every random number is keyed by (seed, epoch, place in the epoch), so the state of a training is a few counters and tensors. Under
torchrun each rank takes its share of every batch. The result equals that of one process with the same mix groups, up to the rounding of
float sums. The first start chooses the size of the mix groups (`mix_group_size`) and records it. Where groups do not lie whole in the
ranks of a later start, the trainer says so and mixes the samples that each rank has. Batch norm and dropout of timm's models always work
on the samples of one rank.

Checkpoints, logs and best weights are written by a thread, from copies.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenshards.pipeline.errors import TrainingError
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.objectives import OBJECTIVES
from tokenshards.stem_adaptors.precision import allow_fast_formats
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.adapt_copy import AdaptCopy
from tokenshards.stem_adaptors.training.checkpoints import Checkpoint, optimizer_tensors, read_checkpoint
from tokenshards.stem_adaptors.training.decisions import decisions
from tokenshards.stem_adaptors.training.metrics_log import MetricsLog
from tokenshards.stem_adaptors.training.optimisation import Optimisation
from tokenshards.stem_adaptors.training.preparation import prepare
from tokenshards.stem_adaptors.training.pretrained import load_pretrained
from tokenshards.stem_adaptors.training.run_directory import CHECKPOINT
from tokenshards.stem_adaptors.training.run_start import is_there, lengthen, mixing_note, recorded_run, run_for
from tokenshards.stem_adaptors.training.run_writer import RunWriter
from tokenshards.stem_adaptors.training.stopping import StopFlag
from tokenshards.stem_adaptors.training.training_request import Reporter, TrainRequest, TrainResult
from tokenshards.stem_adaptors.training.validation import Candidate, Validation

__all__ = ["Reporter", "TrainRequest", "TrainResult", "Trainer"]

FLAG_STEPS = 10
"""Steps between the points where several ranks agree whether to stop."""
CUDA_CHECK_STEPS = 50
"""Steps between checks of the loss on a GPU. Each check waits for the GPU."""


class Trainer:
    """One training on one rank: `TrainingJob.run` makes the trainer and calls `fit`."""

    def __init__(self, request: TrainRequest, ranks: Ranks, device: torch.device, reporter: Reporter) -> None:
        self.request, self.ranks, self.device, self.reporter = request, ranks, device, reporter
        config, data = request.train, request.data
        kind = OBJECTIVES[request.objective]
        kind.require(data)
        maps = kind.reads_label_maps
        self.loader = TokenLoader(data, request.loader, rank=ranks.rank, world_size=ranks.world_size, device=device, label_maps=maps)
        self._recorded = recorded_run(request, ranks, device)
        before = None if self._recorded is None else self._recorded.augment
        self._adapt = AdaptCopy(request.augment, before, request.out, request.storage_options)
        self.request = request = replace(request, augment=self._adapt.augment)
        self.run = run = run_for(request, self.loader, self._recorded, ranks)
        self.objective = run.build(request.dataset.codebook())
        self._adapt.give(self.objective)
        self.model = self.objective.model
        if request.pretrained is not None:
            self._say(str(load_pretrained(self.model, request.pretrained, run.spec.fingerprint)))
        if not is_there(request, CHECKPOINT, ranks, device):
            prepare(self.objective, request, ranks)
        self.objective.to(device)
        if device.type == "cuda":
            allow_fast_formats(self.model)
        self.optimisation = Optimisation(self.objective, config, ranks, device, epoch_steps=len(self.loader), draws=run.draws)
        self.total_steps = self.optimisation.total_steps
        if config.compile:
            self.objective.compile_model()
        self.log = MetricsLog()
        self.step = 0
        self.best: dict[str, Any] = {"score": None, "epoch": None}
        self._epoch_sums = {"seconds": 0.0, "wait_seconds": 0.0, "images": 0.0}
        self._measure = self.objective.measure()
        self.validation = Validation(request, run, self.objective, ranks, device)
        self._stop = StopFlag()
        self._writer: RunWriter | None = None

    def fit(self) -> TrainResult:
        """Train to the last epoch. SIGINT and SIGTERM end the training after the current step, with a checkpoint."""
        config = self.request.train
        self._begin()
        self._writer = RunWriter(self.request.out, self.epoch + 1) if self.ranks.is_main else None
        try:
            if self._writer is not None:
                self._writer.log(self.log)  # a kill may have come between the checkpoint and the log files of its epoch
            with self._stop.listening():
                while self.step < self.total_steps:
                    self._train_epoch()
                    self._end_epoch()
        finally:
            if self._writer is not None and (note := self._writer.close(self.log)) is not None:
                self._say(note)
        self._say(f"{counted(config.epochs, 'epoch is', 'epochs are')} done")
        measured = self.request.val is not None
        return TrainResult(self.log.records[-1], self.best["score"] if measured else None, self.best["epoch"])

    def request_stop(self, signal_number: int) -> None:
        """End after the current step, with a checkpoint, as that signal would. Any thread may call this."""
        self._stop.set(signal_number)

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, counted from 0."""
        return self.step // len(self.loader)

    def _begin(self) -> None:
        request, out, config = self.request, self.request.out, self.request.train
        saved = is_there(self.request, CHECKPOINT, self.ranks, self.device)
        if self._recorded is not None:
            self._recorded.check_same(self.run)
        for note in (self._adapt.note, mixing_note(self.run, self.ranks), self.validation.note):
            if note is not None:
                self._say(note)
        if self._recorded is not None:
            if (note := lengthen(self._recorded, request, self.ranks)) is not None:
                self._say(note)
            if saved:
                self._load(read_checkpoint(out, CHECKPOINT))
                done = f"all {self.total_steps:,} steps are done; more --epochs continue the run"
                place = f"continuing at step {self.step:,} of {self.total_steps:,} (epoch {self.epoch + 1:,} of {config.epochs:,})"
                self._say(done if self.step >= self.total_steps else place)
        elif self.ranks.is_main:
            self._adapt.save()
            self.run.save(out, self.request.dataset)
        for line in self._decisions():
            self._say(line)
        self.ranks.wait_for_all()

    def _decisions(self) -> list[str]:
        return decisions(
            self.request,
            self.run,
            self.model,
            steps=len(self.loader),
            precision=self.optimisation.precision,
            device=self.device,
            ranks=self.ranks,
        )

    def _train_epoch(self) -> None:
        epoch, steps = self.epoch, len(self.loader)
        self.optimisation.train_mode()
        saved = asked = time.monotonic()
        batches = iter(self.loader)
        try:
            for batch in batches:
                ready = time.monotonic()
                loss = self._train_step(batch)
                self.step += 1
                crash_point("after-training-step")
                now = time.monotonic()
                self._epoch_sums["wait_seconds"] += ready - asked
                self._epoch_sums["seconds"] += now - asked
                self._epoch_sums["images"] += self.request.loader.batch_size
                asked = now
                done = self.step - epoch * steps
                stop, due = self._agree(now - saved) if done < steps else (False, True)
                value = self._checked_loss(loss, saved_next=stop or due)
                if done == steps:
                    continue  # the loader then moves on to the next epoch, and its state belongs to the finished one
                if value is not None and self.ranks.is_main:
                    rate = self._epoch_sums["images"] / max(1e-9, self._epoch_sums["seconds"])
                    self.reporter.step(epoch + 1, done, steps, rate, value)
                if stop or due:
                    self._save()
                    saved = asked = time.monotonic()
                if stop:
                    self._raise_stop()
        finally:
            batches.close()

    def _train_step(self, batch: Batch) -> Tensor:
        return self.optimisation.step(self.step, batch, self._measure)

    def _checked_loss(self, loss: Tensor, *, saved_next: bool) -> float | None:
        """Return the loss over all ranks, or None where this step is not checked. Raise TrainingError where the loss is not finite.

        A step before a checkpoint is always checked, because a checkpoint must not hold weights after such a loss.
        """
        if self.device.type != "cpu" and self.step % CUDA_CHECK_STEPS and not saved_next:
            return None
        value = float(self.ranks.sum(loss.clone()))
        if value != value or value in (float("inf"), float("-inf")):
            config = self.request.train
            raise TrainingError(
                f"the loss or its gradient is {value} at step {self.step:,} (epoch {self.epoch + 1}); expected a finite number. "
                f"The last checkpoint in {self.request.out.url} is from before. Try a lower --lr (it is {config.lr:g}), a longer warm-up "
                f"(--set train.warmup_epochs={2 * config.warmup_epochs + 1:g}), tighter clipping (--set train.clip_grad_norm="
                f"{config.clip_grad_norm / 2 or 1:g}), or --precision fp32"
            )
        return value

    def _end_epoch(self) -> None:
        epoch = self.epoch  # records count epochs from 1
        sums, train = self._epoch_sums, self._measure.record(self.ranks)
        self.optimisation.share_buffers()
        measured, candidates = self.validation.measure(self.optimisation.average, self.optimisation.precision, self.step)
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": self.step,
            "lr": self.optimisation.lr,
            **{f"train_{name}": train[name] for name in self.objective.training_figures},
            "images_per_second": sums["images"] / max(1e-9, sums["seconds"]),
            "data_wait_share": sums["wait_seconds"] / max(1e-9, sums["seconds"]),
            **measured,
        }
        self.log = MetricsLog([*self.log.before(epoch).records, record])
        self._epoch_sums = dict.fromkeys(sums, 0.0)
        self._measure = self.objective.measure()
        self._keep_best(epoch, candidates, record)
        self._save()
        if self._writer is not None:
            self._writer.log(self.log)
            self._writer.event(record)
            self.reporter.epoch({**record, "epochs": self.request.train.epochs})
        if self.ranks.any(bool(self._stop), self.device) and self.step < self.total_steps:
            self._raise_stop()

    def _keep_best(self, epoch: int, candidates: list[Candidate], record: dict[str, Any]) -> None:
        """Write the best of the candidates, if one of them is better than all before."""
        objective = self.objective
        for score, weights, which in candidates:
            if not objective.better(score, self.best["score"]):
                continue
            self.best = {"score": score, "epoch": epoch}
            figure = f"val_{objective.score}"
            state = {"epoch": epoch, figure: record.get(figure), "weights": which}
            chosen = weights, state
        if self.best["epoch"] == epoch and self._writer is not None:
            self._writer.best(*chosen)

    def _agree(self, seconds: float) -> tuple[bool, bool]:
        """Return whether to stop and whether a checkpoint is due. Every rank gets the same answer."""
        config = self.request.train
        by_steps = bool(config.checkpoint_steps) and self.step % config.checkpoint_steps == 0
        if self.ranks.world_size > 1 and self.step % FLAG_STEPS:
            return False, by_steps
        late = not config.checkpoint_steps and self.ranks.is_main and seconds >= config.checkpoint_seconds
        return self.ranks.any(bool(self._stop), self.device), by_steps or self.ranks.any(late, self.device)

    def _save(self) -> None:
        counts, average = self._measure.tensors(self.ranks), self.optimisation.average
        if self._writer is None:
            return
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            optimizer=optimizer_tensors(self.optimisation.optimizer),
            average={} if average is None else average.tensors,
            counts=counts,
            state={
                "step": self.step,
                "loader": self.loader.state_dict(),
                "best": self.best,
                "epoch_sums": self._epoch_sums,
                "scaler": self.optimisation.scaler.state_dict(),
                "metrics": self.log.records,
            },
        )
        self._writer.checkpoint(checkpoint)

    def _load(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.model.load_state_dict(checkpoint.model)
        self.optimisation.load(checkpoint)
        self.loader.load_state_dict(state["loader"])
        self.step, best, self._epoch_sums = state["step"], state["best"], state["epoch_sums"]
        self.log, shift = MetricsLog.counted_from_one(state["metrics"])
        best_epoch = None if best["epoch"] is None else best["epoch"] + shift
        self.best = {"score": best.get("score", best.get("top1")), "epoch": best_epoch}  # `top1` until 0.1.0
        if self.ranks.is_main:  # the sums of all ranks were saved together
            self._measure.add_tensors(checkpoint.counts)

    def _raise_stop(self) -> None:
        if self._writer is not None:
            self._writer.wait()
        self._say(f"stopped after step {self.step:,} of {self.total_steps:,}, with a checkpoint; the same command with --resume continues")
        raise SystemExit(self._stop.exit_code)

    def _say(self, message: str) -> None:
        if self.ranks.is_main:
            self.reporter.say(message)
