"""Options that several commands share, and what becomes of their text."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

__all__ = [
    "Address",
    "AllFiles",
    "Beam",
    "Codec",
    "Codes",
    "CpusPerActor",
    "DecodePlace",
    "GiveUpAfter",
    "GpusPerActor",
    "IdColumn",
    "ImageColumn",
    "JsonFlag",
    "LabelName",
    "Levels",
    "MaxActors",
    "MaxBad",
    "Meta",
    "Out",
    "Patch",
    "Quiet",
    "RunnerName",
    "Sample",
    "Seed",
    "ShardRows",
    "Size",
    "Source",
    "StorageOptions",
    "TarsPerShard",
    "TokenizerOption",
    "Views",
    "Workers",
    "parse_numbers",
    "parse_options",
]

Source = Annotated[str, typer.Argument(help="Images: a folder, tars (globs and {000..123} braces) or tables, local or any fsspec URL.")]
Out = Annotated[str, typer.Argument(help="Dataset root, local or any fsspec URL.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")]
StorageOptions = Annotated[
    list[str] | None, typer.Option("--storage-option", help="key=value for the store (endpoint_url, profile, …); may be repeated.")
]
AllFiles = Annotated[bool, typer.Option("--all-files", help="Take every file, not only those with an image extension.")]
ImageColumn = Annotated[str | None, typer.Option(help="Table column with image bytes or URIs. Default: found by name.")]
IdColumn = Annotated[str | None, typer.Option(help="Table column whose values become sample ids. Default: path#row.")]
LabelName = Annotated[str | None, typer.Option("--label", help="Table column, or key of a tar's .json, with the label.")]
Meta = Annotated[list[str] | None, typer.Option("--meta", help="Table column or .json key to keep as meta.NAME; may be repeated.")]
TarsPerShard = Annotated[int, typer.Option(help="Tars that make one shard.")]
Size = Annotated[int | None, typer.Option(help="Side of the square image in pixels. Default: largest of 32, 64, 128 that fits.")]
Patch = Annotated[int, typer.Option(help="Side of a patch in pixels.")]
Levels = Annotated[int, typer.Option(help="Residual levels, one id each per patch.")]
Codes = Annotated[int, typer.Option(help="Codes per level.")]
Beam = Annotated[int, typer.Option(help="Sums of codes kept of each patch while it is encoded; 8 is closer, and slower.")]
Sample = Annotated[int, typer.Option(help="Images to fit on, at most.")]
Seed = Annotated[int, typer.Option(help="Seed of the sample and the fit.")]
Codec = Annotated[str, typer.Option(help="How ids are stored: `default` (fast, every Parquet reader) or `publish` (smallest).")]
ShardRows = Annotated[int | None, typer.Option(help="Images per shard.", show_default="10000, fewer for a small data set")]
Views = Annotated[
    str,
    typer.Option(help="Views of each picture, a row each: `one`, `flip`, `ten-crop`, or a number N: the usual one and N - 1 random crops."),
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Tokenizer directory, or another dataset (whose class table is then kept). Default: fit one.")
]
Workers = Annotated[
    int | None, typer.Option(help="Worker processes.", show_default="one per GPU where the tokenizer runs on one, else one per core")
]
MaxBad = Annotated[float, typer.Option(help="Stop when a larger share of the inputs fails for good.")]
RunnerName = Annotated[str, typer.Option("--runner", help="`local`, all cores of this machine, or `ray`, a Ray cluster.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to join, host:port or `auto`.", show_default="$RAY_ADDRESS, a cluster of this machine, or one started for the run"
    ),
]
MaxActors = Annotated[int | None, typer.Option(help="Most tokenizer actors.", show_default="what the cluster can hold, more as it grows")]
CpusPerActor = Annotated[int, typer.Option(help="CPUs of each actor; more than one decode beside the tokenizer.")]
GpusPerActor = Annotated[float, typer.Option(help="GPUs of each actor: a share such as 0.5, or a whole number.")]
DecodePlace = Annotated[
    str, typer.Option(help="Where pictures are decoded: `local`, beside the tokenizer; `remote`, on any CPU; `auto`, as measured.")
]
GiveUpAfter = Annotated[float, typer.Option(help="Stop when nothing moved for so many seconds, because no node came.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")]


def parse_options(pairs: list[str] | None, option: str = "--storage-option", such: str = "endpoint_url=http://host:9000") -> dict[str, Any]:
    from tokenshards.pipeline.errors import ConfigError

    options: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} was given without key=value; expected such as {such}")
        try:
            options[key] = json.loads(value)  # numbers, true and nested options such as client_kwargs={"region_name": "x"}
        except ValueError:
            options[key] = value
    return options


def parse_numbers(option: str, text: str | None, kind: type) -> tuple[Any, ...]:
    from tokenshards.pipeline.errors import ConfigError

    try:
        return () if text is None else tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; expected a number, or several with commas between them") from None
