"""`import` and `export`: read and write other projects' layouts."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenshards.pipeline.commands.options import (
    Codec,
    JsonFlag,
    MaxBad,
    Out,
    OutOptions,
    Quiet,
    ShardRows,
    SrcOptions,
    StorageOptions,
    side_options,
)
from tokenshards.pipeline.commands.output import finish_run, print_json

__all__ = ["export_app", "import_app"]

import_app = typer.Typer(help="Import from another project: tokens as a dataset, a checkpoint as a tokenizer.", no_args_is_help=True)
export_app = typer.Typer(help="Write a dataset in another project's layout.", no_args_is_help=True)
Split = Annotated[str, typer.Option(help="Name of the split, whose files are SPLIT-token.data.bin.gz, SPLIT-token.index.npy.gz, …")]


@import_app.command("seit", epilog="Example: tokenshards import seit seit_release/ imagenet.tokens --split train --classes names.txt")
def import_seit_command(
    src: Annotated[str, typer.Argument(help="Folder of a SeiT release, local or any fsspec URL.")],
    out: Out,
    split: Split = "train",
    grid: Annotated[str, typer.Option(help="Rows x columns of the sites of an image.")] = "32x32",
    codebook: Annotated[str | None, typer.Option(help="Codebook file (.safetensors, .npy, .ckpt). Default: the one in SRC.")] = None,
    labels: Annotated[str | None, typer.Option(help="Label file. Default: the one beside the tokens.")] = None,
    synonyms: Annotated[str | None, typer.Option(help="Synonym table (.json). Default: synonyms.json in SRC.")] = None,
    classes: Annotated[str | None, typer.Option(help="Text file with one class name per line.")] = None,
    codec: Codec = "default",
    shard_rows: ShardRows = None,
    max_bad: MaxBad = 0.01,
    storage_option: StorageOptions = None,
    src_option: SrcOptions = None,
    out_option: OutOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Convert a split in SeiT's release layout to a dataset; checks everything before it writes. Run it again to continue."""
    from tokenshards.pipeline.config import PlanConfig
    from tokenshards.pipeline.interop.seit.importer import SeitImportRequest, import_seit, parse_grid
    from tokenshards.pipeline.reports.terminal import TerminalReporter

    options = side_options("out", out, storage_option, out_option)
    request = SeitImportRequest(
        source_url=src,
        out_url=out,
        split=split,
        grid=parse_grid(grid),
        codebook=codebook,
        labels=labels,
        synonyms=synonyms,
        classes=classes,
        plan=PlanConfig(shard_rows=shard_rows, codec=codec),
        max_bad=max_bad,
        options=options,
        source_options=side_options("src", src, storage_option, src_option),
    )
    outcome = import_seit(request, TerminalReporter(quiet=quiet))
    finish_run(out, options, outcome, as_json, quiet)


@export_app.command("seit", epilog="Example: tokenshards export seit photos.tokens seit_release/ --split train")
def export_seit_command(
    data: Annotated[str, typer.Argument(help="Dataset with one level of at most 510 codes on one grid, local or any fsspec URL.")],
    out: Annotated[str, typer.Argument(help="Folder for the files, local or any fsspec URL.")],
    split: Split = "train",
    storage_option: StorageOptions = None,
    src_option: SrcOptions = None,
    out_option: OutOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a dataset as a split of SeiT's release layout: tokens, index, labels, codebook, synonyms and class names."""
    from tokenshards.pipeline.interop.seit.exporter import export_seit
    from tokenshards.pipeline.reports.terminal import print_table

    reading = side_options("src", data, storage_option, src_option)
    written = export_seit(data, out, split=split, options=reading, out_options=side_options("out", out, storage_option, out_option))
    if as_json:
        print_json(written.to_json())
    else:
        print_table(written.rows(), title=written.url)


@export_app.command("webdataset", epilog="Example: tokenshards export webdataset photos.tokens photos.tars --rows-per-tar 10000")
def export_webdataset_command(
    data: Annotated[str, typer.Argument(help="Dataset, local or any fsspec URL.")],
    out: Annotated[str, typer.Argument(help="Folder for the tars, local or any fsspec URL.")],
    rows_per_tar: Annotated[int, typer.Option(help="Samples per tar.")] = 10_000,
    storage_option: StorageOptions = None,
    src_option: SrcOptions = None,
    out_option: OutOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a dataset as WebDataset tars: ids as .tokens.npy, the class index as .cls, everything else as .json."""
    from tokenshards.pipeline.interop.webdataset_export import export_webdataset
    from tokenshards.pipeline.reports.terminal import print_table

    reading, writing = side_options("src", data, storage_option, src_option), side_options("out", out, storage_option, out_option)
    written = export_webdataset(data, out, rows_per_tar=rows_per_tar, options=reading, out_options=writing)
    if as_json:
        print_json(written.to_json())
    else:
        print_table(written.table(), title=written.url)
