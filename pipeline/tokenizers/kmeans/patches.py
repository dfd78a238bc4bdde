"""Images as rows of patches, and back.

Shapes: B images, H height, W width, C = 3 channels, L patches of an image, D = patch * patch * 3 values of a patch.
"""

from __future__ import annotations

import numpy as np

from tokenshards.pipeline.tokenizers.base import Images

__all__ = ["images_to_patches", "patches_to_images"]


def images_to_patches(images_BHWC: Images, patch: int) -> Images:
    """Cut uint8 images into rows [B * L, patch * patch * 3], patches in raster order."""
    count, height, width, _ = images_BHWC.shape
    # A line of pixels of a patch moves as one opaque item, which is several times faster than byte by byte.
    lines = np.ascontiguousarray(images_BHWC).reshape(count, height, width * 3).view(np.dtype((np.void, patch * 3)))
    by_patch = lines.reshape(count, height // patch, patch, width // patch).swapaxes(2, 3)
    return np.ascontiguousarray(by_patch).view(np.uint8).reshape(-1, patch * patch * 3)


def patches_to_images(patches_BLD: Images, grid: tuple[int, ...], patch: int) -> Images:
    """Return the images of patches [B, L, D]: the inverse of images_to_patches."""
    rows, columns = grid
    lines = np.ascontiguousarray(patches_BLD).view(np.dtype((np.void, patch * 3))).reshape(-1, rows, columns, patch).swapaxes(2, 3)
    return np.ascontiguousarray(lines).view(np.uint8).reshape(-1, rows * patch, columns * patch, 3)
