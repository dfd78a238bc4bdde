"""Specs, tables and ids of small invented datasets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tokenshards.pipeline.shards.spec import CodebookInfo, Layout, Preprocess, TokenizerSpec
from tokenshards.stem_adaptors.augment import SampleKeys
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.data.batch import Batch

CODES = 23
GRIDS = [(8, 8), (6, 10), (12, 12), (5, 7)]


def grid(height: int, width: int, levels: int = 1, **changes: Any) -> Layout:
    combine = changes.pop("combine", "single" if levels == 1 else "sum")
    return Layout(kind="grid", grid=(height, width), sites=height * width, ids_per_site=levels, combine=combine, **changes)


def video(frames: int, height: int, width: int) -> Layout:
    return Layout(kind="video", grid=(frames, height, width), sites=frames * height * width)


def pyramid(*scales: tuple[int, int]) -> Layout:
    return Layout(kind="pyramid", scales=scales, sites=sum(h * w for h, w in scales))


def sequence(sites: int, **changes: Any) -> Layout:
    return Layout(kind="sequence", sites=sites, **changes)


def spec_of(layout: Layout, codes: int = CODES, width: int = 4, metric: str = "l2") -> TokenizerSpec:
    codebook = CodebookInfo(sha256="0" * 64, dims=(width,) * layout.ids_per_site, metric=metric)  # type: ignore[arg-type]
    vocabulary = (codes,) * layout.ids_per_site
    return TokenizerSpec(family="invented", layout=layout, vocabulary=vocabulary, preprocess=Preprocess(size=32), codebook=codebook)


def tables_of(spec: TokenizerSpec, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    assert spec.codebook is not None
    pairs = zip(spec.vocabulary, spec.codebook.dims, strict=True)
    return {f"level_{q}": rng.standard_normal((codes, width)).astype(np.float32) for q, (codes, width) in enumerate(pairs)}


def ids_of(spec: TokenizerSpec, samples: int, seed: int = 0) -> torch.Tensor:
    """Ids as the reader gives them: the stored dtype, level-major in memory."""
    shape = (samples, spec.layout.ids_per_site, spec.layout.sites)
    ids_BQL = np.random.default_rng(seed).integers(0, min(spec.vocabulary), shape).astype(spec.id_dtype)
    return torch.from_numpy(ids_BQL).transpose(1, 2)


def keys_of(samples: int, start: int = 0, seed: int = 3, epoch: int = 1) -> SampleKeys:
    return SampleKeys(seed, epoch, torch.arange(start, start + samples))


class Given(Lookup):
    """A model whose embeddings are given, whatever the ids."""

    def __init__(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        self.x, self.mask, self.channels, self.embedding = x, mask, x.shape[1], self  # type: ignore[assignment]

    def site_mask(self, mask_BL: torch.Tensor | None, shapes_BD: torch.Tensor | None) -> torch.Tensor | None:
        return self.mask

    def embed(self, ids_BLQ: torch.Tensor, *, shapes_BD: torch.Tensor | None = None) -> torch.Tensor:
        return self.x.clone()


def batch_at(ids_BLQ: torch.Tensor, keys: SampleKeys) -> Batch:
    """A batch of samples with these numbers and the labels 0, 1, 2, ..."""
    count = torch.arange(len(keys))
    return Batch(ids_BLQ, count, torch.ones(len(keys)), keys.positions_B, count, keys.epoch, keys.seed)
