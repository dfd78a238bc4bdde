"""The default tokenizer: residual k-means on raw image patches. It has no weights and no network, needs numpy only, and is fitted on your
images.

A site is one patch. Level 0 names the nearest patch of its table; each further level names the nearest correction of the remaining error.
An id of level 0 is therefore an image of its patch, and decoding is a sum of table rows. With a beam above 1 the search keeps the best few
sums from level to level (beam.py).

Shapes: B images, L patches of an image, Q levels, N rows of patches, K codes of a level, D = patch * patch * 3 values of a patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.activity import step as tell_step
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import (
    CodebookInfo,
    Images,
    Preprocess,
    Tables,
    TokenizerSpec,
    check_ids,
    check_images,
    codebook_sha256,
    square_layout,
)
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.kmeans.beam import beam_ids
from tokenshards.pipeline.tokenizers.kmeans.patch_fit import fit_tables
from tokenshards.pipeline.tokenizers.kmeans.patches import images_to_patches, patches_to_images
from tokenshards.pipeline.tokenizers.nearest_code import BLOCK_ROWS, NearestCode

__all__ = ["PatchKMeans", "choose_size", "default_preprocess", "fit_patch_kmeans"]

Floats = npt.NDArray[np.float32]

SPAN_TOLERANCE = 1e-5
"""Singular values below this share of the largest are rounding noise of float32 tables."""


class PatchKMeans:
    """Residual k-means on patches. `tables` are float32 [K, patch * patch * 3], level by level, in colours from 0 to 1."""

    def __init__(self, tables: Sequence[Floats], *, patch: int, preprocess: Preprocess, beam: int = 1) -> None:
        self._tables = [np.ascontiguousarray(table, dtype=np.float32) for table in tables]
        self._patch, self._beam = patch, beam
        width = patch * patch * 3
        if preprocess.size % patch or not tables or any(t.ndim != 2 or t.shape[1] != width or len(t) == 0 for t in tables):
            raise TokenizerError(
                f"patch-kmeans: size {preprocess.size}, patch {patch} and tables of {[t.shape for t in tables]} do not fit; "
                f"expected a size that is a multiple of the patch and tables [K, {width}]. Fit the tokenizer again"
            )
        self._spec = TokenizerSpec(
            family="patch-kmeans",
            layout=square_layout(preprocess.size, patch, len(tables), "sum", "patch-kmeans"),
            vocabulary=tuple(len(table) for table in tables),
            preprocess=preprocess,
            codebook=CodebookInfo(sha256=codebook_sha256(self.codebook()), dims=(width,) * len(tables)),
            config={"patch": patch} if beam == 1 else {"patch": patch, "beam": beam},
        )

    @property
    def spec(self) -> TokenizerSpec:
        """Everything that decides what an id means."""
        return self._spec

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build the tokenizer back from its spec and tables."""
        names = [f"level_{q}" for q in range(spec.layout.ids_per_site)]
        patch, beam = spec.config.get("patch"), spec.config.get("beam", 1)
        if sorted(tables) != sorted(names) or not isinstance(patch, int) or patch < 1:
            raise TokenizerError(f"patch-kmeans: tables {sorted(tables)} and patch {patch!r} do not fit the spec; expected tables {names}")
        if not isinstance(beam, int) or beam < 1:
            raise TokenizerError(f"patch-kmeans: beam is {beam!r}; expected a whole number, 1 or more. Fit the tokenizer again")
        return cls([tables[name] for name in names], patch=patch, preprocess=spec.preprocess, beam=beam)

    def codebook(self) -> dict[str, Floats]:
        """Return the tables as `level_0`, `level_1`, …: float32 [K, patch * patch * 3], colours from 0 to 1."""
        return {f"level_{q}": table for q, table in enumerate(self._tables)}

    @cached_property
    def _search(self) -> tuple[Floats, list[NearestCode]]:
        # Not in the constructor: a driver only needs the spec, and this work wakes all threads of the BLAS.
        basis_DR = _span(self._tables)
        searches = [NearestCode(np.asarray((table * np.float32(255)) @ basis_DR, np.float32)) for table in self._tables]
        return np.pad(basis_DR, ((0, 0), (0, 1))), searches

    def encode(self, images_BHWC: Images) -> TokenBatch:
        """Return ids [B, L, Q] of uint8 RGB images, stored level by level in memory; ties go to the lowest id."""
        check_images(images_BHWC, self._spec)
        basis, searches = self._search
        patches_ND = images_to_patches(images_BHWC, self._patch)
        rows, width = patches_ND.shape
        levels, block = len(self._tables), min(rows, BLOCK_ROWS)
        ids_QN = np.empty((levels, rows), dtype=self._spec.id_dtype)
        colours_ND = np.empty((block, width), dtype=np.float32)
        room, step = (np.empty((block, basis.shape[1]), dtype=np.float32) for _ in range(2))
        scores = [np.empty((block, len(table)), dtype=np.float32) for table in self._tables]
        for start in range(0, rows, BLOCK_ROWS):
            tell_step()
            n = min(BLOCK_ROWS, rows - start)
            colours_ND[:n] = patches_ND[start : start + n]
            rest = np.matmul(colours_ND[:n], basis, out=room[:n])
            rest[:, -1] = 1
            if self._beam > 1:
                for at in range(0, n, part := max(1, BLOCK_ROWS // self._beam)):
                    ids_QN[:, start + at : start + min(n, at + part)] = beam_ids(rest[at : at + part], searches, self._beam)
                continue
            for q, search in enumerate(searches):
                nearest_N = search.nearest(rest, scores[q][:n])
                ids_QN[q, start : start + n] = nearest_N
                if q + 1 < levels:
                    rest -= np.take(search.padded_rows, nearest_N, axis=0, out=step[:n], mode="clip")
        sites = self._spec.layout.sites
        ids_BQL = np.ascontiguousarray(ids_QN.reshape(levels, len(images_BHWC), sites).swapaxes(0, 1))
        return TokenBatch(ids_BQL.swapaxes(1, 2))

    def decode(self, tokens: TokenBatch) -> Images:
        """Return uint8 images [B, size, size, 3]: the sum of each site's table rows."""
        ids_BLQ = tokens.ids_BLQ
        check_ids(ids_BLQ, self._spec)
        colours_BLD = self._tables[0][ids_BLQ[:, :, 0]]
        for q in range(1, len(self._tables)):
            colours_BLD += self._tables[q][ids_BLQ[:, :, q]]
        return patches_to_images(_to_uint8(colours_BLD), self._spec.layout.grid, self._patch)


def default_preprocess(size: int, decoder: str) -> Preprocess:
    """Return how images are prepared for our own tokenizers; `decoder` is the name and major version of the decoding library."""
    return Preprocess(size=size, resize="crop", filter="bicubic", decode_mode="dct_scaled", exif_orientation=True, decoder=decoder)


def choose_size(short_sides: Sequence[int], patch: int) -> int:
    """Return the largest of 32, 64 and 128 up to the median short side (at least 32), reduced to a multiple of `patch`."""
    median = float(np.median(short_sides)) if len(short_sides) else 0.0
    size = max(side for side in (32, 64, 128) if side <= max(median, 32.0))
    return max(patch, size // patch * patch)


def fit_patch_kmeans(
    images: Iterable[tuple[str, Images]], config: FitConfig, size: int, preprocess: Preprocess
) -> tuple[PatchKMeans, dict[str, Any]]:
    """Fit a tokenizer to (content hash, uint8 pixels [size, size, 3]) pairs; return it with statistics in plain JSON types.

    Equal hashes count once, and the order of the images does not matter. Raises TokenizerError where there is no image, or an image of
    another shape.
    """
    tables, statistics = fit_tables(images, config, size)
    return PatchKMeans(tables, patch=config.patch, preprocess=preprocess, beam=config.beam), statistics


def _span(tables: Sequence[Floats]) -> Floats:
    """Return an orthonormal basis [D, R] of the space that the rows of all tables span.

    The part of a patch outside of this space adds the same to its distance from every row, so a search in R coordinates finds the same row
    as a search in D.
    """
    _, strength_R, directions_RD = np.linalg.svd(np.concatenate(tables).astype(np.float64), full_matrices=False)
    rank = max(1, int((strength_R > SPAN_TOLERANCE * strength_R[0]).sum()))
    return np.ascontiguousarray(directions_RD[:rank].T, dtype=np.float32)


def _to_uint8(colours: Floats) -> Images:
    """Return colours from 0 to 1 as uint8, rounded and clipped."""
    scaled = colours * np.float32(255)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)
