"""The options that `train` and `pretrain` share, which the functions of these names take too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from tokenshards.pipeline.commands.options import JsonFlag, Quiet, StorageOptions
from tokenshards.stem_adaptors.recipes import recipe_names

__all__ = ["RunOptions"]

RECIPES = ", ".join(recipe_names())


def _list_settings(asked: bool) -> None:
    if asked:
        from tokenshards.stem_adaptors.commands.setting_list import setting_lines

        print("\n".join(setting_lines()))
        raise typer.Exit


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The arguments and options of a training. Each field has the name of its option."""

    data: Annotated[str, typer.Argument(help="Dataset of tokens to learn from, local or any fsspec URL.")]
    out: Annotated[str, typer.Option(help="Run directory, local or any fsspec URL.")]
    val: Annotated[str | None, typer.Option(help="Dataset to measure on after each epoch.")] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over DATA.", show_default="by its size")] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="vit_nano, vit_micro, vit_tiny, vit_small, vit_base, timm:NAME, or python:MODULE:CALLABLE.",
            show_default="by the size of DATA",
        ),
    ] = None
    batch_size: Annotated[int | None, typer.Option(help="Images per step, all processes together.", show_default="by the size of DATA")] = (
        None
    )
    lr: Annotated[float | None, typer.Option(help="Peak learning rate, whatever the batch size.", show_default="by the size of DATA")] = (
        None
    )
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Token-space augmentations: seit, seitpp, seitpp_small, mild, mtm, none, or operations such as 'rrc(), 0.5*noise()'.",
            show_default="by the size of DATA",
        ),
    ] = None
    tokenadapt: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPT", help="Half of each batch goes through this fitted TokenAdapt (`fit-tokenadapt`) in the place of `rrc`."
        ),
    ] = None
    no_augment: Annotated[bool, typer.Option("--no-augment", help="The same as --augment none.")] = False
    device: Annotated[str | None, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:1`.", show_default="auto")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentations.", show_default="0")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, exactly; start it where there is none.")] = False
    order: Annotated[
        str | None,
        typer.Option(help="`global`: a true shuffle of a decoded copy; `windowed`: bounded disk at any size.", show_default="global"),
    ] = None
    cache_dir: Annotated[str | None, typer.Option(help="Folder of decoded copies. Default: $TOKENSHARDS_CACHE or the user's cache.")] = None
    cache_gb: Annotated[float | None, typer.Option(help="Most gigabytes that decoded copies may take.", show_default="64")] = None
    fraction: Annotated[float, typer.Option(help="Learn from this share of each class only.")] = 1.0
    fraction_seed: Annotated[int | None, typer.Option(help="Seed that draws this share; --seed does not change it.", show_default="0")] = (
        None
    )
    mix: Annotated[list[str] | None, typer.Option(help="URL=WEIGHT of a further dataset; DATA has weight 1; may be repeated.")] = None
    pretrained: Annotated[
        str | None, typer.Option(help="Start from the ViT weights in this file (.safetensors, .pt) or run directory.")
    ] = None
    ema: Annotated[float | None, typer.Option(help="Decay of averaged weights, evaluated too; 0 for none.", show_default="0")] = None
    precision: Annotated[str | None, typer.Option(help="`auto`, `fp32`, `bf16` or `fp16`.", show_default="auto")] = None
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.py", help=f"Settings from a recipe: {RECIPES}, or a file of yours."),
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting: PART.FIELD=VALUE, as --list-settings names them; may be repeated."),
    ] = None
    list_settings: Annotated[
        bool,
        typer.Option("--list-settings", is_eager=True, callback=_list_settings, help="Print the fields that --set takes, and exit."),
    ] = False
    ray_workers: Annotated[
        str | None, typer.Option(help="Number of workers on a Ray cluster; 2-8 goes on with fewer while nodes are missing.")
    ] = None
    gpus_per_worker: Annotated[
        int | None, typer.Option(help="GPUs of each Ray worker.", show_default="1 where the cluster has GPUs, else 0")
    ] = None
    cpus_per_worker: Annotated[float, typer.Option(help="CPUs of each Ray worker.")] = 1.0
    address: Annotated[str, typer.Option(help="Ray cluster: `auto`, or HOST:PORT of its head.")] = "auto"
    ray_wait: Annotated[float, typer.Option(help="Seconds that the cluster may take to find a place for the workers.")] = 60.0
    storage_option: StorageOptions = None
    quiet: Quiet = False
    as_json: JsonFlag = False
