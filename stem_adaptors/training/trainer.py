"""Training a classifier from token shards: no images, no tokenizer. Stops and resumes anywhere, bit-equal on a CPU.

Every random number is keyed by (seed, epoch, place in the epoch), so a state is a few counters and the tensors. Under torchrun each rank
takes its share of every batch. The result is that of one process with the same mix groups, as far as float sums allow: samples are mixed
within groups of a size that is chosen at the first start (`mix_group_size`) and recorded. Where groups do not lie whole in the ranks of a
later start, it says so and mixes what each rank has. Batch norm and dropout of timm's models go by what a rank has in any case.

Shapes: B samples of this rank, C classes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokenshards.pipeline.canonical import keyed_hash64
from tokenshards.pipeline.errors import ConfigError, TrainingError
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import Augmentation, SampleKeys, mix_group_size, soft_targets
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.loader import TokenLoader, TrainingData
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, build_classifier, parameter_groups
from tokenshards.stem_adaptors.models.drop_path import draw_paths, drop_paths_of
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.reporting.curves import curves_png
from tokenshards.stem_adaptors.reporting.tensorboard_log import TensorBoardLog
from tokenshards.stem_adaptors.training.checkpoints import (
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
    write_weights,
)
from tokenshards.stem_adaptors.training.ema import AveragedWeights
from tokenshards.stem_adaptors.training.evaluate import class_map, evaluate
from tokenshards.stem_adaptors.training.metrics import Accuracy, Counts, MetricsLog
from tokenshards.stem_adaptors.training.pretrained import load_pretrained, trainable_parameters
from tokenshards.stem_adaptors.training.run_directory import (
    BEST,
    CHECKPOINT,
    CURVES,
    METRICS_CSV,
    METRICS_JSONL,
    RUN_JSON,
    Run,
    load_run,
    statistics_of,
)
from tokenshards.stem_adaptors.training.schedule import learning_rate

__all__ = ["Reporter", "TrainRequest", "TrainResult", "Trainer"]

FLAG_STEPS = 10
"""Steps between the points where several ranks agree whether to stop."""
CUDA_CHECK_STEPS = 50
"""Steps between looks at the loss on a GPU, each of which waits for the GPU."""


class Reporter(Protocol):
    """Where a training tells people what it does."""

    def say(self, message: str) -> None:
        """Print one line."""

    def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None:
        """Show where the epoch is."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Show the record of a finished epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train, on what, and where the run is kept."""

    data: TrainingData
    val: TokenDataset | None
    out: Store
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pretrained: str | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a training ended."""

    record: dict[str, Any]
    """The record of the last epoch."""
    best_top1: float | None
    best_epoch: int | None


class _Objective(nn.Module):
    """Augmentation, classifier and loss as one module, so that DistributedDataParallel sees one forward pass."""

    def __init__(self, model: TokenClassifier, augmentation: Augmentation, classes: int, smoothing: float, draws: int) -> None:
        super().__init__()
        self.model = model
        self.augmentation = augmentation
        self.classes, self.smoothing = classes, smoothing
        self._drop_paths = drop_paths_of(model) if draws > 1 else []

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample and its logits."""
        keys = SampleKeys.from_batch(batch)
        ids_BLQ = self.augmentation.ids(batch.ids_BLQ, keys)
        targets_BC = soft_targets(batch.labels_B, self.classes, self.smoothing)
        if self._drop_paths:
            draw_paths(self._drop_paths, keys.uniform("drop path", len(self._drop_paths)))
        mask = self.model.embedding.site_mask(batch.mask_BL, batch.shapes_BD)
        x, targets_BC = self.augmentation.embeddings(self.model.embed(ids_BLQ, shapes_BD=batch.shapes_BD), keys, targets_BC, mask)
        logits_BC = self.model.classify(x, mask)
        loss_B = -(targets_BC * logits_BC.float().log_softmax(dim=1)).sum(dim=1)
        return loss_B, logits_BC


class Trainer:
    """One training on one rank."""

    def __init__(self, request: TrainRequest, ranks: Ranks, device: torch.device, reporter: Reporter) -> None:
        self.request, self.ranks, self.device, self.reporter = request, ranks, device, reporter
        config, data = request.train, request.data
        self.loader = TokenLoader(data, request.loader, rank=ranks.rank, world_size=ranks.world_size, device=device)
        if not data.classes:
            raise ConfigError(
                "the training set has no labels: nothing can be learned from it. Tokenize it with labels (class folders, --label)"
            )
        self._dataset = dataset = data if isinstance(data, TokenDataset) else data.dataset
        self.classes = data.classes
        recorded = self._recorded()
        self.draws = DRAWS if recorded is None else recorded.draws
        augment = request.augment
        if augment.mix_group is None:
            chosen = mix_group_size(request.loader.batch_size, ranks.world_size * config.accumulate)
            augment = replace(augment, mix_group=chosen if recorded is None else recorded.augment.mix_group)
        tables = dataset.codebook()
        statistics = None if request.model.raw_embeddings else statistics_of(dataset)
        self.run = Run(
            model=request.model,
            augment=augment,
            loader=request.loader,
            train=config,
            spec=dataset.spec,
            classes=self.classes,
            statistics=statistics,
            data=self._identity(dataset),
            draws=self.draws,
        )
        augmentation = Augmentation(dataset.spec, tables, augment, draws=self.draws)
        model = build_classifier(
            dataset.spec, tables, statistics, request.model, len(self.classes), augmentation.out_grid, seed=config.seed
        )
        if request.pretrained is not None:
            self._say(str(load_pretrained(model, request.pretrained)))
        self.model = model.to(device)
        self.total_steps = config.epochs * len(self.loader)
        self.warmup_steps = min(round(config.warmup_epochs * len(self.loader)), self.total_steps // 2)
        trainable_parameters(self.model, config.train_part)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.weight_decay, self._spared()), lr=config.lr, fused=device.type in ("cpu", "cuda")
        )
        self.precision = _precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.average = AveragedWeights(self.model, config.ema_decay) if config.ema_decay else None
        if config.compile:
            self.model.backbone.compile()
        self.objective = _Objective(self.model, augmentation, len(self.classes), config.label_smoothing, self.draws)
        self.wrapped = ranks.wrap(self.objective, device)
        self.log = MetricsLog()
        self.step = 0
        self.best: dict[str, Any] = {"top1": None, "epoch": None}
        self._epoch_sums = {"seconds": 0.0, "wait_seconds": 0.0, "images": 0.0}
        self._counts = Counts(len(self.classes), device)
        self._val_loader = self._open_val()
        self._stop: int | None = None
        self._board: TensorBoardLog | None = None

    def fit(self) -> TrainResult:
        """Train to the last epoch; SIGINT and SIGTERM end it after the step in hand, with a checkpoint."""
        config = self.request.train
        self._begin()
        self._board = TensorBoardLog(self.request.out, self.epoch) if self.ranks.is_main else None
        try:
            with self._stopping():
                while self.step < self.total_steps:
                    self._train_epoch()
                    self._end_epoch()
        finally:
            if self.ranks.is_main:
                self._draw_curves()
            if self._board is not None:
                self._board.close()
        self._say(f"{config.epochs} epochs are done")
        measured = self.request.val is not None
        return TrainResult(self.log.records[-1], self.best["top1"] if measured else None, self.best["epoch"])

    def request_stop(self, signal_number: int) -> None:
        """End after the step in hand, with a checkpoint, as that signal would; from any thread."""
        self._stop = signal_number

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, counted from 0."""
        return self.step // len(self.loader)

    def _identity(self, dataset: TokenDataset) -> dict[str, Any]:
        """Return what a resumed run must find unchanged: the data by its digests, and what the weights were started from."""
        state = self.loader.state_dict()
        digests = {name: state[name] for name in ("manifest", "subset", "mix_weights")}
        return {**digests, "url": dataset.store.url, "pretrained": self.request.pretrained}

    def _spared(self) -> set[str]:
        """Return the parameters that timm's model wants free of weight decay, beside those that are free by name."""
        names: Any = getattr(self.model.backbone, "no_weight_decay", set)
        return set() if self.draws == 1 else {f"backbone.{name}" for name in names()}

    def _is_there(self, name: str) -> bool:
        """Whether the main rank sees that object of the run: it is the one that writes, and another may look when it has."""
        return self.ranks.any(self.ranks.is_main and self.request.out.info(name) is not None, self.device)

    def _recorded(self) -> Run | None:
        """Return the run that is to be continued, None where one begins."""
        out = self.request.out
        if not self._is_there(RUN_JSON):
            return None
        if not self.request.resume:
            raise ConfigError(f"{out.url} already holds a run. Add --resume to continue it, or give another --out")
        recorded = load_run(out)
        if recorded.data.get("imported"):
            raise ConfigError(
                f"{out.url} holds imported weights and no training to continue. To train from them, give --pretrained {out.url} and "
                "another --out"
            )
        return recorded

    def _begin(self) -> None:
        out, config = self.request.out, self.request.train
        recorded, saved = self._recorded(), self._is_there(CHECKPOINT)
        self._say_what_is_mixed()
        if recorded is not None:
            recorded.check_same(self.run)
            if saved:
                self._load(read_checkpoint(out, CHECKPOINT))
                self._write_log()  # a kill may have come between the checkpoint and the files of its epoch
                self._say(f"continuing at step {self.step:,} of {self.total_steps:,} (epoch {self.epoch + 1} of {config.epochs})")
        elif self.ranks.is_main:
            self.run.save(out, self._dataset)
        self.ranks.main_first()

    def _say_what_is_mixed(self) -> None:
        """Say so where samples are mixed otherwise than on another number of ranks."""
        config, size = self.run.augment, self.run.augment.mix_group
        shares = self.ranks.world_size * self.request.train.accumulate
        batch_size = self.request.loader.batch_size
        if config.mixes and (batch_size % (size * shares) if size else self.draws > 1 and shares > 1):
            self._say(
                f"note: {shares} shares of a batch of {batch_size} do not hold whole mix groups of {size or 'one size'}; CutMix, Mixup and "
                "ColorAdapt mix what each share has, so the result is not that of another number of processes"
            )

    def _train_epoch(self) -> None:
        epoch, steps = self.epoch, len(self.loader)
        # A linear probe measures the backbone as it is: batch statistics, which a train mode would move, stay too.
        self.model.train(self.draws == 1 or self.request.train.train_part != "head")
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
                    continue  # the loader moves on to the next epoch; its state is then that of a finished one
                if value is not None and self.ranks.is_main:
                    rate = self._epoch_sums["images"] / max(1e-9, self._epoch_sums["seconds"])
                    self.reporter.step(epoch, done, steps, rate, value)
                if stop or due:
                    self._save()
                    saved = asked = time.monotonic()
                if stop:
                    self._raise_stop()
        finally:
            batches.close()

    def _train_step(self, batch: Batch) -> Tensor:
        config = self.request.train
        rate = learning_rate(self.step, total_steps=self.total_steps, warmup_steps=self.warmup_steps, peak=config.lr, floor=config.min_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Drop-path and dropout draw from torch's generator: keyed by the step, it needs no saving.
        torch.manual_seed(keyed_hash64(f"step {config.seed}", f"{self.step} {self.ranks.rank}"))
        weights = self.ranks.sum(self._sample_weights(batch).sum())
        total = torch.zeros((), device=self.device)
        pieces = _pieces(len(batch), config.accumulate, in_a_row=self.draws == 1)
        for index, piece in enumerate(pieces):
            part = batch[piece]
            last = index == len(pieces) - 1
            sync = nullcontext() if last or self.ranks.world_size == 1 else self.wrapped.no_sync()  # type: ignore[operator]
            with sync:
                with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision is not torch.float32):
                    loss_B, logits_BC = self.wrapped(part)
                weights_B = self._sample_weights(part)
                # DistributedDataParallel takes the mean over ranks; the loss is the mean over all samples of the step.
                loss = (loss_B * weights_B).sum() * self.ranks.world_size / weights.clamp_min(1.0)
                self.scaler.scale(loss).backward()
            total += loss.detach() / self.ranks.world_size
            self._counts.add(logits_BC.detach(), part.labels_B, part.weights_B, loss_B.detach())
        if config.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad_norm)
            if not self.scaler.is_enabled():  # which leaves such a step out itself
                total = torch.where(norm.isfinite(), total, norm)  # the weights are lost, whatever the loss was
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)
        return total

    @staticmethod
    def _sample_weights(batch: Batch) -> Tensor:
        return batch.weights_B * (batch.labels_B >= 0)

    def _checked_loss(self, loss: Tensor, *, saved_next: bool) -> float | None:
        """Return the loss over all ranks, None where it is not looked at; raise TrainingError where it is not finite.

        It is always looked at before a checkpoint, which must not hold what such a loss led to.
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
        epoch = self.epoch - 1
        config, sums = self.request.train, self._epoch_sums
        train = self._counts.gather(self.ranks)
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": train.loss,
            "train_top1": train.top1,
            "images_per_second": sums["images"] / max(1e-9, sums["seconds"]),
            "data_wait_share": sums["wait_seconds"] / max(1e-9, sums["seconds"]),
        }
        candidates: list[tuple[float, dict[str, Tensor], str]] = []
        if self._val_loader is not None:
            found = self._evaluate()
            record |= {"val_loss": found.loss, "val_top1": found.top1, "val_top5": found.top5, "val_images": found.images}
            candidates.append((found.top1, self.model.state_dict(), "last"))
            if self.average is not None:
                with self.average.applied_to(self.model):
                    averaged = self._evaluate()
                record |= {"ema_val_loss": averaged.loss, "ema_val_top1": averaged.top1, "ema_val_top5": averaged.top5}
                candidates.append((averaged.top1, self.average.tensors, "ema"))
        else:
            candidates.append((float(self.step), self.model.state_dict() if self.average is None else self.average.tensors, "last"))
        self.log = MetricsLog([*self.log.before(epoch).records, record])
        self._epoch_sums = dict.fromkeys(sums, 0.0)
        self._counts = Counts(len(self.classes), self.device)
        score, weights, which = max(candidates, key=lambda candidate: candidate[0])
        if self.best["top1"] is None or score > self.best["top1"]:
            self.best = {"top1": score, "epoch": epoch}
            if self.ranks.is_main:
                write_weights(self.request.out, BEST, weights, {"epoch": epoch, "val_top1": record.get("val_top1"), "weights": which})
        self._save()
        self._write_log()
        if self.ranks.is_main:
            if self._board is not None:
                self._board.add(record)
            self.reporter.epoch({**record, "epochs": config.epochs})
        if self.ranks.any(self._stop is not None, self.device) and self.step < self.total_steps:
            self._raise_stop()

    def _evaluate(self) -> Accuracy:
        if self._val_loader is None:
            raise ConfigError("there is no validation set; give --val")
        loader, mapping = self._val_loader
        return evaluate(self.model, loader.epoch(0), mapping, len(self.classes), self.ranks, self.device, self.precision)

    def _open_val(self) -> tuple[TokenLoader, Tensor] | None:
        val, loader = self.request.val, self.request.loader
        if val is None:
            return None
        if val.spec.fingerprint != self.run.spec.fingerprint:
            raise ConfigError(
                f"{val.store.url} was made by the tokenizer {val.spec.fingerprint[:12]}…; the training set by "
                f"{self.run.spec.fingerprint[:12]}…. Tokenize it with --tokenizer and the training set"
            )
        mapping = class_map(val.classes, self.classes, val.store.url, missing_is_error=True).to(self.device)
        config = LoaderConfig(
            batch_size=loader.batch_size,
            order="sequential",
            end="pad",
            cache_dir=loader.cache_dir,
            cache_gb=loader.cache_gb,
            prefetch_batches=loader.prefetch_batches,
        )
        return TokenLoader(val, config, rank=self.ranks.rank, world_size=self.ranks.world_size, device=self.device), mapping

    def _agree(self, seconds: float) -> tuple[bool, bool]:
        """Return whether to stop and whether a checkpoint is due; the same answer on every rank."""
        config = self.request.train
        by_steps = bool(config.checkpoint_steps) and self.step % config.checkpoint_steps == 0
        if self.ranks.world_size > 1 and self.step % FLAG_STEPS:
            return False, by_steps
        late = not config.checkpoint_steps and self.ranks.is_main and seconds >= config.checkpoint_seconds
        return self.ranks.any(self._stop is not None, self.device), by_steps or self.ranks.any(late, self.device)

    def _save(self) -> None:
        counts = self._counts.tensors(self.ranks)
        if not self.ranks.is_main:
            return
        state = {
            "step": self.step,
            "loader": self.loader.state_dict(),
            "best": self.best,
            "epoch_sums": self._epoch_sums,
            "scaler": self.scaler.state_dict(),
            "metrics": self.log.records,
        }
        write_checkpoint(
            self.request.out,
            CHECKPOINT,
            Checkpoint(
                model=self.model.state_dict(),
                optimizer=optimizer_tensors(self.optimizer),
                average={} if self.average is None else self.average.tensors,
                counts=counts,
                state=state,
            ),
        )

    def _load(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.model.load_state_dict(checkpoint.model)
        load_optimizer(self.optimizer, checkpoint.optimizer)
        if self.average is not None:
            self.average.load(checkpoint.average)
        self.loader.load_state_dict(state["loader"])
        self.step, self.best, self._epoch_sums = state["step"], state["best"], state["epoch_sums"]
        self.log = MetricsLog(state["metrics"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.ranks.is_main:  # the sums of all ranks were saved together
            self._counts.add_tensors(checkpoint.counts)

    def _write_log(self) -> None:
        if self.ranks.is_main and self.log.records:
            self.request.out.write(METRICS_JSONL, self.log.to_jsonl())
            self.request.out.write(METRICS_CSV, self.log.to_csv())

    def _draw_curves(self) -> None:
        if not self.log.records:
            return
        try:
            self.request.out.write(CURVES, curves_png(self.log.records))
        except ConfigError as error:
            self._say(f"note: no {CURVES} was drawn, {error}")

    def _raise_stop(self) -> None:
        self._say(f"stopped after step {self.step:,} of {self.total_steps:,}, with a checkpoint; the same command with --resume continues")
        raise SystemExit(128 + int(self._stop or signal.SIGINT))

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into a flag that is looked at between steps; the second one works as ever."""

        def note(number: int, frame: FrameType | None) -> None:
            self._stop = number
            for kept, handler in before.items():
                signal.signal(kept, handler)

        before: dict[int, Any] = {}
        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM):
                try:
                    before[number] = signal.signal(number, note)
                except ValueError:  # not the main thread: whoever runs it there stops it
                    continue
                stack.callback(signal.signal, number, before[number])
            yield

    def _say(self, message: str) -> None:
        if self.ranks.is_main:
            self.reporter.say(message)


def _pieces(rows: int, count: int, *, in_a_row: bool) -> list[slice]:
    """Cut rows into `count` slices of nearly equal length, none empty: every count-th row, as ranks do, so that mix groups stay whole."""
    if not in_a_row:
        return [slice(start, None, count) for start in range(min(rows, count))]
    edges = [rows * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if stop > start]


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if precision is torch.float16 and device.type != "cuda":
        raise ConfigError(f"--precision is fp16 on {device.type}; expected fp32 or bf16 there")
    return precision
