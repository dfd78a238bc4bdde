"""The tokenizer `layered-kmeans`: an id says what is around its site rather than how its pixels look. No weights, no labels, numpy alone.

Shapes: B images, L sites, Q levels, K codes of a level, P values of a site, D = site * site * 3 values of the patch of a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

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
from tokenshards.pipeline.tokenizers.kmeans.patches import patches_to_images
from tokenshards.pipeline.tokenizers.layered.features import VALUES, VIEWS, Floats, LayeredFeatures, PatchLayer
from tokenshards.pipeline.tokenizers.layered.neighbourhood_decoder import AROUND, NeighbourhoodDecoder
from tokenshards.pipeline.tokenizers.nearest_code import NearestCode

__all__ = ["FAMILY", "LayeredKMeans"]

FAMILY = "layered-kmeans"
ENGINE = "numpy"
"""Another engine would round otherwise, and is part of the fingerprint."""
LAYER = ("centre", "whitening", "centroids")
"""Names of the arrays of a layer, before its number."""
WEIGHTS = (*(f"{name}_{layer}" for layer in range(len(VIEWS)) for name in LAYER), "projection", "decoder", "basis", "mean")


class LayeredKMeans:
    """Residual k-means on features of `features`; `tables` are float32 [K, P], level by level."""

    def __init__(
        self, features: LayeredFeatures, tables: Sequence[Floats], decoder: NeighbourhoodDecoder, *, preprocess: Preprocess
    ) -> None:
        self._features, self._decoder = features, decoder
        self._tables = [np.ascontiguousarray(table, np.float32) for table in tables]
        self._check(preprocess)
        self._spec = TokenizerSpec(
            family=FAMILY,
            layout=square_layout(preprocess.size, features.site, len(tables), "sum", FAMILY),
            vocabulary=tuple(len(table) for table in tables),
            preprocess=preprocess,
            codebook=CodebookInfo(sha256=codebook_sha256(self.codebook()), dims=(self._tables[0].shape[1],) * len(tables)),
            config={"site": features.site, "engine": ENGINE},
            weights_sha256=codebook_sha256(self.weights()),
        )

    def _check(self, preprocess: Preprocess) -> None:
        features, tables = self._features, self._tables
        projected, rank = features.projection_AP.shape[-1], self._decoder.basis_RD.shape[0]
        expected = {
            "layers": ((len(features.layers),), (len(VIEWS),)),
            "projection": (features.projection_AP.shape, (features.width, projected)),
            "decoder": (self._decoder.weights_FR.shape, (len(AROUND) * projected, rank)),
            "basis": (self._decoder.basis_RD.shape, (rank, features.site**2 * 3)),
            "mean": (self._decoder.mean_D.shape, (features.site**2 * 3,)),
            **{f"level_{q}": (table.shape, (len(table), projected)) for q, table in enumerate(tables)},
        }
        for number, layer in enumerate(features.layers):
            whitened = layer.whitening_DW.shape[-1]
            expected |= {
                f"centre_{number}": (layer.centre_D.shape, (VALUES,)),
                f"whitening_{number}": (layer.whitening_DW.shape, (VALUES, whitened)),
                f"centroids_{number}": (layer.centroids_KW.shape, (len(layer.centroids_KW), whitened)),
            }
        for name, (found, wanted) in expected.items():
            if found != wanted or not all(wanted):
                raise TokenizerError(f"{FAMILY}: {name} is {list(found)}; expected {list(wanted)}. Fit the tokenizer again")
        if not tables or features.site % 8 or preprocess.size % features.site:
            raise TokenizerError(
                f"{FAMILY}: {len(tables)} levels, size {preprocess.size} and sites of {features.site} pixels do not fit; expected at least "
                "one level, sites of a multiple of 8 pixels, and a size that is a multiple of the site. Fit the tokenizer again"
            )

    @property
    def spec(self) -> TokenizerSpec:
        """Everything that decides what an id means."""
        return self._spec

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build the tokenizer back from its spec, tables and weights."""
        names = [f"level_{q}" for q in range(spec.layout.ids_per_site)]
        site, engine = spec.config.get("site"), spec.config.get("engine")
        missing = [name for name in (*names, *WEIGHTS) if name not in tables]
        if missing or engine != ENGINE or not isinstance(site, int):
            raise TokenizerError(
                f"{FAMILY}: {', '.join(missing) or 'nothing'} is missing, engine {engine!r}, site {site!r}; expected {[*names, *WEIGHTS]}, "
                f"{ENGINE!r} and a number of pixels. Copy the whole tokenizer folder, or load it with the version that wrote it"
            )
        arrays = {name: np.asarray(tables[name], np.float32) for name in WEIGHTS}
        layers = tuple(PatchLayer(*(arrays[f"{name}_{number}"] for name in LAYER)) for number in range(len(VIEWS)))
        features = LayeredFeatures(site, layers, arrays["projection"])
        decoder = NeighbourhoodDecoder(arrays["decoder"], arrays["basis"], arrays["mean"])
        return cls(features, [np.asarray(tables[name]) for name in names], decoder, preprocess=spec.preprocess)

    def codebook(self) -> dict[str, Floats]:
        """Return the tables as `level_0`, `level_1`, …: float32 [K, P]."""
        return {f"level_{q}": table for q, table in enumerate(self._tables)}

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays of the features and of the way back, float16: the fit has rounded them."""
        layers = [(layer.centre_D, layer.whitening_DW, layer.centroids_KW) for layer in self._features.layers]
        decoder = self._decoder
        arrays = [
            *(array for layer in layers for array in layer),
            self._features.projection_AP,
            decoder.weights_FR,
            decoder.basis_RD,
            decoder.mean_D,
        ]
        return {name: array.astype(np.float16) for name, array in zip(WEIGHTS, arrays, strict=True)}

    @cached_property
    def _search(self) -> list[NearestCode]:
        return [NearestCode(table) for table in self._tables]

    def encode(self, images_BHWC: Images) -> TokenBatch:
        """Return ids [B, L, Q] of uint8 RGB images; ties go to the lowest id."""
        check_images(images_BHWC, self._spec)
        return TokenBatch(residual_ids_of(self._features(images_BHWC), self._search).astype(self._spec.id_dtype))

    def decode(self, tokens: TokenBatch) -> Images:
        """Return uint8 images [B, size, size, 3], blurred: what such ids stood for on the images of the fit."""
        check_ids(tokens.ids_BLQ, self._spec)
        grid = self._spec.layout.grid
        colours_BLD = self._decoder(summed_vectors(tokens.ids_BLQ, self._tables), (grid[0], grid[1]))
        return patches_to_images(np.clip(np.rint(colours_BLD), 0, 255).astype(np.uint8), grid, self._features.site)


def summed_vectors(ids_BLQ: npt.NDArray[np.integer], tables: Sequence[Floats]) -> Floats:
    """Return float32 [B, L, P], the sums of the code vectors of each site."""
    found: Floats = sum((table[ids_BLQ[:, :, q]] for q, table in enumerate(tables[1:], start=1)), tables[0][ids_BLQ[:, :, 0]])
    return found


def residual_ids_of(features_BLP: Floats, levels: Sequence[NearestCode]) -> npt.NDArray[np.int64]:
    """Return ids [B, L, Q]; each level names the row nearest to what the levels before it left."""
    ids_BLQ = np.empty((*features_BLP.shape[:2], len(levels)), np.int64)
    padded = np.pad(features_BLP, ((0, 0), (0, 0), (0, 1)), constant_values=1)
    for rest, ids_LQ in zip(padded, ids_BLQ, strict=True):  # a product of more rows is rounded otherwise: no image may change another's ids
        for q, level in enumerate(levels):
            ids_LQ[:, q] = level.nearest(rest)
            rest -= level.padded_rows[ids_LQ[:, q]]
    return ids_BLQ
