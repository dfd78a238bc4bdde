"""`import classifier`: make a run from weights."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenshards.pipeline.commands.options import JsonFlag, StorageOptions, parse_options
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch

__all__ = ["app"]

app = typer.Typer()


@app.command(
    "classifier",
    epilog="Example: tokenshards import classifier trained-vit.ckpt imagenet_val.tokens run; tokenshards evaluate run imagenet_val.tokens",
)
def import_classifier_command(
    weights: Annotated[
        str, typer.Argument(help="Weights (.safetensors, or torch's .pt, .pth, .ckpt) or a run directory, local or any fsspec URL.")
    ],
    data: Annotated[str, typer.Argument(help="Dataset of the tokens that the weights learned from, with their classes in their order.")],
    run: Annotated[str, typer.Argument(help="Run directory to make, local or any fsspec URL.")],
    model: Annotated[str | None, typer.Option(help="As for `train`.", show_default="a ViT of the sizes in the file")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="PART.FIELD=VALUE of model or augment, as for `train`; may be repeated.")
    ] = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a run for `evaluate` and `predict` from weights alone, ours or another project's such as SeiT's; every weight must fit."""
    prepare_for_torch()
    from tokenshards.pipeline.shards import open_dataset
    from tokenshards.pipeline.storage.store import Store, display_url
    from tokenshards.stem_adaptors.training.imported_classifier import import_classifier

    options = parse_options(storage_option)
    dataset, out = open_dataset(data, storage_options=options), Store(run, storage_options=options)
    made, report, notes = import_classifier(weights, dataset, out, model=model, settings=settings or ())
    where = display_url(run)
    if as_json:
        sizes = {"classes": len(made.classes), "tensors": len(report.loaded)}
        print_json({"run": where, "model": made.model.name, **sizes, "raw_embeddings": made.model.raw_embeddings, "notes": notes})
    else:
        for note in notes:
            print(note)
        print(f"{where}: {report}. Measure it with: tokenshards evaluate {where} {display_url(data)}")
