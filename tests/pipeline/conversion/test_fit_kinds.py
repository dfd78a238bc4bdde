"""The options of `fit-tokenizer` and of the fits of `tokenize`: which kind takes which, and what each kind does without them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tokenshards.pipeline.conversion.fit_kinds import CONFIGS, FitOptions, OwnFitOptions, open_fit
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig, LatentFitConfig, LayeredFitConfig, VqFitConfig

NAMES = [field.name for field in fields(FitOptions) if field.name not in ("kind", "sample", "seed")]


def options(kind: str = "patch-kmeans", **given: Any) -> FitOptions:
    return FitOptions(kind=kind, sample=5, seed=3, **given)


def taken(kind: str, name: str) -> bool:
    try:
        options(kind, **{name: 7})
    except ConfigError:
        return False
    return True


def test_each_option_belongs_to_a_kind_and_some_to_several() -> None:
    kinds = {name: [kind for kind in CONFIGS if taken(kind, name)] for name in NAMES}
    assert all(kinds.values()), kinds
    assert kinds["size"] == kinds["levels"] == kinds["codes"] == list(CONFIGS)
    assert kinds["site"] == ["layered-kmeans"]
    assert kinds["patch"] == ["patch-kmeans", "vq-autoencoder"] and kinds["beam"] == ["patch-kmeans"]
    assert kinds["encoder"] == kinds["decoder"] == kinds["mirrored"] == ["latent-kmeans"]
    assert kinds["perceptual_weights"] == kinds["learning_rate"] == ["vq-autoencoder"]


def test_an_option_of_another_kind_is_named_with_its_kinds() -> None:
    with pytest.raises(ConfigError, match=r"^--patch is 8, which belongs to --kind patch-kmeans, vq-autoencoder; --kind is latent-kmeans"):
        options("latent-kmeans", patch=8)
    with pytest.raises(
        ConfigError, match="^--kind is 'vqvae'; expected one of patch-kmeans, layered-kmeans, latent-kmeans, vq-autoencoder$"
    ):
        options("vqvae")


def test_what_was_not_given_is_the_default_of_the_kind() -> None:
    assert options().config(FitConfig) == FitConfig(sample=5, seed=3)
    assert options("latent-kmeans", encoder="e.pth", mirrored=True).config(LatentFitConfig) == LatentFitConfig(
        sample=5, seed=3, mirrored=True
    )
    assert options("vq-autoencoder", codes=64, perceptual="vgg11").config(VqFitConfig) == VqFitConfig(
        sample=5, seed=3, codes=64, perceptual="vgg11"
    )


@pytest.mark.parametrize("quantizer", ["fsq", "lfq"])
def test_a_quantizer_of_one_level_needs_no_levels(quantizer: str, tmp_path: Path) -> None:
    given = options("vq-autoencoder", quantizer=quantizer)
    open_fit(given, out=Store(str(tmp_path)), storage_options={}, say=print)
    with pytest.raises(ConfigError, match=f"--levels is 2; expected 1 to 1 for --quantizer {quantizer}"):
        given.config(VqFitConfig)


def test_tokenize_fits_two_kinds_itself() -> None:
    assert OwnFitOptions().own_config() == OwnFitOptions(kind="patch-kmeans").own_config() == FitConfig()
    assert OwnFitOptions(patch=8, levels=1, seed=3).own_config() == FitConfig(patch=8, levels=1, seed=3)
    given = OwnFitOptions(kind="layered-kmeans", site=16, sample=9)
    assert given.own_config() == LayeredFitConfig(site=16, sample=9), "one level where none was given"
    for kind in ("latent-kmeans", "vq-autoencoder", "vqvae", ""):
        with pytest.raises(ConfigError, match="expected one of patch-kmeans, layered-kmeans. The other kinds are fitted with"):
            OwnFitOptions(kind=kind)
