"""What `train` and `pretrain` share: options become a TrainingJob, which runs here or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenshards.pipeline.commands.options import parse_options
from tokenshards.pipeline.errors import ConfigError, StoppedError
from tokenshards.pipeline.interop.seit.tables import read_named
from tokenshards.pipeline.storage.store import Store, display_url
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.augment import augmentation_named
from tokenshards.stem_adaptors.augment.adapt_halves import with_token_adapt
from tokenshards.stem_adaptors.commands.run_options import RunOptions
from tokenshards.stem_adaptors.config import TrainConfig
from tokenshards.stem_adaptors.data.loader import TrainingData
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.ranks import joined_ranks
from tokenshards.stem_adaptors.recipes import recipe_names
from tokenshards.stem_adaptors.reporting.progress import TrainingReporter
from tokenshards.stem_adaptors.settings import with_settings
from tokenshards.stem_adaptors.training.defaults import read_recipe, smaller_batch_note, training_data, usual_configs, with_given
from tokenshards.stem_adaptors.training.pretrained import run_of
from tokenshards.stem_adaptors.training.run_directory import RUN_JSON, default_fraction_seed, load_run
from tokenshards.stem_adaptors.training.training_job import TrainingJob
from tokenshards.stem_adaptors.training.training_request import TrainResult

__all__ = ["Learned", "TrainingReport", "learn"]


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What the reports of `train` and `pretrain` share."""

    run: str
    """URL of the run directory."""
    best_epoch: int | None
    """Counted from 1, as in every record."""
    record: dict[str, Any]
    """Measurements of the last epoch."""
    records: tuple[dict[str, Any], ...]
    """Measurements of each epoch that this call trained."""
    settings: Mapping[str, Any]
    """The configs by part that were used: `model`, `augment`, `loader`, `train`, and `mask` of a pre-training."""
    said: tuple[str, ...]
    """What a terminal would have shown, without the lines of epochs."""
    rank: int = 0

    def shown(self, **best: float | None) -> str:
        """Return one line for a notebook, with the best figure by its name."""
        model, epochs, said = self.settings["model"].name, self.record.get("epoch"), f"{len(self.said)} lines"
        rounded = {name: None if figure is None else round(figure, 4) for name, figure in best.items()}
        return short_repr(self, run=self.run, **rounded, best_epoch=self.best_epoch, epochs=epochs, model=model, said=said)


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A finished training."""

    result: TrainResult
    settings: dict[str, Any]
    """The configs by part that were used."""
    reporter: TrainingReporter
    """What was said, and the records of all epochs."""
    rank: int

    def fields(self, out: str) -> dict[str, Any]:
        """Return the fields of a TrainingReport, for a run at `out`."""
        return {
            "run": display_url(out),
            "best_epoch": self.result.best_epoch,
            "record": self.result.record,
            "records": tuple(self.reporter.records),
            "settings": self.settings,
            "said": tuple(self.reporter.said),
            "rank": self.rank,
        }


def learn(options: RunOptions, objective: str, *, classes: Iterable[str] = (), train_part: str | None = None) -> Learned:
    """Train as the options say. Raises the errors of `tokenshards.pipeline.errors`; StoppedError where a signal ended the training."""
    stores = parse_options(options.storage_option)
    fraction_seed = options.fraction_seed
    if fraction_seed is None:
        out = Store(options.out, storage_options=stores)
        fraction_seed = default_fraction_seed(out, options.seed or 0) if options.fraction < 1.0 else 0
    mix = tuple(options.mix or ())
    names = _class_names(classes, stores)
    chosen = training_data(options.data, fraction=options.fraction, seed=fraction_seed, classes=names, mix_with=mix, storage_options=stores)
    configs = _configs(options, chosen, objective, train_part)
    reporter = TrainingReporter(quiet=options.quiet)
    configs["train"] = _as_long_as_recorded(options, Store(options.out, storage_options=stores), configs["train"], reporter)
    if options.val is None:
        reporter.say("no --val given: nothing is measured, and the last weights count as the best")
    if (note := smaller_batch_note(chosen, configs["loader"])) is not None:
        reporter.say(note)
    job = TrainingJob(
        data_url=options.data,
        val_url=options.val,
        out_url=options.out,
        **configs,
        fraction=options.fraction,
        fraction_seed=fraction_seed,
        classes=tuple(map(str, chosen.classes)) if names else (),
        mix=mix,
        pretrained=options.pretrained,
        objective=objective,
        storage_options=stores,
    )
    try:
        result, rank = _run(options, job, chosen, reporter)
    except SystemExit as stop:  # a signal arrived: the trainer has saved a checkpoint and said so
        raise StoppedError(reporter.said[-1] if reporter.said else "stopped by a signal", exit_code=int(stop.code or 0)) from None
    finally:
        reporter.end()
    return Learned(result=result, settings=configs, reporter=reporter, rank=rank)


def _class_names(given: Iterable[str], stores: dict[str, Any]) -> list[str]:
    """Return the texts of `--classes`, with the lines of a file in its place. Raises ConfigError for a file without a name."""
    names: list[str] = []
    for text in given:
        kind, _, place = text.partition(":")
        if kind != "file":
            names.append(text)
            continue
        lines = [line.strip() for line in read_named(place, stores).decode("utf-8-sig", "replace").splitlines()]
        if not any(lines):
            raise ConfigError(f"--classes {text}: the file is empty; expected the name of a class on each line")
        names.extend(filter(None, lines))
    return names


def _configs(options: RunOptions, chosen: TrainingData, objective: str, train_part: str | None) -> dict[str, Any]:
    """Return the configs by part: those that suit data and first weights, then the recipe, the options, and `--set`."""
    given: dict[str, dict[str, Any]] = {
        "model": {"name": options.model},
        "loader": {
            "batch_size": options.batch_size,
            "seed": options.seed,
            "order": options.order,
            "cache_dir": options.cache_dir,
            "cache_gb": options.cache_gb,
        },
        "train": {
            "epochs": options.epochs,
            "lr": options.lr,
            "seed": options.seed,
            "device": options.device,
            "train_part": train_part,
            "ema_decay": options.ema,
            "precision": options.precision,
        },
    }
    recipe_configs = {} if options.recipe is None else read_recipe(options.recipe)
    usual = usual_configs(chosen, objective, run_of(options.pretrained) if options.model is None else None)
    if unknown := sorted(recipe_configs.keys() - usual.keys()):
        what = {"mask": "`pretrain`", "segment": "`train --objective segment`"}[unknown[0]]
        raise ConfigError(f"--recipe {options.recipe} has {unknown[0].upper()}, which is for {what}; expected {', '.join(usual)}")
    if objective == "mtm" and options.recipe in recipe_names() and "mask" not in recipe_configs:
        others = ", ".join(name for name in recipe_names() if "mask" in read_recipe(name))
        raise ConfigError(f"--recipe {options.recipe} is for `train`; expected one for `pretrain`: {others}")
    configs = with_given({**usual, **recipe_configs}, given)
    if options.no_augment and options.augment not in (None, "none"):
        raise ConfigError(f"--augment {options.augment} and --no-augment were both given; expected one of them")
    name = "none" if options.no_augment else options.augment
    if name is not None:
        configs["augment"] = augmentation_named(name, chosen.spec)
    configs = with_settings(configs, options.set or ())
    if "mask" in configs:
        _require_effect(options.set or (), configs["mask"])
    if options.tokenadapt is not None:
        configs["augment"] = with_token_adapt(configs["augment"], chosen.spec, options.tokenadapt, to_ids=objective == "mtm")
    return configs


def _require_effect(settings: Iterable[str], mask: MaskConfig) -> None:
    """Raise ConfigError for a setting of the mask that would change nothing beside the others."""
    given = {setting.partition("=")[0] for setting in settings}
    if "mask.centroids" in given and mask.targets == "ids":
        raise ConfigError(
            "--set mask.centroids changes nothing where mask.targets is ids; give --set mask.targets=features or centroids too"
        )
    if "mask.ratio_std" in given and mask.ratio_std > 0 and mask.ratio_min == mask.ratio_max:
        raise ConfigError(
            f"--set mask.ratio_std={mask.ratio_std:g} changes nothing where mask.ratio_min and mask.ratio_max are both "
            f"{mask.ratio_min:g}; give --set mask.ratio_min and mask.ratio_max too"
        )


def _as_long_as_recorded(options: RunOptions, out: Store, train: TrainConfig, reporter: TrainingReporter) -> TrainConfig:
    """Return the config with the epochs of the run to continue, where no option gives them and the run was made longer before."""
    asked = options.epochs is not None or any(setting.startswith("train.epochs=") for setting in options.set or ())
    if not options.resume or asked or out.info(RUN_JSON) is None:
        return train
    epochs = load_run(out).train.epochs
    if epochs <= train.epochs:
        return train
    reporter.say(f"the run has {epochs} epochs")
    return replace(train, epochs=epochs)


def _run(options: RunOptions, job: TrainingJob, chosen: TrainingData, reporter: TrainingReporter) -> tuple[TrainResult, int]:
    """Return the result and the rank of this process."""
    if options.ray_workers is None:
        with joined_ranks(job.train.device) as (ranks, place):
            return job.run(chosen, ranks, place, reporter, resume=options.resume), ranks.rank
    from tokenshards.pipeline.optional_packages import optional_import
    from tokenshards.stem_adaptors.cluster.cluster_config import ClusterConfig, parse_workers

    with optional_import("--ray-workers needs Ray, here and on the nodes", extra="train,ray"):
        from tokenshards.stem_adaptors.cluster.ray_train import train_on_cluster
    cluster = ClusterConfig(
        workers=parse_workers(options.ray_workers),
        gpus_per_worker=options.gpus_per_worker,
        cpus_per_worker=options.cpus_per_worker,
        address=options.address,
        wait_seconds=options.ray_wait,
    )
    return train_on_cluster(job, cluster, reporter, resume=options.resume), 0
