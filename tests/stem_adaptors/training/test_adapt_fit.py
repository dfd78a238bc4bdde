"""The fit of TokenAdapt: deterministic, bit-equal after a kill, and better than moving the grid where a mirror image changes the codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.stem_adaptors.augment.layouts import keys_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import PatchKMeans, default_preprocess, fit_patch_kmeans
from tokenshards.stem_adaptors.augment.adapt_maps import MapRanges, random_maps, resampled_pixels
from tokenshards.stem_adaptors.training.adapt_fidelity import MOVES, WAYS, fidelity_of, right_ids
from tokenshards.stem_adaptors.training.adapt_fit import STATE_NAME, AdaptFit, central_ids
from tokenshards.stem_adaptors.training.adapt_fit_config import AdaptFitConfig

SMALL = AdaptFitConfig(width=16, heads=1, epochs=2, batch=4, share=0.75)


class Killed(Exception):
    """Stands for the death of the process."""


def images_of(count: int, side: int = 16) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    ramps = np.linspace(0, 255, side)[None, :, None] * rng.uniform(0.2, 1, (count, 1, 1, 3)) * rng.choice([1, -1], (count, 1, 1, 1))
    return [(f"{number:03d}", (image % 255).astype(np.uint8).repeat(side, 0)) for number, image in enumerate(ramps)]


@pytest.fixture(scope="module")
def tokenizer() -> PatchKMeans:
    images = iter(images_of(40))
    return fit_patch_kmeans(images, FitConfig(size=16, codes=12, iterations=4), 16, default_preprocess(16, DECODER))[0]


def fit_of(tokenizer: PatchKMeans, config: AdaptFitConfig = SMALL, images: Any = None, **changes: Any) -> AdaptFit:
    def encode(pixels: np.ndarray) -> Any:
        return tokenizer.encode(pixels).ids_BLQ

    images = images_of(22) if images is None else images
    return AdaptFit(tokenizer.spec, tokenizer.codebook(), encode, images, config, device=torch.device("cpu"), **changes)


def weights_of(fit: AdaptFit) -> dict[str, torch.Tensor]:
    return fit.adapter.state_dict()


@pytest.mark.parametrize("views", [0, 1])
def test_a_fit_is_deterministic_and_goes_on_after_a_kill(
    tokenizer: PatchKMeans, views: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of each step is written here, and the process dies in the middle of the second epoch."""
    config = replace(SMALL, views=views)
    whole = fit_of(tokenizer, config, images=images_of(22)[::-1])
    whole.run(None)
    monkeypatch.setattr("tokenshards.stem_adaptors.training.adapt_fit.SAVE_SECONDS", 0.0)
    killed, steps = fit_of(tokenizer, config), 0

    def die(point: str) -> None:
        nonlocal steps
        steps += point == "after-adapt-step"
        if steps == 8:
            raise Killed

    store = Store(str(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("tokenshards.stem_adaptors.training.adapt_fit.crash_point", die)
        killed.run(store)
    again, said = fit_of(tokenizer, config), list[dict[str, Any]]()
    again.run(store, said.append)
    assert again.step == whole.step == 2 * 5 and [report["epoch"] for report in said] == [2], "only the second epoch was trained again"
    assert again.reports == whole.reports
    assert all(torch.equal(tensor, weights_of(again)[name]) for name, tensor in weights_of(whole).items())


def test_a_stopped_fit_gets_more_epochs(tokenizer: PatchKMeans, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    short = fit_of(tokenizer)
    short.run(store)
    longer, said = fit_of(tokenizer, replace(SMALL, epochs=4)), list[dict[str, Any]]()
    longer.run(store, said.append)
    assert [report["epoch"] for report in said] == [3, 4] and longer.reports[:2] == short.reports


def test_the_state_of_another_fit_is_refused(tokenizer: PatchKMeans, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fit_of(tokenizer).run(store)
    with pytest.raises(
        ConfigError, match=rf"{STATE_NAME}: a fit with other options, images or another tokenizer stopped here after 2 epochs"
    ):
        fit_of(tokenizer, images=images_of(21)).run(store)


def test_pairs_are_the_ids_of_moved_images(tokenizer: PatchKMeans) -> None:
    fit = fit_of(tokenizer)
    chosen_B = np.array([3, 0])
    maps_B23, _, targets_BNQ = fit._pairs(5, chosen_B)
    ranges = MapRanges(crop=0.5)
    assert torch.equal(maps_B23, random_maps(keys_of(4, seed=0, epoch=5)[torch.from_numpy(chosen_B)], ranges, (4, 4)))
    moved = resampled_pixels(torch.from_numpy(fit._pixels_MHWC[chosen_B]), maps_B23).numpy()
    whole = tokenizer.encode(moved).ids_BLQ.reshape(2, 4, 4, 2)
    assert fit.adapter.sizes.out_grid == (4, 4) or fit.adapter.sizes.out_grid == (2, 2)
    rows, columns = fit.adapter.sizes.out_grid
    edge = (4 - rows) // 2
    np.testing.assert_array_equal(targets_BNQ.numpy(), whole[:, edge : edge + rows, edge : edge + columns].reshape(2, -1, 2))


def test_mirror_images_are_samples_in_turns(tokenizer: PatchKMeans, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a mirror image another map leads to the same result."""
    monkeypatch.setattr("tokenshards.stem_adaptors.training.adapt_fit.MOST_MIRRORED", 4)
    fit, chosen_B = fit_of(tokenizer), np.array([0, 1, 2, 3, 4, 5])
    fit.run(None)
    maps_B23, _, _ = fit._pairs(5, chosen_B)
    pixels_BHWC = fit._pixels_MHWC[chosen_B]
    wanted = resampled_pixels(torch.from_numpy(pixels_BHWC), maps_B23).int()
    for again, mirrored in ((0, [1, 3]), (1, [0, 2])):
        ids_BLQ, own_B23 = fit._sources(again, chosen_B, maps_B23)
        sources_BHWC = pixels_BHWC.copy()
        sources_BHWC[mirrored] = sources_BHWC[mirrored][:, :, ::-1]
        np.testing.assert_array_equal(ids_BLQ.numpy(), tokenizer.encode(sources_BHWC).ids_BLQ)
        assert (resampled_pixels(torch.from_numpy(sources_BHWC), own_B23).int() - wanted).abs().max() <= 1


def test_a_fit_learns_what_a_mirror_does_to_codes(tokenizer: PatchKMeans) -> None:
    """In ramps from left to right a mirrored patch has another code, which moving ids never gives."""
    config = AdaptFitConfig(width=32, heads=1, epochs=12, batch=4, learning_rate=5e-3, share=1.0)
    fit = fit_of(tokenizer, config, images_of(40), held_out=8)
    fit.run(None)
    assert fit.reports[-1]["loss"] < fit.reports[0]["loss"]
    right = right_ids(fit.adapter, tokenizer.spec, tokenizer.codebook(), lambda pixels: tokenizer.encode(pixels).ids_BLQ, fit.held_out_MHWC)
    found = fidelity_of(right)
    assert set(found) == set(MOVES) and all(set(ways) == set(WAYS) for ways in found.values())
    mirrored = found["flip"]
    assert mirrored["token_adapt"]["ids"] > max(mirrored["direct_sites"]["ids"], mirrored["direct_codes"]["ids"]) + 0.1
    for ways in found.values():
        for shares in ways.values():
            assert shares["ids"] == pytest.approx(np.mean(shares["levels"]), abs=1e-3) and shares["sites"] <= min(shares["levels"]) + 1e-9


def test_a_fit_learns_other_colours(tokenizer: PatchKMeans) -> None:
    config = AdaptFitConfig(width=32, heads=1, epochs=10, batch=8, learning_rate=1e-2, share=1.0, colour=0.4)
    fit = fit_of(tokenizer, config, images_of(160), held_out=40)
    fit.run(None)
    right = right_ids(fit.adapter, tokenizer.spec, tokenizer.codebook(), lambda pixels: tokenizer.encode(pixels).ids_BLQ, fit.held_out_MHWC)
    found = fidelity_of(right)["colour"]
    assert found["nothing"]["ids"] == pytest.approx(found["direct_sites"]["ids"]) and found["nothing"]["ids"] < 0.9, "codes did change"
    assert found["token_adapt"]["ids"] > found["nothing"]["ids"] + 0.03


def test_doing_nothing_is_right_where_nothing_moves(tokenizer: PatchKMeans, monkeypatch: pytest.MonkeyPatch) -> None:
    """With maps that move nothing all three ways beside TokenAdapt are right everywhere, which checks their windows."""
    identity = torch.eye(2, 3)
    monkeypatch.setattr(
        "tokenshards.stem_adaptors.training.adapt_fidelity.move_maps", lambda move, count, grid, seed: identity.expand(count, -1, -1)
    )
    fit = fit_of(tokenizer)
    right = right_ids(fit.adapter, tokenizer.spec, tokenizer.codebook(), lambda pixels: tokenizer.encode(pixels).ids_BLQ, fit.held_out_MHWC)
    assert right["flip"]["nothing"].min() == right["flip"]["direct_sites"].min() == 1
    assert right["flip"]["direct_codes"][:, 0].mean() > 0.9, "a greedy search of residual codes gives nearly the stored ids"


def test_settings_and_too_few_images_are_refused(tokenizer: PatchKMeans) -> None:
    for option, said in (({"epochs": 0}, "--epochs is 0"), ({"learning_rate": 0.0}, "--learning-rate"), ({"share": 1.5}, "--share is 1.5")):
        with pytest.raises(ConfigError, match=said):
            AdaptFitConfig(**option)
    with pytest.raises(ConfigError, match="1 image to fit on; expected at least 2"):
        fit_of(tokenizer, images=images_of(1))
    assert central_ids(
        np.arange(16).reshape(1, 16, 1), fit_of(tokenizer, AdaptFitConfig(width=16, share=0.5)).adapter
    ).ravel().tolist() == [5, 6, 9, 10]
