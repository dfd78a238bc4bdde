from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.datasets import ROOT
from tokenshards.pipeline.errors import ConfigError, TokenizerError
from tokenshards.pipeline.tokenizers.config import LayeredFitConfig
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import default_preprocess
from tokenshards.pipeline.tokenizers.layered import layered_fit
from tokenshards.pipeline.tokenizers.layered.layered_fit import fit_layered_kmeans
from tokenshards.pipeline.tokenizers.layered.layered_kmeans import LayeredKMeans

QUICK = {"iterations": 2, "max_patches": 4000}


def hashed(images: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(hashlib.sha256(image.tobytes()).hexdigest(), image) for image in images]


def fit(images: np.ndarray, **config: int) -> tuple[LayeredKMeans, dict]:
    size = images.shape[1]
    return fit_layered_kmeans(hashed(images), LayeredFitConfig(**{**QUICK, **config}), size, default_preprocess(size, "test-1"))


class TestOneLevel(TokenizerContract):
    tokenizer, _ = fit(sample_images(24, 32), codes=16)
    min_reencode_agreement = 0.2  # a blurred image holds the kinds of a few sites

    def make_tokenizer(self) -> LayeredKMeans:
        return self.tokenizer


class TestTwoLevelsOfLargeSites(TokenizerContract):
    tokenizer, _ = fit(sample_images(24, 64), codes=16, levels=2, site=16)
    min_reencode_agreement = 0.5

    def make_tokenizer(self) -> LayeredKMeans:
        return self.tokenizer

    def test_layout(self) -> None:
        layout = self.tokenizer.spec.layout
        assert (layout.grid, layout.ids_per_site, layout.combine) == ((4, 4), 2, "sum")


def test_each_level_names_the_nearest_row_to_what_the_levels_before_it_left() -> None:
    tokenizer, images = TestTwoLevelsOfLargeSites.tokenizer, sample_images(3, 64)
    rest = tokenizer._features(images).astype(np.float64)
    ids_BLQ = tokenizer.encode(images).ids_BLQ
    for level, table in enumerate(tokenizer.codebook().values()):
        distances = np.square(rest[:, :, None] - table.astype(np.float64)).sum(axis=3)
        chosen = np.take_along_axis(distances, ids_BLQ[:, :, level, None].astype(int), axis=2)[..., 0]
        np.testing.assert_allclose(chosen, distances.min(axis=2), rtol=1e-4)
        rest -= table[ids_BLQ[:, :, level]]


def test_the_order_of_images_and_repetitions_do_not_matter() -> None:
    images = sample_images(20, 32)
    first, statistics = fit(images, codes=16)
    second, again = fit(np.concatenate([images[::-1], images[:5]]), codes=16)
    assert first.spec.fingerprint == second.spec.fingerprint and statistics == again
    assert statistics["images"] == 20 and statistics["levels"][0]["codes"] == 16


def test_a_fit_in_another_process_gives_equal_bytes() -> None:
    code = (
        "from tests.pipeline.tokenizers.layered.test_layered_kmeans import *\n"
        "import json; print(json.dumps(fit(sample_images(12, 32), codes=16)[0].spec.fingerprint))"
    )
    env = {**os.environ, **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}}
    found = {
        json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, check=True, text=True).stdout)
        for _ in range(2)
    }
    assert len(found) == 1


def test_only_so_many_images_are_kept_and_they_do_not_depend_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layered_fit, "MOST_IMAGES", 6)
    images = sample_images(30, 32)
    kept = [layered_fit._kept(iter(order), 32, 0) for order in (hashed(images), hashed(images[::-1]))]
    assert kept[0][0].keys() == kept[1][0].keys() and len(kept[0][0]) == 6 and kept[0][1] == kept[1][1] == 30
    assert fit(images, codes=2)[1]["notes"][-1] == "the fit worked on 6 of 30 images, which is as many as its memory holds"
    monkeypatch.setattr(layered_fit, "MOST_PIXEL_BYTES", 3 * 32 * 32 * 3)
    assert len(layered_fit._kept(iter(hashed(images)), 32, 0)[0]) == 3


def test_what_a_fit_refuses() -> None:
    with pytest.raises(TokenizerError, match="there is no image to fit a tokenizer to; expected at least 1"):
        fit_layered_kmeans([], LayeredFitConfig(**QUICK), 32, default_preprocess(32, "test-1"))
    with pytest.raises(TokenizerError, match=r"an image is uint8 \(16, 16, 3\); expected uint8 \(32, 32, 3\)"):
        fit_layered_kmeans(hashed(sample_images(1, 16)), LayeredFitConfig(**QUICK), 32, default_preprocess(32, "test-1"))
    for given, message in (
        ({"site": 12}, "--site is 12; expected 8, 16 or 32 pixels"),
        ({"size": 40, "site": 16}, "--size is 40; expected 32 to 1024 pixels, a multiple of --site 16"),
        ({"levels": 9}, "--levels is 9; expected 1 to 8"),
        ({"codes": 1}, "--codes is 1; expected 2 to 65536"),
    ):
        with pytest.raises(ConfigError, match=message):
            LayeredFitConfig(**given)


def test_one_image_and_flat_ones_are_enough() -> None:
    tokenizer, statistics = fit(sample_images(1, 32), codes=256)
    assert tokenizer.spec.vocabulary[0] <= 16 and "codes limited from 256 to 16" in statistics["notes"][0]
    flat = np.stack([np.full((32, 32, 3), grey, np.uint8) for grey in (0, 90, 255)])
    tokenizer, _ = fit(flat, codes=16)
    assert tokenizer.encode(flat).ids_BLQ.shape == (3, 16, 1)


def test_another_engine_or_lost_arrays_are_named() -> None:
    tokenizer = TestOneLevel.tokenizer
    tables = {**tokenizer.codebook(), **tokenizer.weights()}
    with pytest.raises(TokenizerError, match="engine 'torch'.*expected"):
        LayeredKMeans.from_saved(dataclasses.replace(tokenizer.spec, config={"site": 8, "engine": "torch"}), tables)
    with pytest.raises(TokenizerError, match="projection is missing"):
        LayeredKMeans.from_saved(tokenizer.spec, {name: table for name, table in tables.items() if name != "projection"})
    with pytest.raises(TokenizerError, match=r"layered-kmeans: centroids_1 is \[200, 40\]; expected \[200, 3\]"):
        LayeredKMeans.from_saved(tokenizer.spec, {**tables, "whitening_1": tables["whitening_1"][:, :3]})


def test_ids_tell_classes_apart_better_than_patches_of_their_size() -> None:
    """Textures of two kinds at random places and brightness: what a site holds is the kind, whatever its pixels are."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[0:32, 0:32]

    def drawn(kind: int) -> np.ndarray:
        phase, period = rng.uniform(0, 6), rng.uniform(3, 5)
        wave = np.sin((row if kind else column) * 2 * np.pi / period + phase)
        grey = rng.uniform(60, 190) + rng.uniform(20, 50) * wave[:, :, None] + rng.normal(0, 6, (32, 32, 3))
        return np.clip(grey, 0, 255).astype(np.uint8)

    kinds = np.arange(120) % 2
    images = np.stack([drawn(kind) for kind in kinds])
    tokenizer, _ = fit(images, codes=16, iterations=8)
    counts = np.stack([np.bincount(ids, minlength=16) for ids in tokenizer.encode(images).ids_BLQ[:, :, 0]])
    half = [counts[:60][kinds[:60] == kind].mean(axis=0) for kind in (0, 1)]
    guessed = np.abs(counts[60:, None] - np.array(half)).sum(axis=2).argmin(axis=1)
    assert (guessed == kinds[60:]).mean() > 0.95
