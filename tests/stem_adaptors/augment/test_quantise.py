"""Embeddings become the ids of the nearest codes again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.stem_adaptors.augment.layouts import batch_at, grid, ids_of, keys_of, sequence, spec_of, tables_of, video
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.augment.quantise import NearestCodes
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.augment.transform import TokenTransform
from tokenshards.stem_adaptors.config import AugmentConfig
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize(("combine", "metric"), [("sum", "l2"), ("concat", "l2"), ("concat", "cosine"), ("sum", "dot")])
def test_the_nearest_codes(combine: Any, metric: str, standardised: bool) -> None:
    spec = spec_of(grid(2, 3, 2, combine=combine), codes=9, metric=metric)
    tables, rng = tables_of(spec), np.random.default_rng(1)
    width = 8 if combine == "concat" else 4
    mean_D, std_D = rng.standard_normal(width), rng.uniform(0.2, 3, width)
    raw_BLD = rng.standard_normal((4, 6, width))
    x_BLD = (raw_BLD - mean_D) / std_D if standardised else raw_BLD
    statistics = (mean_D.astype(np.float32), std_D.astype(np.float32)) if standardised else None
    found_BLQ = NearestCodes(spec, tables, statistics)(torch.from_numpy(x_BLD.astype(np.float32)))
    for sample in range(4):
        for site in range(6):
            rest = raw_BLD[sample, site]
            for level in range(2):
                part = rest[4 * level : 4 * level + 4] if combine == "concat" else rest
                table = tables[f"level_{level}"].astype(float)
                if metric == "l2":
                    near = min(range(9), key=lambda code, part=part, table=table: np.square(part - table[code]).sum())
                else:
                    length = np.linalg.norm(table, axis=1) if metric == "cosine" else np.ones(9)
                    near = max(range(9), key=lambda code, part=part, table=table, length=length: part @ table[code] / length[code])
                assert found_BLQ[sample, site, level] == near
                rest = rest - table[near] if combine == "sum" else rest


def test_pieces_and_the_whole_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(grid(8, 8, 2))
    nearest = NearestCodes(spec, tables_of(spec))
    x_BLD = torch.randn(5, 64, 4, generator=torch.Generator().manual_seed(0))
    whole = nearest(x_BLD)
    monkeypatch.setattr("tokenshards.stem_adaptors.augment.quantise.CPU_SCORES", 23 * 7)
    assert torch.equal(nearest(x_BLD), whole)


@pytest.mark.parametrize("layout", [grid(6, 10), video(2, 6, 8), sequence(20)], ids=["grid", "video", "sequence"])
def test_the_operation_leaves_ids_and_their_vectors(layout: Any) -> None:
    """What one level stored comes back unchanged, and after a crop the embeddings are those of the ids."""
    spec = spec_of(layout)
    tables = tables_of(spec)
    model = Lookup(TokenEmbedding(spec, tables))
    ids_BLQ, keys = ids_of(spec, 6), keys_of(6)
    same = TokenTransform(spec, tables, AugmentConfig(ops="quantise()")).state(model, batch_at(ids_BLQ, keys))
    assert torch.equal(same.ids_BLQ.long(), ids_BLQ.long())
    if layout.kind == "sequence":
        return
    state = TokenTransform(spec, tables, AugmentConfig(ops="rrc(share=0.5), quantise()")).state(model, batch_at(ids_BLQ, keys))
    plane = tuple(state.embeddings.shape[2:])
    assert plane[-2:] == tuple(2 * round(side / 4) for side in layout.grid[-2:])
    smaller = replace(layout, grid=plane, sites=int(np.prod(plane)))
    assert torch.equal(TokenEmbedding(replace(spec, layout=smaller), tables)(state.ids_BLQ), state.embeddings)


def test_refusals() -> None:
    spec = spec_of(grid(4, 4))
    with pytest.raises(ConfigError, match="has no codebook"):
        NearestCodes(replace(spec, codebook=None), {})
    ragged = spec_of(grid(4, 4, variable=True))
    with pytest.raises(ConfigError, match="quantise means nothing in a layout of kind grid of varying size"):
        TokenTransform(ragged, tables_of(ragged), AugmentConfig(ops="quantise()"))
