"""The options that say where the masks of images are and what their values mean."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["MASKING", "MaskBits", "MaskColumn", "MaskIgnore", "MaskMap", "MaskSuffix", "Masks"]

MASKING = ("masks", "mask_column", "mask_suffix", "mask_ignore", "mask_map", "mask_bits")
"""Names of the options."""
_MASKS = "Masks"

Masks = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Masks of class numbers, each with the path of its image in FOLDER: a/b.png for a/b.jpg.",
        rich_help_panel=_MASKS,
    ),
]
MaskColumn = Annotated[
    str | None,
    typer.Option(help="Table column with masks; of a tar the suffix of the member, such as `seg.png`.", rich_help_panel=_MASKS),
]
MaskSuffix = Annotated[
    str, typer.Option(help="What names of masks have behind the name of the image, such as `_mask`.", rich_help_panel=_MASKS)
]
MaskIgnore = Annotated[
    list[str] | None,
    typer.Option(help="Values of pixels without a class, beside 255; with commas, or repeated.", rich_help_panel=_MASKS),
]
MaskMap = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OLD=NEW", help="Store a value as another class number, such as 255=1; with commas, or repeated.", rich_help_panel=_MASKS
    ),
]
MaskBits = Annotated[
    int | None, typer.Option(help="Bits of a stored class number, 8 or 16.", show_default="as a sample needs", rich_help_panel=_MASKS)
]
