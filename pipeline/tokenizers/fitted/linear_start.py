"""The initial weights of an autoencoder: principal components of patches, in both directions.

Shapes: M images, H and W pixels, N patches, p pixels of a patch's side, P = 3 * p * p values of a patch, D values of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tokenshards.pipeline.tokenizers.base import Images

__all__ = ["start_linear"]

PATCHES_SEEN = 100_000


def start_linear(there: nn.Conv2d, back: nn.ConvTranspose2d, pixels_MHWC: Images, *, alike: bool) -> None:
    """Set the convolutions to the first D components. The first component varies by 1; with `alike` every component does."""
    patch, width = there.kernel_size[0], there.out_channels
    patches_NP = np.concatenate(list(_patches(pixels_MHWC, patch)))
    mean_P = patches_NP.mean(axis=0)
    covariance_PP = np.cov(patches_NP - mean_P, rowvar=False, dtype=np.float64).reshape(len(mean_P), len(mean_P))
    components_DP = np.ascontiguousarray(np.linalg.eigh(covariance_PP)[1][:, ::-1].T[:width])
    largest_D = components_DP[np.arange(width), np.abs(components_DP).argmax(axis=1)]
    components_DP *= np.sign(largest_D)[:, None]  # the sign of a component is arbitrary: fix it
    deviation_D = np.maximum(1e-6, ((patches_NP - mean_P) @ components_DP.T).std(axis=0))
    scale_D1 = 1 / (deviation_D if alike else np.full_like(deviation_D, deviation_D[0]))[:, None]
    _set(there, components_DP * scale_D1, (-components_DP * scale_D1) @ mean_P)
    _set(back, components_DP / scale_D1, mean_P.reshape(3, -1).mean(axis=1))


def _set(convolution: nn.Conv2d | nn.ConvTranspose2d, weight_DP: npt.NDArray[np.float64], bias: npt.NDArray[np.floating]) -> None:
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(weight_DP).reshape(convolution.weight.shape))
        if convolution.bias is not None:
            convolution.bias.copy_(torch.from_numpy(np.asarray(bias)))


def _patches(pixels_MHWC: Images, patch: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield patches [h * w, P] from -1 to 1, one array for each image used."""
    side = pixels_MHWC.shape[1] // patch
    for pixels_HWC in pixels_MHWC[: max(1, PATCHES_SEEN // side**2)]:
        blocks = pixels_HWC.reshape(side, patch, side, patch, 3).transpose(0, 2, 4, 1, 3).reshape(side * side, -1)
        yield (blocks / 127.5 - 1).astype(np.float32)
