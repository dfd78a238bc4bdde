"""The options of commands that measure tokens beside the images that they were made from: `curve`, `continual`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tokenshards.pipeline.commands.source_options import SourceOptions
    from tokenshards.pipeline.config import RunConfig
    from tokenshards.stem_adaptors.comparison.compare_config import ImageSources

__all__ = ["Images", "ValImages", "image_sources"]

Images = Annotated[
    str | None, typer.Option("--images", help="The images that DATA was made from, for two sides of images: original files, small JPEGs.")
]
ValImages = Annotated[str | None, typer.Option(help="The images that the dataset of --val was made from.")]


def image_sources(options: SourceOptions, images: str | None, val_images: str | None, out: str, run: RunConfig) -> ImageSources | None:
    """Return both sources, None where neither is given. Raises ConfigError where one is missing, and for options that do not fit."""
    from tokenshards.pipeline.errors import ConfigError
    from tokenshards.stem_adaptors.comparison.compare_config import ImageSources

    if images is None and val_images is None:
        return None
    if images is None or val_images is None:
        given, missing = ("--val-images", "--images") if images is None else ("--images", "--val-images")
        raise ConfigError(f"{given} was given without {missing}; expected both, or neither for tokens alone")
    pairs: list[str] | None = getattr(options, "storage_option", None)
    return ImageSources(
        images_url=images,
        images=options.config(images, pairs),
        val_url=val_images,
        val=options.config(val_images, pairs),
        val_option="--val-images",
        out_url=out,
        run=run,
    )
