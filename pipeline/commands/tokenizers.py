"""`fit-tokenizer` and `evaluate-tokenizer`."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated, Any

import typer

from tokenshards.pipeline.commands.options import (
    JsonFlag,
    OutOptions,
    Sample,
    Seed,
    Size,
    Source,
    StorageOptions,
    TokenizerOptions,
    side_options,
)
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import one_blas_thread, prepare_for_torch
from tokenshards.pipeline.commands.source_options import LABELLING, takes_source

__all__ = ["app"]

app = typer.Typer()

_VQ = "Training of --kind vq-autoencoder"


@app.command("fit-tokenizer", epilog="Example: tokenshards fit-tokenizer photos/ photos.tok --size 128 --levels 2")
@takes_source(without=LABELLING)
def fit_tokenizer_command(
    src: Source,
    out: Annotated[str, typer.Argument(metavar="OUT.tok", help="Directory for tokenizer.json, codebook and weights.")],
    kind: Annotated[
        str,
        typer.Option(
            help="`patch-kmeans`; `layered-kmeans`, ids for recognition; `vq-autoencoder`, a small network trained here; `latent-kmeans`, "
            "codes for the latents of --encoder."
        ),
    ] = "patch-kmeans",
    encoder: Annotated[str | None, typer.Option(help="Weights of a TAESD-family encoder, local or any fsspec URL.")] = None,
    decoder: Annotated[str | None, typer.Option(help="Weights of the matching decoder, to decode tokens.")] = None,
    mirrored: Annotated[bool | None, typer.Option("--mirrored", help="Also fit to the latents of mirrored images.")] = None,
    size: Size = None,
    patch: Annotated[int | None, typer.Option(help="Side of a patch (or site) in pixels.", show_default="4")] = None,
    site: Annotated[int | None, typer.Option(help="Side of a site of layered-kmeans in pixels.", show_default="8")] = None,
    levels: Annotated[
        int | None, typer.Option(help="Residual levels, one id each per site.", show_default="2; 1 for layers, latents, fsq, lfq")
    ] = None,
    codes: Annotated[int | None, typer.Option(help="Codes per level.", show_default="256; 1024 for latents")] = None,
    beam: Annotated[int | None, typer.Option(help="As in `tokenize`.", show_default="1")] = None,
    quantizer: Annotated[
        str | None,
        typer.Option(help="`vq`, residual for several levels; `fsq` or `lfq`, one level.", show_default="vq", rich_help_panel=_VQ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.", show_default="8", rich_help_panel=_VQ)] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the networks.", show_default="64", rich_help_panel=_VQ)] = None,
    depth: Annotated[int | None, typer.Option(help="Residual blocks of each network.", show_default="2", rich_help_panel=_VQ)] = None,
    code_width: Annotated[int | None, typer.Option(help="Values per code of vq.", show_default="16", rich_help_panel=_VQ)] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step.", show_default="32", rich_help_panel=_VQ)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="0.001", rich_help_panel=_VQ)] = None,
    perceptual: Annotated[str | None, typer.Option(help="timm model for a perceptual loss, such as vgg11.", rich_help_panel=_VQ)] = None,
    perceptual_weights: Annotated[
        str | None, typer.Option(help="Weights of that model, local or any fsspec URL.", rich_help_panel=_VQ)
    ] = None,
    perceptual_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the perceptual loss; the squared error has weight 1.", show_default="0.1", rich_help_panel=_VQ),
    ] = None,
    sample: Sample = 20_000,
    seed: Seed = 0,
    reading: Any = None,
    storage_option: StorageOptions = None,
    out_option: OutOptions = None,
    tokenizer_option: TokenizerOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit a tokenizer to a sample of your images: k-means of patches, in layers or of an encoder's latents, or a small network."""
    prepare_for_torch()
    from tokenshards.pipeline.conversion.fit_kinds import FitOptions, open_fit
    from tokenshards.pipeline.conversion.understand import understand
    from tokenshards.pipeline.planning.planner import Listing
    from tokenshards.pipeline.reports.storage_table import fit_rows
    from tokenshards.pipeline.reports.terminal import TerminalReporter, print_table
    from tokenshards.pipeline.sources import open_source
    from tokenshards.pipeline.sources.pixel_depth import settle_sixteen_bit
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.pipeline.tokenizers.base import describe_tokenizer
    from tokenshards.pipeline.tokenizers.directory import save_tokenizer

    options = FitOptions(
        kind=kind,
        sample=sample,
        seed=seed,
        size=size,
        levels=levels,
        codes=codes,
        patch=patch,
        site=site,
        beam=beam,
        encoder=encoder,
        decoder=decoder,
        mirrored=mirrored,
        quantizer=quantizer,
        code_width=code_width,
        width=width,
        depth=depth,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        perceptual=perceptual,
        perceptual_weights=perceptual_weights,
        perceptual_weight=perceptual_weight,
    )
    reporter = TerminalReporter()
    store = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    weights = side_options("tokenizer", encoder or perceptual_weights, storage_option, tokenizer_option)
    fit = open_fit(options, out=store, storage_options=weights, say=reporter.say)
    source = open_source(src, reading(src))
    with Listing(source.list_rows(), order_seed=0, keep_order=source.ordered, sample=sample, sample_seed=seed) as listing:
        settle_sixteen_bit(source, listing.sample)
        understand(source, replace(source.config, yes=True), reporter.say)
        fitted = fit.run(source, listing.sample)
    for note in fitted.notes:
        reporter.say(f"note: {note}")
    save_tokenizer(fitted.tokenizer, store, "", fitted.statistics)
    fit.done()
    if as_json:
        print_json({"fingerprint": fitted.tokenizer.spec.fingerprint, **fitted.statistics})
        return
    print_table(fit_rows(fitted.statistics), title=f"{store.url}: {describe_tokenizer(fitted.tokenizer)}")


@app.command("evaluate-tokenizer", epilog="Example: tokenshards evaluate-tokenizer photos.tok photos/ --sample 1000")
@takes_source(without=LABELLING)
def evaluate_tokenizer_command(
    tokenizer: Annotated[str, typer.Argument(metavar="TOK", help="Tokenizer directory, or a dataset.")],
    images: Annotated[str, typer.Argument(help="Images: a folder, tars or tables, local or any fsspec URL.")],
    sample: Annotated[int, typer.Option(help="Most images to measure on.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    reading: Any = None,
    storage_option: StorageOptions = None,
    tokenizer_option: TokenizerOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure PSNR, SSIM, code usage, bits and images per second of a tokenizer; warn of a wrong normalisation."""
    one_blas_thread()
    prepare_for_torch()
    from tokenshards.pipeline.quality.evaluation import evaluate_tokenizer
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.pipeline.tokenizers.base import describe_tokenizer
    from tokenshards.pipeline.tokenizers.directory import load_statistics, load_tokenizer, resolve_tokenizer

    store, prefix = resolve_tokenizer(tokenizer, side_options("tokenizer", tokenizer, storage_option, tokenizer_option))
    measured = load_tokenizer(store, prefix)
    found = evaluate_tokenizer(measured, load_statistics(store, prefix), images, reading(images), sample=sample, seed=seed)
    if as_json:
        print_json(found.to_json())
    else:
        print_table(found.rows(), title=f"{store.url}: {describe_tokenizer(measured)}")
    for warning in found.warnings():
        print(f"warning: {warning}", file=sys.stderr)
