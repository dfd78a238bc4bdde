"""Tokenizers of foreign code. The code is probed once, on synthetic images, and every later batch must keep to what the probe saw.

Shapes: B images, L sites, Q ids per site, h and w sides of a grid, K codes, D values of a code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import (
    CodebookInfo,
    Images,
    Layout,
    Tables,
    TokenizerSpec,
    check_ids,
    check_images,
    codebook_sha256,
)

__all__ = ["Ids", "ProbedTokenizer", "probe_encoder"]

Ids = npt.NDArray[Any]


class ProbedTokenizer(ABC):
    """A tokenizer of foreign code. `arrays` hold the files of the code, as uint8 [N], and the code vectors of each level, if any.

    `ids_shape` in the config of the spec is the shape of the ids of one image, as `probe_encoder` saw it. `where` names the code in errors.
    """

    family: ClassVar[str]
    FILES: ClassVar[tuple[str, ...]]
    """Names of the files among the arrays."""

    def __init__(self, spec: TokenizerSpec, arrays: Tables, where: str) -> None:
        self._spec, self._where = spec, where
        self._files = {name: array for name, array in arrays.items() if name in self.FILES}
        self._tables = {name: array for name, array in arrays.items() if name not in self.FILES}

    @classmethod
    def probed_spec(cls, files: Tables, tables: Tables, metric: Any = "l2", **rest: Any) -> TokenizerSpec:
        """Return the spec of these files and code vectors; `rest` are layout, vocabulary, preprocess, config and dtype."""
        dims = tuple(int(table.shape[1]) for table in tables.values())
        return TokenizerSpec(
            family=cls.family,
            codebook=CodebookInfo(sha256=codebook_sha256(tables), dims=dims, metric=metric) if tables else None,
            weights_sha256=codebook_sha256(files) if files else "",
            **rest,
        )

    @abstractmethod
    def run_encoder(self, images_BHWC: Images) -> Ids:
        """Return the ids that the code gives for images."""

    @abstractmethod
    def run_decoder(self, ids: Ids) -> Images:
        """Return uint8 images [B, size, size, 3] of ids in the shape that `run_encoder` gives; DecodeNotSupported without a decoder."""

    @property
    def spec(self) -> TokenizerSpec:
        """Everything that decides what an id means."""
        return self._spec

    def codebook(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the vectors [K, D] of each level that were known at import, or {}."""
        return self._tables

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the bytes of the files."""
        return self._files

    def encode(self, images_BHWC: Images) -> TokenBatch:
        """Return ids [B, L, Q] of uint8 RGB images. TokenizerError where the ids have another shape than at import, or are out of range."""
        spec = self._spec
        check_images(images_BHWC, spec)
        ids = self.run_encoder(images_BHWC)
        ids_BLQ = _checked(ids, len(images_BHWC), spec.config["ids_shape"], spec.vocabulary, self._where)
        return TokenBatch(ids_BLQ.astype(spec.id_dtype))

    def decode(self, tokens: TokenBatch) -> Images:
        """Return uint8 images [B, size, size, 3]; raises DecodeNotSupported where there is no decoder."""
        check_ids(tokens.ids_BLQ, self._spec)
        return self.run_decoder(tokens.ids_BLQ.reshape(len(tokens), *self._spec.config["ids_shape"]))


def probe_encoder(
    encode: Callable[[Images], Ids], size: int, batches: Sequence[int], vocabulary: Sequence[int], where: str
) -> tuple[Ids, Layout]:
    """Return the ids of synthetic images, in the first batch size of `batches` that the encoder accepts, and the layout of the ids.

    `encode` raises TokenizerError for a batch that it does not accept. Where it accepts none, the error of the first batch is raised.
    Raises TokenizerError also where the ids of an image are not integers of the vocabulary, differ in a second run, or depend on the other
    images.
    """
    refusal: TokenizerError | None = None
    for batch in batches:
        images = _synthetic_images(batch, size)
        try:
            ids = encode(images)
        except TokenizerError as error:
            refusal = refusal or error
            continue
        if ids.dtype.kind not in "iu":
            raise TokenizerError(
                f"{where}: for {batch} images it gives {ids.dtype} {list(ids.shape)}; expected integers, [B, L], [B, h, w] or [B, L, Q]. "
                "Export the part of the network that ends in ids"
            )
        if not np.array_equal(encode(images), ids):
            raise TokenizerError(f"{where}: the same images get other ids the second time; expected equal ids. Take its randomness out")
        images[1:] = 0
        if not np.array_equal(encode(images)[0], ids[0]):
            raise TokenizerError(
                f"{where}: the ids of an image change with the images beside it in a batch of {batch}; expected ids that depend on the "
                "image alone. Is it in training mode, with statistics of the batch? Export it after eval()"
            )
        layout = _layout(ids.shape[1:], len(vocabulary), where)
        _checked(ids, batch, ids.shape[1:], vocabulary, where)
        return ids, layout
    raise refusal or TokenizerError(f"{where}: no batch to try")


def _layout(shape: Sequence[int], levels: int, where: str) -> Layout:
    """Return the layout for the shape of one image's ids: [L] a sequence, [h, w] a grid, [T, h, w] a video; Q above 1 comes last.

    Dimensions of 1 do not count. Raises TokenizerError for any other shape.
    """
    sites = tuple(shape)
    if levels > 1:
        if len(sites) < 2 or sites[-1] != levels:
            raise TokenizerError(f"{where}: it gives ids of shape {_shown(shape)}, with {levels} vocabularies; expected [B, …, {levels}]")
        sites = sites[:-1]
    sites = tuple(n for n in sites if n != 1) or (1,)
    if len(sites) > 3 or 0 in sites:
        raise TokenizerError(
            f"{where}: it gives ids of shape {_shown(shape)}; expected [B, L], [B, h, w], [B, T, h, w] or one of them and Q"
        )
    kind: Any = ("sequence", "grid", "video")[len(sites) - 1]
    combine: Any = "concat" if levels > 1 else "single"
    grid = () if kind == "sequence" else sites
    return Layout(kind=kind, grid=grid, sites=int(np.prod(sites)), ids_per_site=levels, combine=combine)


def _checked(ids: Ids, count: int, shape: Sequence[int], vocabulary: Sequence[int], where: str) -> Ids:
    """Return the ids of `count` images as [B, L, Q]; TokenizerError unless they are integers of this shape within the vocabulary."""
    if ids.dtype.kind not in "iu" or ids.shape != (count, *shape):
        raise TokenizerError(f"{where}: it gives ids of {ids.dtype} {list(ids.shape)}; expected integers [{count}, {_shown(shape)[4:]}")
    ids_BLQ = ids.reshape(count, math.prod(shape) // len(vocabulary), len(vocabulary))
    for q, codes in enumerate(vocabulary):
        column = ids_BLQ[:, :, q]
        for found in (int(column.min(initial=0)), int(column.max(initial=0))):
            if not 0 <= found < codes:
                level = f" at level {q}" if len(vocabulary) > 1 else ""
                raise TokenizerError(
                    f"{where}: it gives the id {found}{level}; expected 0 to {codes - 1}, for a vocabulary of {codes}. "
                    "Is this the vocabulary of this network?"
                )
    return ids_BLQ


def _synthetic_images(count: int, size: int) -> Images:
    """Patches of colour under a little noise."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (count, 4, 4, 3))
    smooth = cells.repeat(-(-size // 4), axis=1).repeat(-(-size // 4), axis=2)[:, :size, :size]
    images: Images = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    return images


def _shown(shape: Sequence[int]) -> str:
    return f"[B, {', '.join(map(str, shape))}]"
