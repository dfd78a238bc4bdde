"""Options that several commands share, and how to parse them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

__all__ = [
    "Address",
    "AllowPrivateHosts",
    "Beam",
    "Codec",
    "Codes",
    "CpusPerActor",
    "DecodePlace",
    "FitSeed",
    "GiveUpAfter",
    "GpusPerActor",
    "HIDDEN",
    "JsonFlag",
    "Kind",
    "Levels",
    "MaxActors",
    "MaxBad",
    "Out",
    "OutOptions",
    "Patch",
    "QUARANTINE_SHOWN",
    "Quiet",
    "RunnerName",
    "Sample",
    "Seed",
    "ShardRows",
    "Site",
    "Size",
    "Source",
    "SrcOptions",
    "StorageOptions",
    "TokenizerOption",
    "TokenizerOptions",
    "UNREFERENCED_SHOWN",
    "Unreadable",
    "Views",
    "Workers",
    "parse_numbers",
    "parse_options",
    "recorded_source",
    "refused_value",
    "side_options",
    "takes",
]

T = TypeVar("T")

Source = Annotated[str, typer.Argument(help="Images: a folder, tars (globs and {000..123} braces) or tables, local or any fsspec URL.")]
Out = Annotated[str, typer.Argument(help="Dataset root, local or any fsspec URL.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")]
_STORES = "Stores"


def _pairs(option: str, text: str) -> Any:
    return typer.Option(option, help=text, rich_help_panel=_STORES)


StorageOptions = Annotated[
    list[str] | None, _pairs("--storage-option", "key=value for every store of this command (endpoint_url, profile, …); may be repeated.")
]
SrcOptions = Annotated[
    list[str] | None,
    _pairs("--src-option", "key=value for the store of the images only, such as anon=true. AWS profile: $TOKENSHARDS_SRC_PROFILE."),
]
OutOptions = Annotated[
    list[str] | None,
    _pairs("--out-option", "key=value for the store of the output or dataset only. AWS profile: $TOKENSHARDS_OUT_PROFILE."),
]
TokenizerOptions = Annotated[
    list[str] | None,
    _pairs("--tokenizer-option", "key=value for the store of the tokenizer or weights only. AWS profile: $TOKENSHARDS_TOKENIZER_PROFILE."),
]
AllowPrivateHosts = Annotated[
    bool,
    typer.Option(
        "--allow-private-hosts", help="Tables may name hosts whose addresses are not public, such as 10.0.0.7.", rich_help_panel=_STORES
    ),
]
Unreadable = Annotated[
    str | None,
    typer.Option(
        help="Objects that cannot be read while their store answers for others: `stop` leaves their shards open, or `quarantine`.",
        show_default="stop; quarantine for URLs on other hosts",
        rich_help_panel=_STORES,
    ),
]
Size = Annotated[int | None, typer.Option(help="Side of the square image in pixels. Default: largest of 32, 64, 128 that fits.")]
Kind = Annotated[
    str | None,
    typer.Option(
        help="What is fitted without --tokenizer: `patch-kmeans`, which keeps how images look, or `layered-kmeans`, ids for recognition.",
        show_default="patch-kmeans",
    ),
]
Patch = Annotated[int | None, typer.Option(help="Side of a patch of patch-kmeans in pixels.", show_default="4")]
Site = Annotated[int | None, typer.Option(help="Side of a site of layered-kmeans in pixels.", show_default="8")]
Levels = Annotated[int | None, typer.Option(help="Residual levels, one id each per patch or site.", show_default="2; 1 for layered-kmeans")]
Codes = Annotated[int | None, typer.Option(help="Codes per level.", show_default="256")]
Beam = Annotated[
    int | None,
    typer.Option(
        help="Candidate sums of codes that patch-kmeans keeps per patch during encoding; 8 is more exact and slower.", show_default="1"
    ),
]
Sample = Annotated[int, typer.Option(help="Most images to fit on.")]
Seed = Annotated[int, typer.Option(help="Seed of the sample and the fit.")]
FitSeed = Annotated[int | None, typer.Option(help="Seed of the sample and the fit.", show_default="0")]
"""Tells a 0 that was given, and may contradict a plan, from one that was not."""
Codec = Annotated[
    str,
    typer.Option(
        help="How ids are stored: `default` (fast, every Parquet reader), `publish` (smaller), `zstd:N`, or `compact` (smallest: a model "
        "is fitted to your tokens, which pays from about a thousand images on; only tokenshards reads it)."
    ),
]
ShardRows = Annotated[int | None, typer.Option(help="Images per shard.", show_default="10000, fewer for a small data set")]
Views = Annotated[
    str,
    typer.Option(help="Views per image, one row each: `one`, `flip`, `ten-crop`, or a number N for the usual view and N - 1 random crops."),
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Tokenizer directory, or another dataset (whose class table is then kept). Default: fit one.")
]
Workers = Annotated[
    int | None, typer.Option(help="Worker processes.", show_default="one per GPU where the tokenizer runs on one, else one per core")
]
MaxBad = Annotated[float, typer.Option(help="Stop if a larger share of the inputs fails permanently.")]
RunnerName = Annotated[str, typer.Option("--runner", help="`local` for this machine, or `ray` for a Ray cluster.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to join, host:port or `auto`.", show_default="$RAY_ADDRESS, a cluster of this machine, or one started for the run"
    ),
]
MaxActors = Annotated[int | None, typer.Option(help="Most tokenizer actors.", show_default="what the cluster can hold, more as it grows")]
CpusPerActor = Annotated[int, typer.Option(help="CPUs per actor; with more than one, decoding runs beside the tokenizer.")]
GpusPerActor = Annotated[float, typer.Option(help="GPUs per actor: a share such as 0.5, or a whole number.")]
DecodePlace = Annotated[
    str, typer.Option(help="Where to decode images: `local` beside the tokenizer, `remote` on any CPU, `auto` decides by measurement.")
]
GiveUpAfter = Annotated[float, typer.Option(help="Stop after so many seconds in which no actor works, for example because no node joins.")]
QUARANTINE_SHOWN = 100
UNREFERENCED_SHOWN = 20
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors on stderr.")]


def parse_options(pairs: list[str] | None, option: str = "--storage-option", such: str = "endpoint_url=http://host:9000") -> dict[str, Any]:
    """Return `key=value` texts as a dict; a value that is valid JSON is parsed. Raises ConfigError."""
    from tokenshards.pipeline.errors import ConfigError
    from tokenshards.pipeline.storage.side_options import parse_pairs

    for pair in pairs or ():
        if not pair.partition("=")[0] or "=" not in pair:
            raise ConfigError(f"{option} was given without key=value; expected for example {such}")
    return parse_pairs(pairs or ())


def side_options(side: str, url: str | None, common: list[str] | None, own: list[str] | None) -> dict[str, Any]:
    """Return the options of the store at `url` on one side of a command: `src`, `out` or `tokenizer`."""
    from tokenshards.pipeline.storage.side_options import options_of

    return options_of(side, url or "", parse_options(common), parse_options(own, f"--{side}-option"))


def recorded_source(store: Any) -> str:
    """Return the source URL from the plan of a dataset, "" if no plan can be read."""
    from tokenshards.pipeline.errors import TokenshardsError
    from tokenshards.pipeline.planning.plan import load_plan

    try:
        plan = load_plan(store)
    except TokenshardsError:  # the command itself will report the error
        return ""
    return "" if plan is None else str(plan.source["url"])


def parse_numbers(option: str, text: str | None, kind: type) -> tuple[Any, ...]:
    """Return the comma-separated numbers of an option, () if it was not given. Raises ConfigError."""
    from tokenshards.pipeline.errors import ConfigError

    try:
        return () if text is None else tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; expected a number, or several with commas between them") from None


def refused_value(error: typer.BadParameter) -> Exception:
    """Return the error of a value that is not of its option's type, in our words. Those of pydantic, which typer uses, lack the value."""
    from tokenshards.pipeline.errors import ConfigError, shorten

    cause: Any = error.__cause__
    if error.param is None or not hasattr(cause, "errors"):
        return error
    found = cause.errors()[0]
    expected = {"int": "a whole number", "float": "a number"}.get(found["type"].partition("_")[0])
    name = error.param.opts[-1]
    return error if expected is None else ConfigError(f"{name} is {shorten(found['input'])}; expected {expected}")


HIDDEN = "hidden"
"""Attribute of a dataclass of options: the names of inherited fields that are no options of its command."""


def takes(options: Callable[..., T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Give a command the fields of the dataclass `options` as its parameters, in their order. The command gets one `options`.

    A class attribute `hidden` names fields that are no options.
    """

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(options(**values))

        hints = get_type_hints(options, include_extras=True)
        shown = [field for field in fields(options) if field.name not in getattr(options, HIDDEN, ())]  # type: ignore[arg-type]
        defaults = {field.name: Parameter.empty if field.default is MISSING else field.default for field in shown}
        parameters = [Parameter(name, Parameter.KEYWORD_ONLY, default=value, annotation=hints[name]) for name, value in defaults.items()]
        run.__doc__, run.__annotations__ = command.__doc__, {name: hints[name] for name in defaults}
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate
