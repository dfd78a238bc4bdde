"""The tokenizer `pixels`: a site is a pixel, its three ids are its colour values. With a SmallFile, images pass through that file first.

Shapes: B images, H = W pixels of a side, L = H * W sites.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.tokenizers.base import (
    CodebookInfo,
    Images,
    Tables,
    TokenizerSpec,
    check_ids,
    check_images,
    codebook_sha256,
    square_layout,
)
from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile

__all__ = ["FAMILY", "PixelValues"]

FAMILY = "pixels"
VALUES, COLOURS = 256, 3


class PixelValues:
    """Colour values as ids; `file` is what images pass through before, None for nothing."""

    def __init__(self, preprocess: Preprocess, file: SmallFile | None = None) -> None:
        self.file = file
        self._spec = TokenizerSpec(
            family=FAMILY,
            layout=square_layout(preprocess.size, 1, COLOURS, "concat", FAMILY),
            vocabulary=(VALUES,) * COLOURS,
            preprocess=preprocess,
            codebook=CodebookInfo(sha256=codebook_sha256(self.codebook()), dims=(1,) * COLOURS),
            config={"file": None if file is None else file.to_json()},
        )

    @property
    def spec(self) -> TokenizerSpec:
        """Everything that decides what an id means."""
        return self._spec

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build the tokenizer back from its spec."""
        file = spec.config.get("file")
        if file is not None and not isinstance(file, dict):
            raise TokenizerError(f"{FAMILY}: file is {file!r}; expected the settings of a small file or null. Make the tokenizer again")
        return cls(spec.preprocess, None if file is None else SmallFile.from_json(file))

    def codebook(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return one table for each colour, float32 [256, 1]: the value itself."""
        values_K1 = np.arange(VALUES, dtype=np.float32)[:, None]
        return {f"level_{colour}": values_K1.copy() for colour in range(COLOURS)}

    def encode(self, images_BHWC: Images) -> TokenBatch:
        """Return the colour values [B, L, 3] of uint8 RGB images."""
        check_images(images_BHWC, self._spec)
        values_BHWC = np.array(images_BHWC)  # a copy: who gave the images may use their memory again
        if self.file is not None:
            for image_HWC in values_BHWC:
                image_HWC[:] = self.file.passed(image_HWC)
        return TokenBatch(values_BHWC.reshape(len(values_BHWC), self._spec.layout.sites, COLOURS))

    def decode(self, tokens: TokenBatch) -> Images:
        """Return uint8 images [B, H, W, 3]."""
        check_ids(tokens.ids_BLQ, self._spec)
        side = self._spec.preprocess.size
        return tokens.ids_BLQ.astype(np.uint8).reshape(len(tokens), side, side, COLOURS)
