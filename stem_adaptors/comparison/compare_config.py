"""What `compare` compares, and the description of one side."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.pipeline.errors import ConfigError, require
from tokenshards.pipeline.tokenizers.pixels.small_file import FORMATS

__all__ = ["BASELINES", "MOST_PIXEL_SIDE", "PIXELS", "CompareRequest", "ImageSources", "Side"]

PIXELS = "pixels"
BASELINES = (*FORMATS, PIXELS)
MOST_PIXEL_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class ImageSources:
    """Labelled images to learn from and to measure on, and where what is made of them is kept."""

    images_url: str
    images: SourceConfig = field(repr=False)
    val_url: str
    val: SourceConfig = field(repr=False)
    val_option: str = "--val"
    """The option that gives `val_url`, for messages."""
    out_url: str
    run: RunConfig


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """All settings of a comparison."""

    tokenizers: tuple[str, ...]
    """Directories of tokenizers, datasets, or kinds to fit such as `layered-kmeans:site=16,codes=512`."""
    images_url: str
    images: SourceConfig = field(repr=False)
    val_url: str
    val: SourceConfig = field(repr=False)
    out_url: str
    out_options: dict[str, Any] = field(default_factory=dict, repr=False)
    tokenizer_options: dict[str, Any] = field(default_factory=dict, repr=False)
    minutes: float = 1.0
    """Of each training; 0 for none."""
    seeds: int = 3
    against: tuple[str, ...] = BASELINES
    stored_images: int = 100_000
    """Images that share the bytes of a tokenizer's tables and of a model of the codec compact."""
    sample: int = 20_000
    """Most images that a kind is fitted to."""
    device: str = "cpu"
    run: RunConfig

    def __post_init__(self) -> None:
        require(len(self.tokenizers) > 0, "TOK", "missing", "a tokenizer, a dataset, or a kind such as patch-kmeans")
        twice = sorted({name for name in self.tokenizers if self.tokenizers.count(name) > 1})
        if twice:
            raise ConfigError(f"{twice[0]} is given twice; expected each tokenizer once. Leave one out")
        require(0 <= self.minutes < math.inf, "--minutes", self.minutes, "0 or more")
        require(1 <= self.seeds <= 100, "--seeds", self.seeds, "1 to 100")
        require(self.stored_images >= 1, "--stored-images", self.stored_images, "at least 1")
        require(self.sample >= 1, "--sample", self.sample, "at least 1 image")
        require(self.device.partition(":")[0] in ("cpu", "cuda"), "--device", self.device, "cpu, cuda, or cuda:NUMBER")
        for name in self.against:
            require(name in BASELINES, "--against", name, f"some of {', '.join(BASELINES)}, or none")

    @property
    def sources(self) -> ImageSources:
        """Both sources."""
        return ImageSources(
            images_url=self.images_url, images=self.images, val_url=self.val_url, val=self.val, out_url=self.out_url, run=self.run
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One side of the comparison, whose tokens lie in `place`/train and `place`/val of the comparison's store."""

    name: str
    kind: str
    """`tokens`, `jpeg`, `webp` or `pixels`."""
    place: str
    data: str = ""
    """Digest of both datasets."""
    size: int = 0
    """Side of the images in pixels."""
    stored_bytes: float | None = None
    """Of an image; of tokens with the codec compact, with a share of tables and model. None for pixels."""
    budget: float | None = None
    """Bytes that the settings of a file were chosen for."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Everything else that was measured, in plain JSON types."""
    absent: str = ""
    """Why the side could not be made; empty where it was."""

    def to_json(self) -> dict[str, Any]:
        """Return the side as values that JSON can hold."""
        return asdict(self)
