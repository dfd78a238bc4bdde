"""The options that say what the input is and how it is read: one table for every command that reads images."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from tokenshards.pipeline.commands.mask_options import MASKING, MaskBits, MaskColumn, MaskIgnore, MaskMap, Masks, MaskSuffix
from tokenshards.pipeline.commands.options import AllowPrivateHosts, SrcOptions, Unreadable, side_options

if TYPE_CHECKING:
    from tokenshards.pipeline.config import SourceConfig

__all__ = ["ACCESS", "IMAGES", "LABELLING", "SourceOptions", "Splits", "takes_source"]

_INPUT, _LABELS, _IMAGES, _URLS = "Input", "Labels and metadata", "Images", "URLs in tables"

AllFiles = Annotated[
    bool, typer.Option("--all-files", help="Take every file, not only those with an image extension.", rich_help_panel=_INPUT)
]
Split = Annotated[
    str | None,
    typer.Option(help="Take one split, such as `train`, as folders or file names say; `all` mixes all splits.", rich_help_panel=_INPUT),
]
Splits = Annotated[
    bool,
    typer.Option(
        "--splits",
        help="Make one dataset per split, OUT/train, OUT/val, …, with one tokenizer, fitted on train, and one class table.",
        rich_help_panel=_INPUT,
    ),
]
ImageColumn = Annotated[
    str | None, typer.Option(help="Table column with image bytes or URIs. Default: chosen by name.", rich_help_panel=_INPUT)
]
IdColumn = Annotated[
    str | None, typer.Option(help="Table column whose values become sample ids. Default: path#row.", rich_help_panel=_INPUT)
]
ImageRoot = Annotated[
    str | None,
    typer.Option(help="Folder or URL that paths in a table start from.", show_default="the table's own folder", rich_help_panel=_INPUT),
]
PathTemplate = Annotated[
    str | None,
    typer.Option(help="Path of an image, made from table columns: such as 'train/{id}.jpg'.", rich_help_panel=_INPUT),
]
TarKey = Annotated[
    str,
    typer.Option(
        "--key",
        help="Where the key of a tar member ends: `first-dot` (webdataset's rule), `last-dot`, or `auto`, which finds the one that loses "
        "no image.",
        rich_help_panel=_INPUT,
    ),
]
ImageMember = Annotated[
    str | None,
    typer.Option(
        help="Suffix of the image to take where a tar's samples hold several, such as `left.jpg`, or several, the first that is there: "
        "`jpg,png`; `all` makes a row of each. Also the suffix of images without a usual extension.",
        rich_help_panel=_INPUT,
    ),
]
TarsPerShard = Annotated[int, typer.Option(help="Tars per shard.", rich_help_panel=_INPUT)]
Yes = Annotated[
    bool,
    typer.Option("--yes", help="Go on in spite of doubts about the input: it is taken as it was understood.", rich_help_panel=_INPUT),
]
LabelName = Annotated[
    str | None,
    typer.Option(
        "--label",
        help="Table column with the label; for tars a key of .json or a text member such as `txt`.",
        rich_help_panel=_LABELS,
    ),
]
LabelFrom = Annotated[
    str | None,
    typer.Option(
        help="Label of a path: `first`, `parent`, `depth:N`, `tar` (its name), `none`, `regex:PATTERN` (group `label`, else the first), or "
        "`file:TABLE` (a table joined by name).",
        show_default="first folder",
        rich_help_panel=_LABELS,
    ),
]
KeyColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the `file:TABLE` that names the image.", show_default="chosen by name and values", rich_help_panel=_LABELS
    ),
]
LabelFirst = Annotated[bool, typer.Option("--label-first", help="Take the first of several labels of an image.", rich_help_panel=_LABELS)]
AsText = Annotated[
    bool,
    typer.Option(
        "--as-text", help="Store labels and metadata as text, even if those seen at planning are numbers.", rich_help_panel=_LABELS
    ),
]
NoLabels = Annotated[bool, typer.Option("--no-labels", help="Take no labels, even if the source holds some.", rich_help_panel=_LABELS)]
Meta = Annotated[
    list[str] | None,
    typer.Option(
        "--meta",
        help="Table column, key of .json, or text member such as `txt`, to keep as meta.NAME; may be repeated.",
        rich_help_panel=_LABELS,
    ),
]
MaxPixels = Annotated[int, typer.Option(help="Quarantine images with more pixels.", rich_help_panel=_IMAGES)]
AcceptTruncated = Annotated[
    bool,
    typer.Option(
        "--accept-truncated", help="Take images that end too early, as far as they decode; they are counted.", rich_help_panel=_IMAGES
    ),
]
SixteenBit = Annotated[
    str,
    typer.Option(
        help="16-bit images: `scale` the range that a file uses to 8 bits, keep the `high-byte`, or `auto` decides by a sample.",
        rich_help_panel=_IMAGES,
    ),
]
UrlAttempts = Annotated[int, typer.Option(help="Attempts per URL before it is quarantined.", rich_help_panel=_URLS)]
UrlTimeout = Annotated[float, typer.Option(help="Longest silence of a host in seconds.", rich_help_panel=_URLS)]
UrlTime = Annotated[float, typer.Option(help="Longest time for one URL in seconds.", rich_help_panel=_URLS)]
UrlConcurrency = Annotated[int, typer.Option(help="Most requests to one host at a time, per process.", rich_help_panel=_URLS)]


LABELLING = (
    "id_column",
    "label",
    "label_from",
    "key_column",
    "label_first",
    "as_text",
    "no_labels",
    "meta",
    "tars_per_shard",
    "yes",
    "unreadable",
    *MASKING,
)
"""Options that a tokenizer's fit or evaluation has no use for: it looks at images alone."""
IMAGES = ("max_pixels", "accept_truncated", "sixteen_bit")
"""Options of decoding images."""
ACCESS = ("url_attempts", "url_timeout", "url_time", "url_concurrency", "src_option", "allow_private_hosts", "unreadable")
"""Options of reading inputs that a plan has chosen."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The options of a command that reads images: its fields are the table."""

    all_files: AllFiles = False
    split: Split = None
    image_column: ImageColumn = None
    id_column: IdColumn = None
    image_root: ImageRoot = None
    path_template: PathTemplate = None
    key: TarKey = "auto"
    image_member: ImageMember = None
    tars_per_shard: TarsPerShard = 1
    yes: Yes = False
    label: LabelName = None
    label_from: LabelFrom = None
    key_column: KeyColumn = None
    label_first: LabelFirst = False
    as_text: AsText = False
    no_labels: NoLabels = False
    meta: Meta = None
    max_pixels: MaxPixels = 1 << 27
    accept_truncated: AcceptTruncated = False
    sixteen_bit: SixteenBit = "auto"
    masks: Masks = None
    mask_column: MaskColumn = None
    mask_suffix: MaskSuffix = ""
    mask_ignore: MaskIgnore = None
    mask_map: MaskMap = None
    mask_bits: MaskBits = None
    url_attempts: UrlAttempts = 3
    url_timeout: UrlTimeout = 30.0
    url_time: UrlTime = 120.0
    url_concurrency: UrlConcurrency = 8
    src_option: SrcOptions = None
    allow_private_hosts: AllowPrivateHosts = False
    unreadable: Unreadable = None

    def config(self, where: str | None, storage_option: list[str] | None) -> SourceConfig:
        """Return the config of the source at `where`. Raises ConfigError for an invalid value, before any listing."""
        from tokenshards.pipeline.config import ImageRules, SourceConfig, UrlLimits
        from tokenshards.pipeline.mask_rules import MaskRules, parse_values
        from tokenshards.pipeline.sources.labels.rule import LabelRule

        LabelRule.parse(self.label_from)
        ignored, mapped = parse_values(self.mask_ignore, self.mask_map)
        return SourceConfig(
            all_files=self.all_files,
            split=self.split,
            image_column=self.image_column,
            id_column=self.id_column,
            image_root=self.image_root,
            path_template=self.path_template,
            tar_key=self.key,
            image_member=self.image_member,
            tars_per_shard=self.tars_per_shard,
            yes=self.yes,
            label=self.label,
            label_from=self.label_from,
            key_column=self.key_column,
            label_first=self.label_first,
            as_text=self.as_text,
            no_labels=self.no_labels,
            meta=tuple(self.meta or ()),
            image_rules=ImageRules(max_pixels=self.max_pixels, accept_truncated=self.accept_truncated, sixteen_bit=self.sixteen_bit),
            masks=self.masks,
            mask_rules=MaskRules(
                mask_column=self.mask_column,
                mask_suffix=self.mask_suffix,
                mask_ignore=ignored,
                mask_map=mapped,
                mask_bits=self.mask_bits,
            ),
            urls=UrlLimits(
                attempts=self.url_attempts,
                timeout_seconds=self.url_timeout,
                total_seconds=self.url_time,
                per_host=self.url_concurrency,
            ),
            storage_options=side_options("src", where, storage_option, self.src_option),
            allow_private_hosts=self.allow_private_hosts,
            unreadable=self.unreadable,
        )


_HINTS = get_type_hints(SourceOptions, include_extras=True)
_TABLE = {
    part.name: Parameter(part.name, Parameter.POSITIONAL_OR_KEYWORD, default=part.default, annotation=_HINTS[part.name])
    for part in fields(SourceOptions)
}


def takes_source(*, only: Collection[str] = (), without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of the table in place of its parameter `reading`: a function that returns the SourceConfig for a URL.

    The command has the option `storage_option` itself, because it applies to its other stores too.
    """
    names = [name for name in _TABLE if name in (only or _TABLE) and name not in without]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in names}
            command(**given, reading=_reading(values, given["storage_option"]))

        signature = inspect.signature(command, eval_str=True)
        parameters: list[Parameter] = []
        for parameter in signature.parameters.values():
            parameters += [_TABLE[name] for name in names] if parameter.name == "reading" else [parameter]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer makes the options from it
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _reading(values: Mapping[str, Any], storage_option: list[str] | None) -> Callable[[str | None], SourceConfig]:
    options = SourceOptions(**values)
    return lambda where: options.config(where, storage_option)
