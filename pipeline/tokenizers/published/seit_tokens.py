"""The tokenizer of an imported SeiT split: its ids and their vectors. The release does not contain the networks.

Shapes: K codes, D width of a code vector.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.codebook import Tables, codebook_sha256
from tokenshards.pipeline.shards.spec import CodebookInfo, Layout, Preprocess, TokenizerSpec
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Images
from tokenshards.pipeline.tokenizers.code_usage import code_moments

__all__ = ["FAMILY", "SeitTokens"]

FAMILY = "seit-vit-vqgan"
UNIT_TOLERANCE = 1e-3


class SeitTokens:
    """Ids of SeiT's ViT-VQGAN on a grid of sites. `codebook_KD` holds the raw rows, which are also the embedding table of SeiT's
    classifiers.

    The preprocessing is that of SeiT's evaluation: the whole image squashed to 256 x 256 with a bicubic filter, values from 0 to 1.
    """

    def __init__(self, codebook_KD: npt.NDArray[np.float32], grid: tuple[int, int]) -> None:
        self._codebook_KD = codebook_KD
        norms_K = np.linalg.norm(codebook_KD.astype(np.float64), axis=1)
        self._spec = TokenizerSpec(
            family=FAMILY,
            layout=Layout(kind="grid", grid=grid, sites=grid[0] * grid[1]),
            vocabulary=(len(codebook_KD),),
            preprocess=Preprocess(size=256, resize="squash", filter="bicubic", decode_mode="full", decoder="unknown"),
            codebook=CodebookInfo(
                sha256=codebook_sha256(self.codebook()),
                dims=(codebook_KD.shape[1],),
                metric="cosine",
                rows_normalised=bool((np.abs(norms_K - 1) < UNIT_TOLERANCE).all()),
            ),
        )

    @property
    def spec(self) -> TokenizerSpec:
        """What the ids mean."""
        return self._spec

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build it back from its spec and its one table."""
        if sorted(tables) != ["level_0"] or len(spec.layout.grid) != 2:
            raise TokenizerError(f"{FAMILY}: tables {sorted(tables)} and grid {spec.layout.grid}; expected level_0 and a grid of two sides")
        height, width = spec.layout.grid
        return cls(tables["level_0"], (height, width))

    def codebook(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the rows [K, D] as `level_0`."""
        return {"level_0": self._codebook_KD}

    def encode(self, images_BHWC: Images) -> TokenBatch:
        """Raise TokenizerError: SeiT's token files come without the encoder that made them."""
        raise TokenizerError(f"{FAMILY}: these tokens were imported without their encoder, so images cannot be tokenized like them")

    def decode(self, tokens: TokenBatch) -> Images:
        """Raise DecodeNotSupported: SeiT's token files come without a decoder."""
        raise DecodeNotSupported(
            f"{FAMILY}: these tokens were imported without a decoder, so there are no pixels to show. "
            "`tokenshards inspect` tells what they hold"
        )

    def statistics(self, counts_K: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return mean and standard deviation of each embedding channel over counted ids, as `embedding`, for training."""
        return {"embedding": code_moments(self._codebook_KD, counts_K)}
