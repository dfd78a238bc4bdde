"""`predict`: the classes of images by a trained run.

Shapes: B images, C classes.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from tokenshards.pipeline.commands.options import JsonFlag, StorageOptions, parse_options
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch
from tokenshards.pipeline.commands.source_options import IMAGES, takes_source
from tokenshards.stem_adaptors.commands.options import Device, TopClasses, Weights

__all__ = ["app"]

app = typer.Typer()


@app.command("predict", epilog="Example: tokenshards predict run cat.jpg photos/")
@takes_source(only=(*IMAGES, "src_option"))
def predict_command(
    run: Annotated[str, typer.Argument(help="Run directory made by `train`.")],
    images: Annotated[list[str], typer.Argument(help="Images, or folders of images; local or any fsspec URL.")],
    top: TopClasses = 1,
    weights: Weights = "best",
    device: Device = "auto",
    reading: Any = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the class of each image with its probability, one line each; exit code 1 if an image cannot be read."""
    prepare_for_torch()
    from tokenshards.pipeline.conversion.encode_files import tokenize_images
    from tokenshards.pipeline.devices import choose_device
    from tokenshards.pipeline.errors import ConfigError
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.pipeline.tokenizers.directory import load_tokenizer
    from tokenshards.stem_adaptors.precision import recorded_precision
    from tokenshards.stem_adaptors.training.evaluate import predict
    from tokenshards.stem_adaptors.training.run_directory import open_classifier

    if top < 1:
        raise ConfigError(f"--top is {top}; expected at least 1")
    options = parse_options(storage_option)
    store = Store(run, storage_options=options)
    place = choose_device(device)
    model, found = open_classifier(store, weights, place)
    precision = recorded_precision(found.train.precision, place)
    tokenizer = load_tokenizer(store, "tokenizer")
    failures = 0
    for encoded in tokenize_images(images, tokenizer, config=reading(images[0])):
        probabilities_BC = () if encoded.tokens is None else predict(model, encoded.tokens, place, precision)
        for name, row in zip(encoded.names, probabilities_BC, strict=True):
            best = [(found.classes[index], float(row[index])) for index in (-row).argsort()[:top]]
            if as_json:
                print_json({"image": name, "classes": [{"class": label, "probability": share} for label, share in best]})
            else:
                print(f"{name}  " + "  ".join(f"{label} {share:.1%}" for label, share in best))
        for name, reason in encoded.failed:
            print(f"error: {name}: {reason}", file=sys.stderr)
        failures += len(encoded.failed)
    if failures:
        raise typer.Exit(1)
