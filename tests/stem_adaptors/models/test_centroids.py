"""Features and centroids of patches against slow references, and the model that predicts them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.stem_adaptors.augment.layouts import grid, ids_of, keys_of, pyramid, sequence, spec_of, tables_of
from tests.stem_adaptors.models.test_masked import MODEL
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import Layout
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models import centroids as module
from tokenshards.stem_adaptors.models.centroids import PatchCentroids, lloyd
from tokenshards.stem_adaptors.models.masked import MaskedTokenModel, build_masked_model
from tokenshards.stem_adaptors.models.masks import MaskDraws

LAYOUTS = {"two levels": grid(6, 6, 2), "not square, odd": grid(5, 8), "side by side": grid(4, 6, 2, combine="concat")}
CONFIG = MaskConfig(targets="centroids", centroids=9, decoder_depth=1)
FEATURES = replace(CONFIG, targets="features")


def made(layout: Layout, samples: int = 40, config: MaskConfig = CONFIG) -> tuple[MaskedTokenModel, PatchCentroids, torch.Tensor]:
    spec = spec_of(layout)
    tables = tables_of(spec)
    model = build_masked_model(spec, tables, None, MODEL, config, None)
    centroids, ids_BLQ = model.centroids, ids_of(spec, samples).long()
    assert centroids is not None
    centroids.fit(ids_BLQ, [torch.from_numpy(table) for table in tables.values()], concat=layout.combine == "concat")
    return model, centroids, ids_BLQ


def centroids_of(centroids: PatchCentroids, ids_BLQ: torch.Tensor) -> torch.Tensor:
    return centroids.nearest(centroids.features(ids_BLQ))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST", 12)
    monkeypatch.setattr(module, "DIRECTIONS", 5)
    monkeypatch.setattr(module, "WINDOW_CHANNELS", 6)
    monkeypatch.setattr(module, "FIT_ROWS", 900)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_patch_gets_the_nearest_centroid_of_its_features(name: str) -> None:
    """Features site by site, from the code vectors, with what the fit found."""
    layout = LAYOUTS[name]
    _, centroids, ids_BLQ = made(layout)
    spec = spec_of(layout)
    tables = [np.asarray(table, float) for table in tables_of(spec).values()]
    height, width = layout.grid
    step_y, step_x = centroids.step
    first, bias = centroids.first_FC.numpy().astype(float), centroids.bias_C.numpy().astype(float)
    products = [getattr(centroids, f"products_{level}").numpy().astype(float) for level in range(len(tables))]
    count = len(bias)
    found, projections = centroids_of(centroids, ids_BLQ[:3]), centroids.features(ids_BLQ[:3])
    for sample in range(3):
        near = np.zeros((height, width, len(first)))
        for y, x in itertools.product(range(height), range(width)):
            window = -bias.copy()
            for corner, (down, right) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                site = min(y + down, height - 1) * width + min(x + right, width - 1)
                for level in range(len(tables)):
                    window += products[level][ids_BLQ[sample, site, level], corner * count : (corner + 1) * count]
            distance = np.sqrt(np.maximum(0, np.square(window - first).sum(1)))
            near[y, x] = np.maximum(0, distance.mean() - distance)
        rows, columns = -(-height // step_y), -(-width // step_x)
        pooled = np.stack(
            [
                near[r * step_y : (r + 1) * step_y, c * step_x : (c + 1) * step_x].mean((0, 1))
                for r, c in itertools.product(range(rows), range(columns))
            ]
        ).reshape(rows, columns, -1)
        for patch, (r, c) in enumerate(itertools.product(range(rows), range(columns))):
            around = [pooled[min(max(r + a, 0), rows - 1), min(max(c + b, 0), columns - 1)] for a in (-1, 0, 1) for b in (-1, 0, 1)]
            features = np.sqrt(np.mean(around, axis=0))
            projected = (features - centroids.mean_F.numpy()) @ centroids.directions_FE.numpy()
            assert projections[sample, patch].numpy() == pytest.approx(projected, abs=1e-3)
            assert found[sample, patch] == np.square(projected - centroids.centroids_KE.numpy()).sum(1).argmin()


@pytest.mark.parametrize("name", LAYOUTS)
def test_windows_are_white(name: str) -> None:
    """The windows of the fitting samples have mean 0 and, but for what is added to the eigenvalues, variance 1 in each direction."""
    _, centroids, ids_BLQ = made(LAYOUTS[name], 300)
    windows_RC = centroids._windows(ids_BLQ).flatten(0, 2)
    assert windows_RC.mean(0).abs().max() < 0.2
    covariance = torch.cov(windows_RC.T)
    assert (covariance.diagonal() - 1).abs().max() < 0.3 and (covariance - covariance.diagonal().diag()).abs().max() < 0.25


def test_the_fit_is_that_of_its_seed_and_all_of_it_is_in_the_state() -> None:
    model, centroids, ids_BLQ = made(LAYOUTS["two levels"])
    again, other, _ = made(LAYOUTS["two levels"])
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in centroids.state_dict().items())
    fresh = build_masked_model(spec_of(LAYOUTS["two levels"]), tables_of(spec_of(LAYOUTS["two levels"])), None, MODEL, CONFIG, None)
    fresh.load_state_dict(model.state_dict())
    assert fresh.centroids is not None and torch.equal(centroids_of(fresh.centroids, ids_BLQ), centroids_of(centroids, ids_BLQ))
    assert len(centroids_of(centroids, ids_BLQ).unique()) > 5
    patches = {tuple(ids_BLQ[b, sites].flatten().tolist()) for b in range(len(ids_BLQ)) for sites in model.sites_NP}
    assert all(tuple(example.flatten().tolist()) in patches for example in centroids.examples_KPQ), "examples are patches of the samples"


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loss_is_that_of_the_centroids_of_hidden_patches(name: str) -> None:
    layout = LAYOUTS[name]
    model, centroids, ids_BLQ = made(layout)
    ids_BLQ = ids_BLQ[:5]
    masks = MaskDraws(CONFIG, layout, model.backbone.patch_embed)(keys_of(5))
    with torch.no_grad():
        x = model.embedding(ids_BLQ)
        found = model(x, ids_BLQ, masks)
        head: Any = model.head
        logits = head.linear(model.decode(x, masks))
        nll_BN = -logits.log_softmax(-1).gather(2, centroids_of(centroids, ids_BLQ)[..., None])[..., 0]
        for sample in range(5):
            own = nll_BN[sample][masks.masked_BN[sample]]
            assert float(found.loss_B[sample]) == pytest.approx(float(own.mean()), rel=1e-4)
            assert found.sums_B3[sample, 1:].tolist() == [len(own), pytest.approx(float(own.sum()), rel=1e-4)]
        best = model.best_ids(x, masks)
    patch = 2
    sites = [site for site in model.sites_NP[patch].tolist() if site >= 0]
    assert torch.equal(best[0, sites], centroids.examples_KPQ[logits[0, patch].argmax()][: len(sites)])


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loss_is_the_squared_error_of_the_features_of_hidden_patches(name: str) -> None:
    layout = LAYOUTS[name]
    model, centroids, ids_BLQ = made(layout, config=FEATURES)
    ids_BLQ = ids_BLQ[:5]
    masks = MaskDraws(FEATURES, layout, model.backbone.patch_embed)(keys_of(5))
    with torch.no_grad():
        x = model.embedding(ids_BLQ)
        found = model(x, ids_BLQ, masks)
        head: Any = model.head
        predicted = head.linear(model.decode(x, masks)).numpy().astype(float) * centroids.std_E.numpy()
        wanted = centroids.features(ids_BLQ).numpy().astype(float)
        best = model.best_ids(x, masks)
    variance = np.square(centroids.std_E.numpy().astype(float)).mean()
    errors_BN = np.square(predicted - wanted).mean(2) / variance
    table = centroids.centroids_KE.numpy().astype(float)
    distances_BNK = np.square(predicted[:, :, None] - table).sum(3)
    nearest_BN = np.square(wanted[:, :, None] - table).sum(3).argmin(2)
    weights_BNK = np.exp(-distances_BNK / (2 * variance))
    nll_BN = -np.log(np.take_along_axis(weights_BNK, nearest_BN[..., None], 2)[..., 0] / weights_BNK.sum(2))
    for sample in range(5):
        hidden = masks.masked_BN[sample].numpy()
        assert float(found.loss_B[sample]) == pytest.approx(errors_BN[sample][hidden].mean(), rel=1e-4)
        hits = (distances_BNK[sample].argmin(1) == nearest_BN[sample])[hidden].sum()
        assert found.sums_B3[sample].tolist() == [hits, hidden.sum(), pytest.approx(nll_BN[sample][hidden].sum(), rel=1e-3)]
    sites = [site for site in model.sites_NP[2].tolist() if site >= 0]
    assert torch.equal(best[0, sites], centroids.examples_KPQ[distances_BNK[0, 2].argmin()][: len(sites)])


def test_the_mean_of_all_patches_has_a_loss_of_one() -> None:
    _, centroids, ids_BLQ = made(LAYOUTS["two levels"])
    features_RE = centroids.features(ids_BLQ).flatten(0, 1)
    assert features_RE.mean(0).abs().max() < 1e-3 * features_RE.std()
    assert float(centroids.squared_errors(torch.zeros_like(features_RE), features_RE).mean()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("ids", ["one sample", "one colour", "one image often"])
def test_few_or_equal_samples_give_numbers(name: str, ids: str) -> None:
    model, centroids, ids_BLQ = made(LAYOUTS[name], config=FEATURES)
    ids_BLQ = {
        "one sample": ids_BLQ[:1],
        "one colour": ids_BLQ[:, :1].expand_as(ids_BLQ),
        "one image often": ids_BLQ[:1].expand_as(ids_BLQ),
    }[ids]
    centroids.fit(ids_BLQ, [table.detach() for table in model.embedding.tables()], concat=model.embedding.concat)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in centroids.state_dict().values())
    masks = MaskDraws(FEATURES, LAYOUTS[name], model.backbone.patch_embed)(keys_of(1))
    found = model(model.embedding(ids_BLQ[:1]), ids_BLQ[:1], masks)
    found.loss_B.sum().backward()
    assert bool(torch.isfinite(found.loss_B).all()) and bool(torch.isfinite(model.mask_token).all())


@pytest.mark.parametrize("samples", [1, 40])
def test_a_grid_of_one_patch_has_centroids(samples: int) -> None:
    _, centroids, ids_BLQ = made(grid(2, 2), samples)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in centroids.state_dict().values())
    assert torch.isfinite(centroids.features(ids_BLQ)).all()


def test_code_vectors_of_thousands_of_channels_are_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of 32 x 32 pixels have 3,072 channels: windows of four sites would have 12,288, too many for an eigenvalue problem."""
    layout, sizes = LAYOUTS["two levels"], []
    model, centroids, ids_BLQ = made(layout)
    expected = centroids._windows(ids_BLQ).flatten(0, 2)
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (sizes.append(len(matrix)), eigh(matrix))[1])
    tables = [torch.from_numpy(table) for table in tables_of(spec_of(layout)).values()]
    turned_DX = torch.linalg.qr(torch.randn(3072, tables[0].shape[1], generator=torch.Generator().manual_seed(1)))[0].T
    centroids.fit(ids_BLQ, [table_VD @ turned_DX for table_VD in tables], concat=False)
    assert max(sizes) <= 4 * module.MOST_CHANNELS
    found = centroids._windows(ids_BLQ).flatten(0, 2)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=1e-2, atol=0.05)


def test_lloyd_steps_never_get_worse() -> None:
    rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))

    def error(steps: int) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "LLOYD_STEPS", steps)
            found = lloyd(rows, 8, torch.Generator().manual_seed(1))
        return float(torch.cdist(rows, found).amin(1).square().mean())

    errors = [error(steps) for steps in (0, 1, 3, 12)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("layout", [sequence(12), pyramid((1, 1), (4, 4)), grid(6, 6, variable=True)], ids=str)
def test_layouts_without_a_plane_are_refused(layout: Layout) -> None:
    spec = spec_of(layout)
    for config in (CONFIG, FEATURES):
        with pytest.raises(ConfigError, match=f"mask.targets is '{config.targets}' in a layout of kind"):
            build_masked_model(spec, tables_of(spec), None, MODEL, config, None)
