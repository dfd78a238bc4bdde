"""Targets of masked token modelling that say what a patch shows, not each code in it: features of a patch, or the nearest centroid.

A patch of the stem gets features in two layers without labels (Coates & Ng, 2012, "Learning Feature Representations with K-means"): windows
of 2 x 2 sites are whitened and compared with `FIRST` centroids; what is nearer than the mean distance counts (triangle activation), pooled
over the patch and its neighbours. These are projected to few directions: those in which patches differ much and neighbouring patches of
an image little (the generalised eigenvectors of the covariances of patches and of differences of neighbours). The projected features
are targets as in MaskFeat (Wei et al. 2022), which predicts gradient histograms of pixels; their centroids are targets as in CCViT (Yan
et al. 2023), which clusters patches of pixels.

Shapes: B samples, Q ids per site, H x W grid, D channels, C window channels, F first centroids, N = h x w patches, K centroids, E
directions, R rows, X values of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.stem_adaptors.augment.quantise import best_columns
from tokenshards.stem_adaptors.models.stems import ConvStem

__all__ = ["PatchCentroids", "lloyd"]

WINDOW_CHANNELS, FIRST, DIRECTIONS = 24, 256, 32
FIT_ROWS = 60_000
LLOYD_STEPS = 12
WHITENING = 0.01
"""Share of the mean eigenvalue that is added before windows are whitened."""
SMOOTHING = 0.03
"""Share of the mean variance of features that is added to the covariance of differences."""
MOST_CHANNELS = 64
"""Channels of a code vector that windows are made of."""
TINY = 1e-8
"""What variances have at least: those of images of one colour are 0."""
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


class PatchCentroids(nn.Module):
    """Ids [B, L, Q] of a grid to the features and the centroid of each patch. All tensors are buffers: a checkpoint holds them.

    The first layer is linear in the code vectors, so each code has its products in a table, and windows are sums of rows.
    """

    first_F: Tensor
    bias_C: Tensor
    first_FC: Tensor
    mean_F: Tensor
    directions_FE: Tensor
    std_E: Tensor
    centroids_KE: Tensor
    examples_KPQ: Tensor
    sites_NP: Tensor

    def __init__(self, vocabulary: Sequence[int], channels: int, stem: ConvStem, centroids: int) -> None:
        """Make room for what `fit` finds."""
        super().__init__()
        self.sites, self.step, self.grid = stem.sites, stem.step, stem.grid
        self.levels, width = len(vocabulary), min(WINDOW_CHANNELS, 4 * channels)
        for level, codes in enumerate(vocabulary):
            self.register_buffer(f"products_{level}", torch.zeros(codes, 4 * width))
        directions = min(DIRECTIONS, FIRST)
        shapes = {
            "bias_C": (width,),
            "first_FC": (FIRST, width),
            "mean_F": (FIRST,),
            "directions_FE": (FIRST, directions),
            "std_E": (directions,),
            "centroids_KE": (centroids, directions),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        sites_NP = stem.token_sites()
        self.register_buffer("examples_KPQ", torch.zeros(centroids, sites_NP.shape[1], self.levels, dtype=torch.int64))
        self.register_buffer("sites_NP", sites_NP, persistent=False)

    @torch.no_grad()
    def features(self, ids_BLQ: Tensor) -> Tensor:
        """Return the projected features of patches, float32 [B, N, E]. Their mean over the samples of the fit is 0."""
        return (self._features(ids_BLQ).flatten(1, 2) - self.mean_F) @ self.directions_FE

    @torch.no_grad()
    def nearest(self, features_BNE: Tensor) -> Tensor:
        """Return the centroid that is nearest to each feature vector, int64 [B, N]."""
        table_KE, bias_K = self.scoring()
        return best_columns(torch.addmm(bias_K, features_BNE.flatten(0, 1), table_KE.T)).view(features_BNE.shape[:2])

    def scoring(self) -> tuple[Tensor, Tensor]:
        """Return [K, E] and [K]: features times the first plus the second are log p of each centroid, but for a constant: squared
        distances over twice the mean variance."""
        variance = self._variance()
        return self.centroids_KE / variance, -self.centroids_KE.square().sum(1) / (2 * variance)

    def squared_errors(self, found_ME: Tensor, wanted_ME: Tensor) -> Tensor:
        """Return [M]: the mean squared error of each row over the mean variance, 1 where the mean of all patches is predicted."""
        errors_M: Tensor = (found_ME - wanted_ME).square().mean(1) / self._variance()
        return errors_M

    def _variance(self) -> Tensor:
        return self.std_E.square().mean().clamp_min(1e-12)

    def _features(self, ids_BLQ: Tensor) -> Tensor:
        """Return float32 [B, h, w, F]."""
        windows_BHWC = self._windows(ids_BLQ)
        distance = (windows_BHWC @ self.first_FC.T).mul_(-2).add_(self.first_FC.square().sum(1))
        distance = distance.add_(windows_BHWC.square().sum(-1, keepdim=True)).clamp_min_(0).sqrt_()
        near_BFHW = (distance.mean(-1, keepdim=True) - distance).clamp_min_(0).movedim(-1, 1)
        pooled = F.avg_pool2d(near_BFHW, self.step, ceil_mode=True)
        pooled = F.avg_pool2d(F.pad(pooled, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return pooled.sqrt().movedim(1, -1)

    def _windows(self, ids_BLQ: Tensor) -> Tensor:
        """Return the whitened windows of 2 x 2 sites that begin at each site, [B, H, W, C]; the last row and column are repeated."""
        height, width = self.sites
        products = [
            F.embedding(ids_BLQ[..., level].long(), cast(Tensor, getattr(self, f"products_{level}"))) for level in range(self.levels)
        ]
        whole = torch.stack(products).sum(0) if self.levels > 1 else products[0]
        parts = whole.view(len(ids_BLQ), height, width, 4, -1).unbind(3)
        found = parts[0] - self.bias_C
        for (down, right), part in zip(_CORNERS[1:], parts[1:], strict=True):
            for to_rows, from_rows in _neighbours(height, down):
                for to_columns, from_columns in _neighbours(width, right):
                    found[:, to_rows, to_columns] += part[:, from_rows, from_columns]
        return found

    @torch.no_grad()
    def fit(self, ids_BLQ: Tensor, tables: Sequence[Tensor], *, concat: bool, seed: int = 0) -> None:
        """Find all centroids from the ids of some samples. `tables`: the code vectors of each level, summed, or with `concat` side by side.

        Deterministic for a seed, on one kind of machine.
        """
        generator = torch.Generator().manual_seed(seed)
        self._whiten(ids_BLQ, _narrow(_of_full_width(tables) if concat else tables), generator)
        parts = [self._windows(part).flatten(0, 2) for part in torch.split(ids_BLQ, 64)]
        share = min(1.0, FIT_ROWS / sum(map(len, parts)))
        self.first_FC.copy_(lloyd(torch.cat([_some(part, share, generator) for part in parts]), FIRST, generator))
        features = torch.cat([self._features(part) for part in torch.split(ids_BLQ, 64)])
        rows_RF = features.flatten(0, 2)
        self.mean_F.copy_(rows_RF.mean(0))
        beside = [(features[:, :, 1:] - features[:, :, :-1]).flatten(0, 2), (features[:, 1:] - features[:, :-1]).flatten(0, 2)]
        self.directions_FE.copy_(_directions(rows_RF - self.mean_F, torch.cat(beside) / 2**0.5, self.directions_FE.shape[1]))
        projected_RE = (rows_RF - self.mean_F) @ self.directions_FE
        self.std_E.copy_(projected_RE.std(0, correction=0))
        self.centroids_KE.copy_(lloyd(_some(projected_RE, FIT_ROWS / len(projected_RE), generator), len(self.centroids_KE), generator))
        self._find_examples(ids_BLQ, projected_RE)

    def _find_examples(self, ids_BLQ: Tensor, projected_RE: Tensor) -> None:
        """Keep for each centroid the ids of the patch that is nearest to it, to draw what is predicted."""
        scores_KR = self.centroids_KE @ projected_RE.T - projected_RE.square().sum(1) / 2
        nearest_K = best_columns(scores_KR)
        sites_KP = self.sites_NP[nearest_K % len(self.sites_NP)].clamp_min(0)
        self.examples_KPQ.copy_(ids_BLQ[nearest_K // len(self.sites_NP)][torch.arange(len(sites_KP))[:, None], sites_KP].long())

    def _whiten(self, ids_BLQ: Tensor, tables: Sequence[Tensor], generator: torch.Generator) -> None:
        """Find the principal directions of windows, and the products of all codes with them."""
        height, width = self.sites
        sites_RD = torch.stack([F.embedding(ids_BLQ[..., level].long(), table) for level, table in enumerate(tables)]).sum(0)
        sites = sites_RD.view(len(ids_BLQ), height, width, -1)
        sites = torch.cat([sites, sites[:, -1:]], dim=1)
        sites = torch.cat([sites, sites[:, :, -1:]], dim=2)
        rows = torch.randint(len(ids_BLQ) * height * width, (FIT_ROWS,), generator=generator)
        sample, row, column = rows // (height * width), rows // width % height, rows % width
        windows_RX = torch.cat([sites[sample, row + down, column + right] for down, right in _CORNERS], dim=1)
        mean_X = windows_RX.mean(0)
        values, vectors = torch.linalg.eigh(_covariance(windows_RX - mean_X))
        count = len(self.bias_C)
        values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
        whitening_XC = (vectors / (values.clamp_min(0) + WHITENING * values.mean() + TINY).sqrt()).float()
        self.bias_C.copy_(mean_X @ whitening_XC)
        corners = whitening_XC.view(4, -1, count)
        for level, table_VD in enumerate(tables):
            cast(Tensor, getattr(self, f"products_{level}")).copy_(torch.cat([table_VD @ corner for corner in corners], dim=1))


def _neighbours(size: int, step: int) -> list[tuple[slice, slice]]:
    """Return pairs of places and of the places that lie `step` (0 or 1) behind them. The last place is its own neighbour."""
    if step == 0:
        return [(slice(None), slice(None))]
    return [(slice(0, size - 1), slice(1, size)), (slice(size - 1, size), slice(size - 1, size))]


def _some(rows_RE: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return a random share of the rows, all of them for 1 or more."""
    count = len(rows_RE)
    return rows_RE if share >= 1 else rows_RE[torch.randperm(count, generator=generator)[: max(1, round(count * share))]]


def _of_full_width(tables: Sequence[Tensor]) -> list[Tensor]:
    """Return tables whose sum has the vectors of all levels side by side."""
    widths = [table.shape[1] for table in tables]
    return [F.pad(table, (sum(widths[:level]), sum(widths[level + 1 :]))) for level, table in enumerate(tables)]


def _narrow(tables: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tables of at most `MOST_CHANNELS`: the principal ones. The codes of large patches have thousands, mostly of small variance."""
    if tables[0].shape[1] <= MOST_CHANNELS:
        return tables
    vectors_CD = torch.linalg.svd(torch.cat([table_VD - table_VD.mean(0) for table_VD in tables]), full_matrices=False)[2]
    return [table_VD @ vectors_CD[:MOST_CHANNELS].T for table_VD in tables]


def _covariance(rows_RE: Tensor) -> Tensor:
    return (rows_RE.T @ rows_RE).double() / max(1, len(rows_RE))


def _directions(rows_RF: Tensor, differences_RF: Tensor, count: int) -> Tensor:
    """Return [F, E]: the solutions of S v = lambda W v with the largest lambda and v' W v = 1.

    S is the covariance of rows, W that of differences.
    """
    whole, within = _covariance(rows_RF), _covariance(differences_RF)
    within += (SMOOTHING * whole.diagonal().mean() + TINY) * torch.eye(len(within), dtype=within.dtype)
    inverse = torch.linalg.inv(torch.linalg.cholesky(within))
    _, vectors = torch.linalg.eigh(inverse @ whole @ inverse.T)
    found_FE: Tensor = (inverse.T @ vectors.flip(1)[:, :count]).float()
    return found_FE


def lloyd(rows_RE: Tensor, centroids: int, generator: torch.Generator) -> Tensor:
    """Return the centroids [K, E] of rows after `LLOYD_STEPS` steps (Lloyd 1982), from random rows; an empty one begins again at a row.

    Of fewer rows than centroids some are taken twice.
    """
    order_R = torch.randperm(len(rows_RE), generator=generator)
    found_KE = rows_RE[order_R[torch.arange(centroids) % len(order_R)]]
    for _ in range(LLOYD_STEPS):
        nearest_R = torch.cat([best_columns(part @ found_KE.T - found_KE.square().sum(1) / 2) for part in torch.split(rows_RE, 8192)])
        counts_K = torch.bincount(nearest_R, minlength=centroids)
        sums_KE = torch.zeros_like(found_KE).index_add_(0, nearest_R, rows_RE)
        other_KE = rows_RE[torch.randint(len(rows_RE), (centroids,), generator=generator)]
        found_KE = torch.where(counts_K[:, None] > 0, sums_KE / counts_K[:, None].clamp_min(1), other_KE)
    return found_KE
