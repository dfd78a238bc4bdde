"""`fit-tokenadapt`: train the two networks of TokenAdapt on images."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokenshards.pipeline.commands.options import (
    JsonFlag,
    OutOptions,
    Quiet,
    Sample,
    Seed,
    Source,
    StorageOptions,
    TokenizerOptions,
    side_options,
)
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch
from tokenshards.pipeline.commands.source_options import LABELLING, takes_source

__all__ = ["app"]

app = typer.Typer()


@app.command(
    "fit-tokenadapt",
    epilog="Example: tokenshards fit-tokenadapt photos/ --tokenizer photos.tokens --out photos.adapt --width 128 --heads 1",
)
@takes_source(without=LABELLING)
def fit_tokenadapt_command(
    src: Source,
    tokenizer: Annotated[str, typer.Option(help="Tokenizer directory, dataset or run with the tokenizer.")],
    out: Annotated[str, typer.Option(metavar="ADAPT", help="Directory for the result, local or any fsspec URL.")],
    width: Annotated[int, typer.Option(help="Channels of the two networks.")] = 384,
    heads: Annotated[int, typer.Option(help="Attention heads of 64 channels each.")] = 6,
    share: Annotated[float, typer.Option(help="Side of the result as a share of the grid's, as in `token_adapt(share=...)`.")] = 0.875,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 30,
    views: Annotated[
        int,
        typer.Option(
            help="Distinct views of an image, which then repeat, so that a slow tokenizer encodes few.", show_default="new in every epoch"
        ),
    ] = 0,
    colour: Annotated[float, typer.Option(help="Largest change of brightness, contrast and saturation to learn too, such as 0.3.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda` or `cuda:1`.")] = "auto",
    sample: Sample = 20_000,
    seed: Seed = 0,
    reading: Any = None,
    storage_option: StorageOptions = None,
    out_option: OutOptions = None,
    tokenizer_option: TokenizerOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Train the networks of TokenAdapt, which move images that only exist as tokens; a killed fit continues when it is started again."""
    prepare_for_torch()
    from tokenshards.pipeline.reports.terminal import TerminalReporter, print_table
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.pipeline.tokenizers.directory import open_tokenizer
    from tokenshards.stem_adaptors.commands.fitting_tokenadapt import fit_tokenadapt
    from tokenshards.stem_adaptors.reporting.fidelity_table import fidelity_rows, fidelity_warning
    from tokenshards.stem_adaptors.training.adapt_fit_config import AdaptFitConfig

    config = AdaptFitConfig(
        width=width,
        heads=heads,
        share=share,
        epochs=epochs,
        views=views,
        colour=colour,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
    )
    made_by = open_tokenizer(tokenizer, storage_options=side_options("tokenizer", tokenizer, storage_option, tokenizer_option))
    store = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    reporter = TerminalReporter(quiet=quiet)
    about = fit_tokenadapt(src, reading(src), made_by, store, config, sample=sample, device=device, say=reporter.say)
    if as_json:
        print_json({"out": store.url, "fingerprint": about.fingerprint, "settings": about.settings, "fidelity": about.fidelity})
    else:
        print_table(
            fidelity_rows(about.fidelity), title=f"{store.url}: share of right ids on {about.settings['held_out']:,} held-out images"
        )
        if (warning := fidelity_warning(about.fidelity)) is not None:
            print(warning)
