"""Views of samples: each shows its operation and nothing else; embeddings come back as the nearest ids."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import convert, write_images
from tests.pipeline.shards.test_dataset import build
from tests.stem_adaptors.augment.layouts import sequence, spec_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards import TokenDataset, TokenizerSpec, open_dataset
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.stem_adaptors.commands.augmented_views import augmented_views

OPERATIONS = ["synonyms", "block swap", "mirror", "resized crop", "noise", "ColorAdapt", "site dropout", "CutMix", "Mixup"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("views")
    write_images(folder / "src", 12)
    convert(folder / "src", folder / "out", fit=FitConfig(size=32, codes=16, iterations=4))
    return open_dataset(str(folder / "out"))


def tokens_of(dataset: TokenDataset, count: int) -> TokenBatch:
    batch = next(iter(dataset.batches(count)))
    return TokenBatch(batch.ids_BLQ)


class Bare:
    """A dataset without a codebook."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = dataclasses.replace(spec, codebook=None)

    def __len__(self) -> int:
        return 100

    def codebook(self) -> dict[str, np.ndarray]:
        return {}


def test_each_view_shows_its_operation(dataset: TokenDataset) -> None:
    tokens = tokens_of(dataset, 6)
    views = augmented_views(dataset, tokens, seed=8)
    assert [name.split("\n")[0] for name, _ in views] == ["tokens", *OPERATIONS, "all together"]
    captions = dict(name.split("\n") for name, _ in views)
    assert (captions["synonyms"], captions["noise"], captions["CutMix"]) == ("25% of images", "25% of images", "50% of mix groups")
    assert {name for name, caption in captions.items() if "off" in caption} == {"mirror", "ColorAdapt", "site dropout", "Mixup"}
    shown = {name.split("\n")[0]: view.ids_BLQ for name, view in views}
    original = shown["tokens"]
    assert original is tokens.ids_BLQ
    for name, ids_BLQ in shown.items():
        assert ids_BLQ.shape == original.shape and ids_BLQ.dtype == original.dtype, name
        assert name == "tokens" or (ids_BLQ != original).any(), name
    side = dataset.spec.layout.grid[0]
    planes = original.reshape(6, side, side, 2)
    np.testing.assert_array_equal(shown["mirror"].reshape(planes.shape), planes[:, :, ::-1])
    assert (shown["synonyms"] != original).mean() == pytest.approx(0.25, abs=0.08), "of the ids, in every image"
    for sample in range(6):
        assert sorted(map(tuple, shown["block swap"][sample])) == sorted(map(tuple, original[sample]))
    # Sites that nothing was done to keep what a greedy search gives for their own embedding: mostly the stored ids.
    same = {name: (shown[name] == original).all(2).mean() for name in ("CutMix", "site dropout", "noise")}
    assert same["site dropout"] > 0.6 and same["CutMix"] > 0.6 and 0.5 < same["noise"] < 0.85
    again = augmented_views(dataset, tokens, seed=8)
    assert all(np.array_equal(view.ids_BLQ, other.ids_BLQ) for (_, view), (_, other) in zip(views, again, strict=True))
    other = dict(augmented_views(dataset, tokens, seed=9))
    assert (other["noise\n25% of images"].ids_BLQ != shown["noise"]).any()


def test_mixing_shows_in_every_image_whatever_their_number_and_the_seed(dataset: TokenDataset) -> None:
    for count, seed in ((5, 8), (6, 8), (5, 0), (2, 3)):
        tokens = tokens_of(dataset, count)
        shown = {name.split("\n")[0]: view.ids_BLQ for name, view in augmented_views(dataset, tokens, seed=seed)}
        for name in ("CutMix", "Mixup"):
            assert shown[name].shape == tokens.ids_BLQ.shape
            changed = (shown[name] != shown["tokens"]).any(2).mean(1)
            assert (changed > 0).all(), (name, count, seed, changed)


def test_settings_and_recipes_of_train_are_shown(dataset: TokenDataset, tmp_path: Path) -> None:
    tokens = tokens_of(dataset, 4)

    def captions(**options: Any) -> list[str]:
        return [name for name, _ in augmented_views(dataset, tokens, **options)]

    assert "Mixup\n40% of mix groups" in captions(settings=["augment.mixup_alpha=0.8", "augment.cutmix_prob=0.8"])
    ops = "one_of(0.25*synonyms(), 0.25*swap()), rrc(share=0.5), 0.5*noise(std=2), 0.75*cutmix()"
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"from tokenshards.stem_adaptors.config import AugmentConfig\nAUGMENT = AugmentConfig(ops={ops!r})\n")
    expected = ["tokens\nas stored", "synonyms()\n25% of images", "swap()\n25% of images", "rrc(share=1.0)\n100% of images"]
    expected += ["noise(std=2)\n50% of images", "cutmix()\n75% of mix groups", "all together\nas in training"]
    assert captions(settings=[f"augment.ops={ops}"]) == captions(recipe=str(recipe))
    assert captions(settings=[f"augment.ops={ops}"]) == [line.replace("share=1.0", "share=0.5") for line in expected]
    with pytest.raises(ConfigError, match="no part 'model'"):
        captions(settings=["model.depth=1"])


def test_a_sequence_shows_what_it_has(tmp_path: Path) -> None:
    build(tmp_path, [8], "sequence")
    dataset = open_dataset(str(tmp_path))
    names = [name.split("\n")[0] for name, _ in augmented_views(dataset, tokens_of(dataset, 4))]
    assert names == ["tokens", "synonyms", "noise", "ColorAdapt", "site dropout", "Mixup", "all together"]


def test_without_a_codebook_only_ids_change(tmp_path: Path) -> None:
    build(tmp_path, [8], "grid_residual")
    dataset = open_dataset(str(tmp_path))
    assert dataset.spec.codebook is None
    names = [name.split("\n")[0] for name, _ in augmented_views(dataset, tokens_of(dataset, 4))]
    assert names == ["tokens", "block swap", "mirror"]


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    build(tmp_path, [8], "grid_variable")
    dataset = open_dataset(str(tmp_path))
    with pytest.raises(ConfigError, match="varying size"):
        augmented_views(dataset, tokens_of(dataset, 2))
    bare: Any = Bare(spec_of(sequence(5)))
    with pytest.raises(ConfigError, match="'sequence' and it has no codebook"):
        augmented_views(bare, TokenBatch(np.zeros((2, 5, 1), np.uint8)))
