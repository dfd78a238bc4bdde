"""`train`: options of the command line become a TrainingJob, which runs here or on a Ray cluster."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from tokenshards.pipeline.commands.options import JsonFlag, Quiet, StorageOptions, parse_options
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch

__all__ = ["app"]

app = typer.Typer()


@app.command("train", epilog="Example: tokenshards train photos_train --val photos_val --out run")
def train_command(
    data: Annotated[str, typer.Argument(help="Dataset of tokens to learn from, local or any fsspec URL.")],
    out: Annotated[str, typer.Option(help="Run directory, local or any fsspec URL.")],
    val: Annotated[str | None, typer.Option(help="Dataset to measure on after each epoch.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over DATA.", show_default="by its size")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="vit_nano, vit_micro, vit_tiny, vit_small, vit_base, or timm:NAME.", show_default="by the size of DATA"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, all processes together.", show_default="by the size of DATA")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate, whatever the batch size.", show_default="by the size of DATA")
    ] = None,
    augment: Annotated[bool, typer.Option("--augment/--no-augment", help="Token-space augmentations that the layout allows.")] = True,
    device: Annotated[str | None, typer.Option(help="`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.", show_default="auto")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentations.", show_default="0")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, exactly; start it where there is none.")] = False,
    order: Annotated[
        str | None,
        typer.Option(help="`global`: a true shuffle of a decoded copy; `windowed`: bounded disk at any size.", show_default="global"),
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option(help="Folder of decoded copies. Default: $TOKENSHARDS_CACHE or the user's cache.")
    ] = None,
    cache_gb: Annotated[float | None, typer.Option(help="Most gigabytes that decoded copies may take.", show_default="64")] = None,
    fraction: Annotated[float, typer.Option(help="Learn from this share of each class only.")] = 1.0,
    fraction_seed: Annotated[
        int | None, typer.Option(help="Seed that draws this share; --seed does not change it.", show_default="0")
    ] = None,
    mix: Annotated[list[str] | None, typer.Option(help="URL=WEIGHT of a further dataset; DATA has weight 1; may be repeated.")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Start from the ViT weights in this file (.safetensors, .pt) or run directory.")
    ] = None,
    train_part: Annotated[str | None, typer.Option(help="`all`, `head` (linear probe) or `attention`.", show_default="all")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of averaged weights, evaluated too; 0 for none.", show_default="0")] = None,
    precision: Annotated[str | None, typer.Option(help="`auto`, `fp32`, `bf16` or `fp16`.", show_default="auto")] = None,
    recipe: Annotated[str | None, typer.Option(metavar="FILE.py", help="Settings from a recipe, such as those in infra/recipes/.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting: PART.FIELD=VALUE of model, augment, loader or train; may be repeated."),
    ] = None,
    ray_workers: Annotated[
        str | None, typer.Option(help="Number of workers on a Ray cluster; 2-8 goes on with fewer while nodes are missing.")
    ] = None,
    gpus_per_worker: Annotated[
        int | None, typer.Option(help="GPUs of each Ray worker.", show_default="1 where the cluster has GPUs, else 0")
    ] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="CPUs of each Ray worker.")] = 1.0,
    address: Annotated[str, typer.Option(help="Ray cluster: `auto`, or HOST:PORT of its head.")] = "auto",
    ray_wait: Annotated[float, typer.Option(help="Seconds that the cluster may take to find a place for the workers.")] = 60.0,
    storage_option: StorageOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a classifier from token shards alone. Under torchrun all its processes train; --resume continues bit for bit."""
    prepare_for_torch()
    from tokenshards.pipeline.storage.store import Store, display_url
    from tokenshards.stem_adaptors.augment import allowed_augmentations
    from tokenshards.stem_adaptors.config import AugmentConfig, with_settings
    from tokenshards.stem_adaptors.ranks import joined_ranks
    from tokenshards.stem_adaptors.reporting.progress import TrainingReporter
    from tokenshards.stem_adaptors.training.defaults import default_configs, read_recipe, training_data, with_given
    from tokenshards.stem_adaptors.training.run_directory import default_fraction_seed
    from tokenshards.stem_adaptors.training.training_job import TrainingJob

    options = parse_options(storage_option)
    if fraction_seed is None:
        fraction_seed = default_fraction_seed(Store(out, storage_options=options), seed or 0) if fraction < 1.0 else 0
    chosen = training_data(data, fraction=fraction, seed=fraction_seed, mix_with=tuple(mix or ()), storage_options=options)
    given: dict[str, dict[str, Any]] = {
        "model": {"name": model},
        "loader": {"batch_size": batch_size, "seed": seed, "order": order, "cache_dir": cache_dir, "cache_gb": cache_gb},
        "train": {
            "epochs": epochs,
            "lr": lr,
            "seed": seed,
            "device": device,
            "train_part": train_part,
            "ema_decay": ema,
            "precision": precision,
        },
    }
    recipe_configs = {} if recipe is None else read_recipe(recipe)
    configs = with_given({**default_configs(chosen), **recipe_configs}, given)
    if not augment:
        configs["augment"] = allowed_augmentations(chosen.spec, AugmentConfig.off())
    configs = with_settings(configs, settings or ())
    if val is None and not quiet:
        print("no --val given: nothing is measured, and the last weights count as the best", file=sys.stderr)
    reporter = TrainingReporter(quiet=quiet)
    job = TrainingJob(
        data_url=data,
        val_url=val,
        out_url=out,
        **configs,
        fraction=fraction,
        fraction_seed=fraction_seed,
        mix=tuple(mix or ()),
        pretrained=pretrained,
        storage_options=options,
    )
    try:
        if ray_workers is not None:
            from tokenshards.pipeline.optional_packages import optional_import
            from tokenshards.stem_adaptors.cluster.cluster_config import ClusterConfig, parse_workers

            with optional_import("--ray-workers needs Ray, here and on the nodes", extra="train,ray"):
                from tokenshards.stem_adaptors.cluster.ray_train import train_on_cluster
            cluster = ClusterConfig(
                workers=parse_workers(ray_workers),
                gpus_per_worker=gpus_per_worker,
                cpus_per_worker=cpus_per_worker,
                address=address,
                wait_seconds=ray_wait,
            )
            result = train_on_cluster(job, cluster, reporter, resume=resume)
        else:
            with joined_ranks(configs["train"].device) as (ranks, place):
                result = job.run(chosen, ranks, place, reporter, resume=resume)
            if not ranks.is_main:
                return
    finally:
        reporter.end()
    where = display_url(out)
    if as_json:
        print_json({"run": where, "best_top1": result.best_score, "best_epoch": result.best_epoch, **result.record})
    elif result.best_score is not None:
        best = f"best top-1 {result.best_score:.1%} after epoch {(result.best_epoch or 0) + 1}"
        print(f"{where}: {best}. Look at {where}/curves.png")
    else:
        print(f"{where}: trained. Measure it with: tokenshards evaluate {where} DATA")
