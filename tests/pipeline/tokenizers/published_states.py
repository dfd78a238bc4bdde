"""State dicts of published layouts with random weights, and the nearest code the slow way. Nothing of ours is imported here.

Shapes: B images, L sites, K codes, D values of a code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


@dataclass
class RandomState:
    """Collects named tensors; `weight` keeps the scale of what goes through, `bias` and `norm` are far enough from 0 and 1 to matter."""

    seed: int = 0
    tensors: State = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def weight(self, name: str, *shape: int, gain: float = 1.0) -> None:
        self.tensors[name] = self.normal(*shape) * gain / float(np.prod(shape[1:])) ** 0.5

    def bias(self, name: str, size: int) -> None:
        self.tensors[name] = 0.2 * self.normal(size)

    def layer(self, name: str, *shape: int, gain: float = 1.0, bias: bool = True) -> None:
        self.weight(f"{name}.weight", *shape, gain=gain)
        if bias:
            self.bias(f"{name}.bias", shape[0])

    def norm(self, name: str, size: int) -> None:
        self.tensors[f"{name}.weight"] = 1 + 0.3 * self.normal(size)
        self.bias(f"{name}.bias", size)


def pixels(images_BHWC: np.ndarray) -> Tensor:
    """[B, 3, H, W] from 0 to 1."""
    return torch.from_numpy(images_BHWC.copy()).permute(0, 3, 1, 2).float() / 255


def nearest(vectors_BLD: Tensor, table_KD: Tensor, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, L] in float64, and where no other row comes close."""
    z, e = vectors_BLD.double(), table_KD.double()
    if metric == "cosine":
        z, e = F.normalize(z, dim=-1), F.normalize(e, dim=-1)
    distance = -(z @ e.T) if metric == "dot" else torch.cdist(z, e.expand(len(z), *e.shape)).square()
    two = distance.topk(2, largest=False).values
    spread = distance.amax(dim=-1) - two[..., 0]
    return distance.argmin(dim=-1).numpy(), ((two[..., 1] - two[..., 0]) > 1e-4 * spread).numpy()


def table_from(vectors_BLD: Tensor, codes: int, seed: int = 0) -> Tensor:
    """A table [K, D] near what an encoder gives, with rows of many lengths, so that the metric decides."""
    generator = torch.Generator().manual_seed(seed)
    rows = vectors_BLD.flatten(0, 1)
    chosen = rows[torch.randperm(len(rows), generator=generator)[:codes]]
    noisy = chosen + 0.3 * rows.std() * torch.randn(chosen.shape, generator=generator)
    return noisy * torch.exp(0.5 * torch.randn((len(chosen), 1), generator=generator))


def agreement(ids_BL: np.ndarray, vectors_BLD: Tensor, table_KD: Tensor, metric: str) -> float:
    """Share of the clear sites whose ids are the nearest rows."""
    expected_BL, clear_BL = nearest(vectors_BLD, table_KD, metric)
    assert clear_BL.mean() > 0.9, "too many near ties to say anything"
    return float((ids_BL == expected_BL)[clear_BL].mean())
