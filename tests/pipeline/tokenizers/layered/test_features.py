"""Patches, activations, pooling, the projection and the way back, against loops and general solvers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contracts.tokenizer_contract import sample_images
from tokenshards.pipeline.tokenizers.layered import neighbourhood_decoder
from tokenshards.pipeline.tokenizers.layered.agreement import RIDGE, Agreement, changed_copy
from tokenshards.pipeline.tokenizers.layered.features import EDGE, STRIDE, VIEWS, LayeredFeatures, PatchLayer, PatchRows, pooled
from tokenshards.pipeline.tokenizers.layered.neighbourhood_decoder import RIDGE as DECODER_RIDGE
from tokenshards.pipeline.tokenizers.layered.neighbourhood_decoder import DecoderFit, NeighbourhoodDecoder


def mirrored(place: int, size: int) -> int:
    return -place if place < 0 else 2 * (size - 1) - place if place >= size else place


@pytest.mark.parametrize("view", VIEWS)
def test_a_patch_lies_around_every_second_pixel_and_the_edge_is_mirrored(view: int) -> None:
    images, side = sample_images(2, 16), 16 // view
    seen = images.astype(np.float32).reshape(2, side, view, side, view, 3).mean(axis=(2, 4))
    rows, last = PatchRows(16, view), side // 2 - 1
    found = np.stack([rows(image).copy() for image in images])  # the memory of one image serves the next
    assert found.shape == (2, (side // 2) ** 2, 108) and found.dtype == np.float32
    for number, row, column in ((0, 0, 0), (1, 1, last), (0, last, last), (1, last, 0)):
        for down, right in ((0, 0), (5, 5), (2, 4)):
            place = [mirrored(STRIDE * at - EDGE + step, side) for at, step in ((row, down), (column, right))]
            values = found[number, row * (side // 2) + column].reshape(6, 6, 3)[down, right]
            np.testing.assert_allclose(values, seen[number][tuple(place)], rtol=1e-6)


def random_layer(view: int, centroids: int = 7) -> PatchLayer:
    rng = np.random.default_rng(view)
    return PatchLayer(*(rng.normal(size=shape).astype(np.float32) for shape in ((108,), (108, 5), (centroids, 5))))


def test_activations_are_those_of_the_formula() -> None:
    layer, images = random_layer(VIEWS[0]), sample_images(1, 32)
    patches = PatchRows(32, VIEWS[0])(images[0])
    whitened = (patches.astype(np.float64) / 255 - layer.centre_D) @ layer.whitening_DW.astype(np.float64)
    distance = np.sqrt(np.square(whitened[:, None] - layer.centroids_KW).sum(axis=2))
    expected = np.maximum(0, distance.mean(axis=1, keepdims=True) - distance)
    np.testing.assert_allclose(activations(layer, patches), expected, rtol=1e-3, atol=1e-3)


def activations(layer: PatchLayer, patches: np.ndarray) -> np.ndarray:
    found = np.full((len(patches), len(layer.centroids_KW)), np.nan, np.float32)
    mean = layer.distances(patches, found)
    return mean[:, None] - found


def windows(values: np.ndarray, step: int) -> np.ndarray:
    """Return the mean over the square of 2 * step around each site of step values a side; the edge is repeated."""
    half, sites = step // 2, len(values) // step
    wide = np.pad(values, ((half, half), (half, half), (0, 0)), mode="edge")
    rows = [[wide[row * step :][: 2 * step, column * step :][:, : 2 * step] for column in range(sites)] for row in range(sites)]
    return np.array([[window.mean(axis=(0, 1)) for window in row] for row in rows]).reshape(sites * sites, -1)


@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_site_is_the_mean_over_twice_its_side(step: int) -> None:
    values = np.random.default_rng(0).random((16, 16, 2)).astype(np.float32)
    np.testing.assert_allclose(pooled(values, step), windows(values, step), rtol=1e-5)


def test_sites_join_the_activations_of_all_layers() -> None:
    images, layers = sample_images(2, 32), tuple(random_layer(view, 7 - number) for number, view in enumerate(VIEWS))
    sites = LayeredFeatures(8, layers, np.zeros((13, 0), np.float32)).sites(images)
    assert sites.shape == (2, 16, 13)
    for image in range(2):
        expected = []
        for layer, view in zip(layers, VIEWS, strict=True):
            side = 16 // view
            values = activations(layer, PatchRows(32, view)(images[image])).reshape(side, side, -1)
            expected.append(windows(values, 4 // view))
        np.testing.assert_allclose(np.square(sites[image]), np.concatenate(expected, axis=1), rtol=1e-3, atol=1e-3)


def test_the_projection_solves_the_generalised_eigenproblem() -> None:
    rng = np.random.default_rng(0)
    mixing, agreement, sites, pairs = rng.normal(size=(6, 6)), Agreement(6), [], []
    for _ in range(40):
        own, copy = (rng.normal(size=(3, 4, 6)) @ mixing for _ in range(2))
        agreement.add(own.reshape(1, 12, 6).astype(np.float32), copy.reshape(1, 12, 6).astype(np.float32), (3, 4))
        sites.append(own.reshape(12, 6))
        for row in range(3):
            for column in range(4):  # the copy is mirrored
                pairs += [own[row, column] - copy[row, 3 - (column - 1)]] if column else []
                pairs += [own[row, column] - copy[row - 1, 3 - column]] if row else []
    total = np.cov(np.concatenate(sites).T, bias=True)
    apart = np.array(pairs) / np.sqrt(2)
    within = apart.T @ apart / len(apart) + RIDGE * np.trace(total) / 6 * np.eye(6)
    found = agreement.projection(3).astype(np.float64)
    np.testing.assert_allclose(found.T @ within @ found, np.eye(3), atol=2e-3)
    values, _ = np.linalg.eig(np.linalg.solve(within, total))
    np.testing.assert_allclose(np.diag(found.T @ total @ found), np.sort(values.real)[::-1][:3], rtol=1e-3)


def test_a_copy_is_mirrored_and_changed_in_colour_alone() -> None:
    image = sample_images(1, 32)[0]
    copies = [changed_copy(image, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(copies[0], copies[1])
    assert not np.array_equal(copies[0], copies[2]) and copies[0].dtype == np.uint8
    one, other = (np.corrcoef(image[:, ::step].mean(axis=2).ravel(), copies[0].mean(axis=2).ravel())[0, 1] for step in (-1, 1))
    assert one > 0.9 and one > other


def test_the_way_back_is_that_of_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, grid, width = np.random.default_rng(0), (2, 3), 4
    vectors = rng.normal(1, 1, size=(60, 6, width)).astype(np.float32)
    patches = rng.integers(0, 256, (60, 6, 5)).astype(np.uint8)
    design = np.zeros((60 * 6, 9 * width))
    for image in range(60):
        for row in range(2):
            for column in range(3):
                for place, (down, right) in enumerate((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)):
                    there = row + down, column + right
                    if 0 <= there[0] < 2 and 0 <= there[1] < 3:
                        columns = slice(place * width, (place + 1) * width)
                        design[image * 6 + row * 3 + column, columns] = vectors[image, there[0] * 3 + there[1]]
    centred, target = design - design.mean(axis=0), patches.reshape(-1, 5) - patches.reshape(-1, 5).mean(axis=0)
    ridge = DECODER_RIDGE * np.trace(centred.T @ centred) / centred.shape[1]
    full = np.linalg.solve(centred.T @ centred + ridge * np.eye(centred.shape[1]), centred.T @ target)

    def decoder() -> NeighbourhoodDecoder:
        fit = DecoderFit(width, 5)
        for start in range(0, 60, 25):
            fit.add(vectors[start : start + 25], patches[start : start + 25], grid)
        return fit.decoder()

    found = decoder()(vectors, grid).reshape(-1, 5)
    np.testing.assert_allclose(found, centred @ full + patches.reshape(-1, 5).mean(axis=0), rtol=2e-3, atol=0.5)  # float16

    def penalty(weights: np.ndarray) -> float:
        return float(np.square(centred @ weights - target).sum() + ridge * np.square(weights).sum())

    monkeypatch.setattr(neighbourhood_decoder, "RANK", 2)
    small = decoder()
    own = small.weights_FR.astype(np.float64) @ small.basis_RD
    assert small.weights_FR.shape == (9 * width, 2)
    for _ in range(50):  # no other basis of two vectors does better
        other, _ = np.linalg.qr(rng.normal(size=(5, 2)))
        assert penalty(own) <= penalty(full @ other @ other.T) * 1.0001
