"""`import tokenizer`: convert a published checkpoint to a tokenizer directory."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokenshards.pipeline.commands.options import (
    JsonFlag,
    OutOptions,
    StorageOptions,
    TokenizerOptions,
    parse_numbers,
    parse_options,
    side_options,
)
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch
from tokenshards.pipeline.commands.source_options import LABELLING, takes_source

__all__ = ["app"]

app = typer.Typer()


@app.command(
    "tokenizer", epilog="Example: tokenshards import tokenizer imagenet_vitvq_base.ckpt vit.tok --kind vit-vqgan --keep-codes photos/"
)
@takes_source(without=LABELLING)
def import_tokenizer_command(
    weights: Annotated[str, typer.Argument(help="Published checkpoint, local or any fsspec URL (hf:// too): safetensors or torch.")],
    kind: Annotated[
        str, typer.Option(help="Kind of the checkpoint; pipeline/README.md lists all. `python:module:callable` needs no CHECKPOINT.")
    ],
    out: Annotated[
        str | None, typer.Argument(metavar="OUT.tok", help="Directory for tokenizer.json, codebook and weights.", show_default=False)
    ] = None,
    keep_codes: Annotated[str | None, typer.Option(metavar="SRC", help="Keep only the codes that these images use.")] = None,
    min_uses: Annotated[int, typer.Option(help="Fewest uses in --keep-codes SRC of a code to keep.")] = 1,
    sample: Annotated[int, typer.Option(help="Most images of --keep-codes SRC to count on.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of that sample.")] = 0,
    decoder: Annotated[bool, typer.Option(help="Keep the decoder to pixels, about half of the weights.")] = True,
    dtype: Annotated[str, typer.Option(help="Type of the networks: `float32`, or `bfloat16` for a GPU. Part of the identity.")] = "float32",
    resize: Annotated[str | None, typer.Option(help="`squash` or `crop`.", show_default="as in its own project")] = None,
    resample: Annotated[str | None, typer.Option("--filter", help="`bicubic`, `bilinear`, …", show_default="bicubic")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the image, for networks that take any side.", show_default="256")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Project. conv-vqgan: `taming`, `llamagen`, `ibq`, `amused`; torchscript: `cosmos-di`."),
    ] = None,
    decoder_file: Annotated[str | None, typer.Option(help="File of the decoder, for --kind torchscript.")] = None,
    vocabulary: Annotated[str | None, typer.Option(metavar="K[,K…]", help="Ids per level, for --kind torchscript.")] = None,
    colour_range: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Values of pixels 0 and 255, for torchscript.")] = None,
    ema: Annotated[bool, typer.Option(help="Take the moving averages of the parameters if the checkpoint has them.")] = True,
    max_tokens: Annotated[
        int | None, typer.Option(help="Keep only the first so many ids of an image, for ordered sequences.", show_default="all")
    ] = None,
    config_option: Annotated[
        list[str] | None, typer.Option("--config", metavar="KEY=VALUE", help="Setting for the callable of `python:`; may be repeated.")
    ] = None,
    reading: Any = None,
    storage_option: StorageOptions = None,
    out_option: OutOptions = None,
    tokenizer_option: TokenizerOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Convert a published checkpoint to a tokenizer directory for `tokenize --tokenizer`; every key is checked."""
    prepare_for_torch()
    from tokenshards.pipeline.conversion.import_checkpoint import CodeSample, import_notes, keep_used_codes, open_published, tokenizer_rows
    from tokenshards.pipeline.reports.storage_table import fit_rows
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.pipeline.tokenizers.base import describe_tokenizer
    from tokenshards.pipeline.tokenizers.config import ImportConfig
    from tokenshards.pipeline.tokenizers.directory import save_tokenizer

    if out is None:
        weights, out = "", weights
    config = ImportConfig(
        resize=resize,  # type: ignore[arg-type]  # ImportConfig checks the value
        filter=resample,  # type: ignore[arg-type]
        dtype=dtype,
        decoder=decoder,
        size=size,
        preset=preset,
        ema=ema,
        max_tokens=max_tokens,
        decoder_file=decoder_file,
        vocabulary=parse_numbers("--vocabulary", vocabulary, int),
        colour_range=parse_numbers("--colour-range", colour_range, float),
        settings=parse_options(config_option, "--config", "cell=8"),
    )
    read = side_options("tokenizer", weights, storage_option, tokenizer_option)
    tokenizer, statistics = open_published(kind, weights, config, read), dict[str, Any]()
    notes = import_notes(tokenizer)
    if keep_codes is not None:
        counted = CodeSample(source_url=keep_codes, source=reading(keep_codes), images=sample, seed=seed, min_uses=min_uses)
        tokenizer, statistics = keep_used_codes(tokenizer, counted)
    statistics |= {"notes": notes} if notes else {}
    store = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    save_tokenizer(tokenizer, store, "", statistics)
    if as_json:
        print_json({"fingerprint": tokenizer.spec.fingerprint, "spec": tokenizer.spec.to_json(), **statistics})
        return
    rows = [*tokenizer_rows(tokenizer), *fit_rows(statistics), *(("note", note) for note in notes)]
    print_table(rows, title=f"{store.url}: {describe_tokenizer(tokenizer)}")
