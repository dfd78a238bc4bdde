"""Configuration of tokenizers: how the default is fitted, how networks are fitted, how published ones are imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from tokenshards.pipeline.errors import require
from tokenshards.pipeline.shards.spec import Filter, Resize

__all__ = [
    "DTYPES",
    "FSQ_LEVELS",
    "FitConfig",
    "GPU_ROWS",
    "ImportConfig",
    "LatentFitConfig",
    "LayeredFitConfig",
    "OwnFitConfig",
    "QUANTIZERS",
    "VqFitConfig",
]

GPU_ROWS = "TOKENSHARDS_GPU_ROWS"
"""Variable with the rows that go through a network at once on a GPU, until its memory is too small for them; without it 64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How the default tokenizer is fitted."""

    size: int | None = None
    """Side in pixels; None takes the largest of 32, 64, 128 not above the median short side of the sample."""
    patch: int = 4
    levels: int = 2
    codes: int = 256
    beam: int = 1
    """Candidate sums kept per patch from level to level during encoding; 1 takes the nearest code of each level."""
    sample: int = 20_000
    """Most images to fit to."""
    seed: int = 0
    iterations: int = 12
    max_patches: int = 100_000

    def __post_init__(self) -> None:
        require(1 <= self.patch <= 64, "--patch", self.patch, "1 to 64 pixels")
        if self.size is not None:
            ok = 8 <= self.size <= 4096 and self.size % self.patch == 0
            require(ok, "--size", self.size, f"8 to 4096 pixels, a multiple of --patch {self.patch}")
        require(1 <= self.levels <= 8, "--levels", self.levels, "1 to 8")
        require(2 <= self.codes <= 65_536, "--codes", self.codes, "2 to 65536")
        require(1 <= self.beam <= 64, "--beam", self.beam, "1 to 64")
        require(self.sample >= 1, "--sample", self.sample, "at least 1 image")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayeredFitConfig:
    """How two layers of k-means are fitted."""

    size: int | None = None
    """Side in pixels; None as in FitConfig, at least 64."""
    site: int = 8
    """Side in pixels that an id stands for; it sees twice that."""
    levels: int = 1
    codes: int = 256
    sample: int = 20_000
    """Most images to fit to."""
    seed: int = 0
    iterations: int = 12
    max_patches: int = 100_000
    """Patches that the first layer is fitted to, and sites that the codes are fitted to."""

    def __post_init__(self) -> None:
        require(self.site in (8, 16, 32), "--site", self.site, "8, 16 or 32 pixels")
        if self.size is not None:
            ok = 2 * self.site <= self.size <= 1024 and self.size % self.site == 0
            require(ok, "--size", self.size, f"{2 * self.site} to 1024 pixels, a multiple of --site {self.site}")
        require(1 <= self.levels <= 8, "--levels", self.levels, "1 to 8")
        require(2 <= self.codes <= 65_536, "--codes", self.codes, "2 to 65536")
        require(self.sample >= 1, "--sample", self.sample, "at least 1 image")


OwnFitConfig = FitConfig | LayeredFitConfig
"""How a tokenizer is fitted where `tokenize` gets none. These fits need nothing but images and numpy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentFitConfig:
    """How codes are fitted to the latents of a published encoder."""

    size: int = 256
    """Side in pixels, a multiple of 8."""
    levels: int = 1
    codes: int = 1024
    mirrored: bool = False
    """Also fit to each image mirrored, which gives twice as many latents."""
    sample: int = 20_000
    """Most images to fit to."""
    seed: int = 0
    iterations: int = 12
    max_latents: int = 600_000

    def __post_init__(self) -> None:
        require(8 <= self.size <= 4096 and self.size % 8 == 0, "--size", self.size, "8 to 4096 pixels, a multiple of 8")
        require(1 <= self.levels <= 8, "--levels", self.levels, "1 to 8")
        require(2 <= self.codes <= 65_536, "--codes", self.codes, "2 to 65536")
        require(self.sample >= 1, "--sample", self.sample, "at least 1 image")


FSQ_LEVELS = {256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5), 65536: (8, 8, 8, 5, 5, 5)}
"""Levels of each dimension for about so many codes (Mentzer et al. 2023, arXiv 2309.15505, table 1)."""


QUANTIZERS = ("vq", "fsq", "lfq")


@dataclass(frozen=True, kw_only=True, slots=True)
class VqFitConfig:
    """How a small autoencoder with codes is trained."""

    size: int | None = None
    """Side in pixels; None takes the largest of 32, 64, 128 not above the median short side of the sample."""
    patch: int = 4
    """Side of a site in pixels."""
    quantizer: str = "vq"
    """`vq`: code tables updated by moving averages, residual if there are several levels; `fsq`, `lfq`: rounding, no tables to learn."""
    levels: int = 2
    codes: int = 256
    code_width: int | None = None
    """Values per code of `vq`; None takes 16, or the number of values in a patch if that is smaller."""
    width: int = 64
    """Channels of the networks."""
    depth: int = 2
    """Blocks of two convolutions in each network."""
    epochs: int = 8
    batch: int = 32
    learning_rate: float = 1e-3
    decay: float = 0.95
    """Decay of the moving averages of `vq` per step."""
    commitment: float = 1.0
    """Weight of the term that pulls vectors to their codes; the squared error of pixels from -1 to 1 has weight 1."""
    perceptual: str | None = None
    """timm model for a perceptual loss: its features of input and output should agree."""
    perceptual_weight: float = 0.1
    sample: int = 20_000
    """Most images to train on."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(1 <= self.patch <= 32, "--patch", self.patch, "1 to 32 pixels")
        if self.size is not None:
            ok = 8 <= self.size <= 1024 and self.size % self.patch == 0
            require(ok, "--size", self.size, f"8 to 1024 pixels, a multiple of --patch {self.patch}")
        require(self.quantizer in QUANTIZERS, "--quantizer", self.quantizer, " or ".join(QUANTIZERS))
        most = 8 if self.quantizer == "vq" else 1
        require(1 <= self.levels <= most, "--levels", self.levels, f"1 to {most} for --quantizer {self.quantizer}")
        if self.quantizer == "fsq":
            require(self.codes in FSQ_LEVELS, "--codes", self.codes, f"one of {', '.join(map(str, FSQ_LEVELS))} for --quantizer fsq")
        elif self.quantizer == "lfq":
            ok = 2 <= self.codes <= 65_536 and self.codes.bit_count() == 1
            require(ok, "--codes", self.codes, "a power of 2 up to 65536 for --quantizer lfq")
        else:
            require(2 <= self.codes <= 65_536, "--codes", self.codes, "2 to 65536")
        pixels = 3 * self.patch**2
        ok = self.code_width is None or (self.quantizer == "vq" and 1 <= self.code_width <= pixels)
        require(ok, "--code-width", self.code_width, f"1 to {pixels}, the values of a patch, and --quantizer vq")
        require(8 <= self.width <= 2048, "--width", self.width, "8 to 2048 channels")
        require(0 <= self.depth <= 32, "--depth", self.depth, "0 to 32 blocks")
        require(1 <= self.epochs <= 10_000, "--epochs", self.epochs, "1 to 10000")
        require(1 <= self.batch <= 4096, "--batch", self.batch, "1 to 4096")
        require(0 < self.learning_rate <= 1, "--learning-rate", self.learning_rate, "above 0, up to 1")
        require(0 <= self.decay < 1, "decay", self.decay, "0 up to 1")
        require(self.commitment >= 0, "commitment", self.commitment, "0 or more")
        require(self.perceptual_weight >= 0, "--perceptual-weight", self.perceptual_weight, "0 or more")
        require(self.sample >= 1, "--sample", self.sample, "at least 1 image")

    @property
    def vq_width(self) -> int:
        """Values per code of `vq`, with the default filled in."""
        return self.code_width or min(16, 3 * self.patch**2)


DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """How a published tokenizer is imported; None keeps the setting of the project that published it."""

    resize: Resize | None = None
    filter: Filter | None = None
    dtype: str = "float32"
    """Type of the matrix products in its networks; the search for codes always uses float32."""
    decoder: bool = True
    """Keep the decoder, which is about half of the weights."""
    size: int | None = None
    """Side in pixels, for networks that take any side."""
    preset: str | None = None
    """Whose preprocessing and settings to use, for networks that several projects publish."""
    ema: bool = True
    """Take the moving averages of the parameters if the checkpoint has them."""
    max_tokens: int | None = None
    """Keep only the first so many ids of an image, for networks whose ids go from coarse to fine."""
    decoder_file: str | None = None
    """Path or URL of the decoder, for networks that are published as two files."""
    vocabulary: tuple[int, ...] = ()
    """Number of ids of each level, for files that do not record it."""
    colour_range: tuple[float, ...] = ()
    """The values that pixels 0 and 255 become, for files that do not record them."""
    target: str = ""
    """`package.module:callable` of a tokenizer that the user wrote."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings passed to that callable, in plain JSON types."""

    def __post_init__(self) -> None:
        require(self.resize in (None, *get_args(Resize)), "--resize", self.resize, " or ".join(get_args(Resize)))
        require(self.filter in (None, *get_args(Filter)), "--filter", self.filter, f"one of {', '.join(get_args(Filter))}")
        require(self.size is None or 8 <= self.size <= 4096, "--size", self.size, "8 to 4096 pixels")
        require(self.max_tokens is None or self.max_tokens >= 1, "--max-tokens", self.max_tokens, "at least 1")
        require(self.dtype in DTYPES, "--dtype", self.dtype, " or ".join(DTYPES))
        sizes = self.vocabulary
        require(all(1 <= size <= 1 << 32 for size in sizes), "--vocabulary", sizes, "a number from 1 to 2**32, or several with commas")
        low_high = self.colour_range
        require(not low_high or (len(low_high) == 2 and low_high[0] < low_high[1]), "--colour-range", low_high, "such as 0,1 or -1,1")
