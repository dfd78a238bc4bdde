"""The interface of every tokenizer: pixels in, ids of shape (L sites, Q ids per site) out, and a spec that defines the ids.

Shapes: B images, H height, W width, C = 3 channels, L sites, Q ids per site, K codes of a level, D width of a code vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.codebook import Tables, codebook_sha256
from tokenshards.pipeline.shards.spec import CodebookInfo, Combine, Filter, Layout, Preprocess, Resize, TokenizerSpec
from tokenshards.pipeline.tokenizers.config import ImportConfig

__all__ = [
    "CodebookInfo",
    "DecodeNotSupported",
    "Images",
    "Layout",
    "SLOTS",
    "OverlappedTokenizer",
    "Preprocess",
    "PublishedTokenizer",
    "Tables",
    "TellingTokenizer",
    "Tokenizer",
    "TokenizerSpec",
    "WeightedTokenizer",
    "check_ids",
    "check_images",
    "codebook_sha256",
    "describe_tokenizer",
    "published_preprocess",
    "square_layout",
]

Images: TypeAlias = npt.NDArray[np.uint8]

SLOTS = 8
"""Rows that always go through a network at once on a CPU. On a GPU the number of rows is a multiple of this."""


class DecodeNotSupported(TokenizerError):
    """This tokenizer has no way back from ids to pixels."""


class Tokenizer(Protocol):
    """A discrete tokenizer, as its author writes it. `encode` must give equal ids for equal batches, and no image may change the ids of
    another image. `ImageTokenizer` stands around it for users.

    >>> plain: tokenshards.Tokenizer = tokenshards.load_tokenizer("photos.tokens").tokenizer
    >>> plain.encode(np.zeros((2, 64, 64, 3), np.uint8)).ids_BLQ.shape
    (2, 256, 2)
    """

    @property
    def spec(self) -> TokenizerSpec:
        """Everything that decides what an id means."""

    def encode(self, images_BHWC: Images) -> TokenBatch:
        """Return ids [B, L, Q] in `spec.id_dtype` for uint8 RGB images that were prepared by `spec.preprocess`."""

    def decode(self, tokens: TokenBatch) -> Images:
        """Return uint8 RGB images [B, H, W, C]; raises DecodeNotSupported where there is no decoder."""

    def codebook(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the code vectors [K, D] of each level as `level_0`, `level_1`, …; {} when ids have no vectors."""

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build the tokenizer from the content of a tokenizer directory, codebook and weights; TokenizerError where the two do not fit."""


@runtime_checkable
class WeightedTokenizer(Tokenizer, Protocol):
    """A tokenizer with networks, whose parameters are kept beside its codebook."""

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the parameters by name; `spec.weights_sha256` is their digest."""


@runtime_checkable
class PublishedTokenizer(WeightedTokenizer, Protocol):
    """A tokenizer that another project trained and published."""

    @classmethod
    def read_checkpoint(cls, url: str, config: ImportConfig, storage_options: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Read the checkpoint at any path or URL, in the form for `from_checkpoint`. MissingObjectError where there is none."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any], config: ImportConfig, *, decoder: str, where: str) -> Self:
        """Build the tokenizer from the tensors of a checkpoint under their published names. `decoder` names the library that decodes
        images.

        Raises TokenizerError that names a key which is missing, has another shape, or is of no use here; `where` names the checkpoint.
        """

    def keep(self, codes: Sequence[int]) -> Self:
        """Return a tokenizer with these codes alone, renumbered from 0 in this order. TokenizerError where ids have no vectors."""


@runtime_checkable
class TellingTokenizer(Tokenizer, Protocol):
    """A tokenizer that collects notes about its device."""

    def take_notes(self) -> list[str]:
        """Return notes for the user since the last call, such as that memory was short; one sentence each."""


@runtime_checkable
class OverlappedTokenizer(Tokenizer, Protocol):
    """A tokenizer on a device. The next batch is copied there, and its work queued, while the batch before it is still encoded."""

    def begin(self, images_BHWC: Images) -> Callable[[], tuple[TokenBatch, float]]:
        """Start a batch. The function returned waits for the ids, which equal those of `encode`, and for the seconds of device work.

        Called by one thread at a time, while other threads may wait. The pixels must not change until the ids are there. At most two
        batches of each shard in flight are begun and not finished.
        """


def check_images(images_BHWC: Images, spec: TokenizerSpec) -> None:
    """Raise TokenizerError unless the batch is uint8 [B, size, size, 3] for the spec's size."""
    size = spec.preprocess.size
    if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != (size, size, 3):
        raise TokenizerError(
            f"{spec.family}: got images of {images_BHWC.dtype} {images_BHWC.shape}; expected uint8 [B, {size}, {size}, 3]. "
            "Decode them with the preprocessing of the tokenizer's spec"
        )


def check_ids(ids_BLQ: npt.NDArray[np.unsignedinteger[Any]], spec: TokenizerSpec) -> None:
    """Raise TokenizerError unless ids [B, L, Q] fit the layout and the vocabulary of the spec."""
    layout = spec.layout
    fewer = layout.variable or layout.prefix_decodable
    sites_ok = ids_BLQ.ndim == 3 and (ids_BLQ.shape[1] <= layout.sites if fewer else ids_BLQ.shape[1] == layout.sites)
    if not sites_ok or ids_BLQ.shape[2] != layout.ids_per_site:
        raise TokenizerError(f"{spec.family}: got ids of shape {ids_BLQ.shape}; expected [B, {layout.sites}, {layout.ids_per_site}]")
    for q, vocabulary in enumerate(spec.vocabulary):
        highest = int(ids_BLQ[:, :, q].max(initial=0))
        if highest >= vocabulary:
            raise TokenizerError(f"{spec.family}: id {highest} at level {q}; expected 0 to {vocabulary - 1}. Was another tokenizer used?")


def describe_tokenizer(tokenizer: Tokenizer) -> str:
    """Return one line: family, grid, levels, vocabulary, fingerprint."""
    spec = tokenizer.spec
    shape = "×".join(map(str, spec.layout.grid)) or f"{spec.layout.sites} sites"
    vocabulary = " + ".join(f"{size:,}" for size in spec.vocabulary)
    return f"{spec.family}, {spec.preprocess.size} px, {shape} {spec.layout.kind}, {vocabulary} codes, fingerprint {spec.fingerprint[:12]}"


def square_layout(size: int, stride: int, ids_per_site: int, combine: Literal["sum", "concat"], where: str) -> Layout:
    """Return the grid of a square image of `size` pixels with a site every `stride` pixels; TokenizerError where the sites do not fit."""
    side = size // stride
    if side * stride != size:
        raise TokenizerError(f"{where}: size {size}; expected a multiple of {stride} pixels")
    together: Combine = combine if ids_per_site > 1 else "single"
    return Layout(kind="grid", grid=(side, side), sites=side * side, ids_per_site=ids_per_site, combine=together)


def published_preprocess(
    config: ImportConfig, *, size: int, resize: Resize, filter: Filter, short_side: int | None = None, **fixed: Any
) -> Preprocess:
    """Return the preprocessing of a published tokenizer with the user's changes. JPEGs are decoded in full size.

    `crop` works as in torchvision: scale the short side to `short_side`, or else to `size`, and cut out the middle.
    """
    how = config.resize or resize
    resized = (short_side or size) if how == "crop" else None
    return Preprocess(resize=how, filter=config.filter or filter, decode_mode="full", size=size, short_side=resized, **fixed)
