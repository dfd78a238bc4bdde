"""Shared by convolutional tokenizers: a square grid of sites, and wrappers that turn grids into rows of sites and back.

Shapes: B images, L sites, h and w sides of the grid, D values of a code.
"""

from __future__ import annotations

from torch import Tensor, nn

from tokenshards.pipeline.tokenizers.base import Layout, square_layout

__all__ = ["PixelsToVectors", "VectorsToPixels", "square_grid"]


class PixelsToVectors(nn.Module):
    """Wraps an encoder to [B, D, h, w] so that it gives [B, L, D]; the keys begin with `encoder.`."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the vectors in raster order."""
        result: Tensor = self.encoder(pixels_BCHW).flatten(2).transpose(1, 2)
        return result


class VectorsToPixels(nn.Module):
    """Wraps a decoder of [B, D, h, w] so that it takes [B, L, D]; the keys begin with `decoder.`."""

    def __init__(self, decoder: nn.Module, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.decoder, self._grid = decoder, grid

    def forward(self, vectors_BLD: Tensor) -> Tensor:
        """Return the pixels [B, 3, H, W]."""
        result: Tensor = self.decoder(vectors_BLD.transpose(1, 2).reshape(len(vectors_BLD), -1, *self._grid))
        return result


def square_grid(size: int, levels: int, where: str, ids_per_site: int = 1) -> Layout:
    """Return the grid of images of `size` pixels, halved by each level but the first; TokenizerError where the halves are not whole."""
    return square_layout(size, 2 ** (levels - 1), ids_per_site, "concat", where)
