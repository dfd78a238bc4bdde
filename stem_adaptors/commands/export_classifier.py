"""`export classifier`: the weights of a run for timm."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenshards.pipeline.commands.options import JsonFlag, StorageOptions, parse_options
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch

__all__ = ["app"]

app = typer.Typer()


@app.command("classifier", epilog="Example: tokenshards export classifier run encoder.safetensors --image-size 64 --patch 8")
def export_classifier_command(
    run: Annotated[str, typer.Argument(help="Run of `train` or `pretrain`, local or any fsspec URL.")],
    file: Annotated[str, typer.Argument(metavar="FILE.safetensors", help="File to write, local or any fsspec URL.")],
    image_size: Annotated[
        int | None, typer.Option(help="Side of images in pixels: the encoder, with a fresh stem for them.", show_default="for tokens")
    ] = None,
    patch: Annotated[int | None, typer.Option(help="Patch of --image-size in pixels.", show_default="16")] = None,
    weights: Annotated[str, typer.Option(help="`best`, `last`, or `ema` (averaged).")] = "best",
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the weights of a run under timm's names, and print the code that loads them: for embeddings of tokens, or for images."""
    prepare_for_torch()
    from tokenshards.pipeline.storage.store import Store, display_url
    from tokenshards.stem_adaptors.frameworks.timm_weights import export_classifier, image_shape

    options = parse_options(storage_option)
    found = export_classifier(Store(run, storage_options=options), file, weights, image_shape(image_size, patch), options)
    where = display_url(file)
    code = found.code(where)
    if as_json:
        lacks = {"fresh": list(found.fresh), "unused": list(found.unused)}
        print_json(
            {"file": where, "tensors": len(found.tensors), **lacks, "model": found.name, "options": dict(found.options), "code": code}
        )
        return
    print(f"{where}: {len(found.tensors)} tensors of {display_url(run)}")
    for names, what in ((found.fresh, "fresh in timm's model"), (found.unused, "of the run, without a place in timm's model")):
        if names:
            print(f"{what}: {', '.join(names)}")
    print(f"load them with:\n\n{code}")
