"""Every layout from image files to a trained classifier: tokenize, shards, reader, stem adaptor, one epoch; each part the real one.

Shapes: B samples, L sites, Q ids per site, T frames, H x W grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.contracts.tokenizer_contract import token_rows
from tests.datasets import call_cli, convert, write_images
from tests.inline import InlineRunner
from tests.pipeline.tokenizers import open_magvit2_reference, toys
from tests.stem_adaptors.training.small_runs import KeptReporter, request_for
from tokenshards.pipeline.images.decode import decode_image
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.registry import temporary_family
from tokenshards.stem_adaptors.augment import TokenTransform
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.config import AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.defaults import default_configs
from tokenshards.stem_adaptors.training.trainer import Trainer

SIDE, IMAGES, BATCH_ROWS = 32, 40, 8
MODEL = ModelConfig(name="vit_nano", width=16, depth=1, heads=2, learned_codebook=True)
TOYS = {
    "sequence of varying length": toys.VariableSequenceToy,
    "grid of varying size": toys.VariableGridToy,
    "video": toys.FilmStripToy,
    "video of varying length": toys.VariableFilmStripToy,
    "pyramid": toys.PyramidToy,
}
RAGGED = ("sequence of varying length", "grid of varying size", "video of varying length")
LEVELS = {"residual": 3, "several codebooks": 2}
ALL = (*TOYS, *LEVELS)
KINDS = {"sequence": "sequence", "grid": "grid", "video": "video", "pyramid": "pyramid", "residual": "grid", "several": "grid"}


@dataclass(frozen=True)
class Made:
    """A dataset with the tokenizer that made it."""

    place: Path
    dataset: TokenDataset
    tokenizer: Any
    cache: Path

    def trainer(self, out: Path, **parts: Any) -> Trainer:
        """A training of one epoch with the augmentations that `train` takes by default for this dataset."""
        augment = default_configs(self.dataset)["augment"]
        fields = {"model": MODEL, "augment": augment, "epochs": 1, "warmup_epochs": 0.0, "lr": 1e-2, **parts}
        request = request_for(self.dataset, out, self.cache, **fields)
        return Trainer(request, Ranks(), torch.device("cpu"), KeptReporter())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colourful files of three classes, flat ones, and ones whose lower half is black, so that rows differ in size in every layout."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, IMAGES - 12, side=SIDE)
    for index, level in enumerate(np.linspace(30, 250, 12)):
        pixels = np.full((SIDE, SIDE, 3), level, np.uint8)
        pixels[SIDE // 2 :] *= index % 2
        Image.fromarray(pixels).save(folder / f"class_{index % 3}" / f"flat_{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def make(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return the dataset of a layout, made once."""
    folder, made = tmp_path_factory.mktemp("layouts"), {}
    sizes = {"batch_rows": BATCH_ROWS, "shard_rows": 2 * BATCH_ROWS}

    def tokenize(layout: str) -> Made:
        place = folder / layout.replace(" ", "-")
        out = place / "tokens"
        if layout in TOYS:
            toy = TOYS[layout]
            with temporary_family(toy.family, f"{toy.__module__}:{toy.__qualname__}"):  # in this process: a worker would not know it
                save_tokenizer(toy(), Store(str(place / "tokenizer")))
                convert(images, out, tokenizer=str(place / "tokenizer"), runner=InlineRunner(), **sizes)
            return Made(out, open_dataset(str(out), verify=True), toy(), place / "cache")
        if layout == "residual":
            convert(images, out, fit=FitConfig(size=SIDE, codes=16, levels=3, iterations=4), **sizes)
        else:
            place.mkdir(parents=True)
            torch.save({"state_dict": open_magvit2_reference.random_state(signs=18)}, place / "x.ckpt")
            words = ("--kind", "open-magvit2", "--size", str(SIDE), "--no-decoder")
            call_cli("import", "tokenizer", str(place / "x.ckpt"), str(place / "tokenizer"), *words)
            convert(images, out, tokenizer=str(place / "tokenizer"), **sizes)
        dataset = open_dataset(str(out), verify=True)
        return Made(out, dataset, load_tokenizer(dataset.store, "tokenizer"), place / "cache")

    yield lambda layout: made[layout] if layout in made else made.setdefault(layout, tokenize(layout))


def whole_batch(trainer: Trainer) -> Batch:
    """All samples as the loader of the training gives them."""
    return next(trainer.loader.epoch(0))


def classify(model: TokenClassifier, batch: Batch) -> Tensor:
    model.eval()
    with torch.inference_mode():
        logits_BC: Tensor = model(batch.ids_BLQ.long(), mask_BL=batch.mask_BL, shapes_BD=batch.shapes_BD)
    return logits_BC


def loss_and_gradients(trainer: Trainer, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    trainer.model.zero_grad()
    torch.manual_seed(0)
    loss_B, _ = trainer.objective(batch)
    loss_B.mean().backward()
    found = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters() if parameter.grad is not None}
    return loss_B.detach(), found


@pytest.mark.parametrize("layout", ALL)
def test_shards_hold_what_encode_gives(layout: str, make: Any, images: Path) -> None:
    made = make(layout)
    spec, seen, sizes = made.dataset.spec, 0, set()
    assert spec.layout.kind == KINDS[layout.split()[0]] and spec.layout.variable == (layout in RAGGED)
    assert spec.layout.ids_per_site == LEVELS.get(layout, 1)
    for batch in made.dataset.batches(BATCH_ROWS):
        files = [(images / sample_id).read_bytes() for sample_id in batch.sample_ids]
        encoded = made.tokenizer.encode(np.stack([decode_image(data, spec.preprocess).pixels_HWC for data in files]))
        assert token_rows(batch.tokens) == token_rows(encoded)
        seen += len(files)
        sizes.update((len(ids), str(shape)) for ids, shape in token_rows(encoded))
    assert seen == IMAGES and (len(sizes) > 1) == (layout in RAGGED)
    assert len(np.unique(np.concatenate([batch.ids_BLQ.ravel() for batch in made.dataset.batches(BATCH_ROWS)]))) > 8, "ids follow pixels"


@pytest.mark.parametrize("layout", ALL)
def test_an_epoch_trains_and_the_run_evaluates(layout: str, make: Any, tmp_path: Path) -> None:
    made = make(layout)
    trainer = made.trainer(tmp_path / "run")
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    record = trainer.fit().record
    assert np.isfinite(record["train_loss"]) and record["step"] == IMAGES // 16
    for name, parameter in trainer.model.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[name]), name
    assert "top-1" in call_cli("evaluate", str(tmp_path / "run"), str(made.place))[0]


@pytest.mark.parametrize("layout", ["sequence of varying length", "video", "residual", "several codebooks"])
def test_the_command_trains(layout: str, make: Any, tmp_path: Path) -> None:
    settings = [word for name in ("width=16", "depth=1", "heads=2") for word in ("--set", f"model.{name}")]
    words = ("--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "16", "--device", "cpu", *settings)
    call_cli("train", str(make(layout).place), *words)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"train_loss"') == 1


# Padding


@pytest.mark.parametrize("layout", RAGGED)
def test_what_stands_in_the_padding_moves_neither_loss_nor_gradient(layout: str, make: Any, tmp_path: Path) -> None:
    made = make(layout)
    trainer = made.trainer(tmp_path / "run", loader={"batch_size": IMAGES})
    batch, vocabulary = whole_batch(trainer), made.dataset.spec.vocabulary[0]
    assert batch.mask_BL is not None
    padded_BL1 = ~batch.mask_BL[..., None]
    assert 0.05 < padded_BL1.float().mean() < 0.9 and bool((batch.ids_BLQ[padded_BL1] == vocabulary).all())
    loss_B, gradients = loss_and_gradients(trainer, batch)
    noise_BLQ = torch.randint(0, vocabulary, batch.ids_BLQ.shape)
    changed = replace(batch, ids_BLQ=torch.where(padded_BL1, noise_BLQ, batch.ids_BLQ.long()))
    changed_loss_B, changed_gradients = loss_and_gradients(trainer, changed)
    assert torch.equal(changed_loss_B, loss_B) and changed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(changed_gradients[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    real = replace(batch, ids_BLQ=torch.where(padded_BL1, batch.ids_BLQ.long(), (batch.ids_BLQ.long() + 1) % vocabulary))
    moved_B = loss_and_gradients(trainer, real)[0] != loss_B
    assert moved_B.float().mean() > 0.9, "ids of real sites count"  # of fresh weights a loss may move by less than its rounding


@pytest.mark.parametrize("layout", RAGGED)
def test_a_sample_is_classified_the_same_beside_longer_ones(layout: str, make: Any, tmp_path: Path) -> None:
    trainer = make(layout).trainer(tmp_path / "run", loader={"batch_size": IMAGES})
    batch = whole_batch(trainer)
    together_BC = classify(trainer.model, batch)
    assert batch.lengths_B is not None
    for length in batch.lengths_B.unique().tolist():
        rows = torch.nonzero(batch.lengths_B == length)[:, 0]
        alone = batch[rows]  # type: ignore[index]
        alone = replace(alone, ids_BLQ=alone.ids_BLQ[:, :length])
        torch.testing.assert_close(classify(trainer.model, alone), together_BC[rows])


def test_a_prefix_is_a_sample(make: Any, tmp_path: Path) -> None:
    trainer = make("sequence of varying length").trainer(tmp_path / "run", loader={"batch_size": IMAGES})
    batch = whole_batch(trainer)
    shorter = replace(batch, ids_BLQ=batch.ids_BLQ[:, :3], lengths_B=batch.lengths_B.clamp(max=3))  # type: ignore[union-attr]
    logits_BC, cut_BC = classify(trainer.model, batch), classify(trainer.model, shorter)
    whole_B = batch.lengths_B <= 3  # type: ignore[operator]
    assert 0 < int(whole_B.sum()) < IMAGES
    torch.testing.assert_close(cut_BC[whole_B], logits_BC[whole_B])
    assert (cut_BC - logits_BC)[~whole_B].abs().amax(1).min() > 1e-6


# Levels, positions and time


@pytest.mark.parametrize(("layout", "level"), [(layout, level) for layout, count in LEVELS.items() for level in range(count)])
def test_every_level_decides(layout: str, level: int, make: Any, tmp_path: Path) -> None:
    made = make(layout)
    trainer = made.trainer(tmp_path / "run", loader={"batch_size": IMAGES})
    batch = whole_batch(trainer)
    shuffled_BLQ = batch.ids_BLQ.long().clone()
    shuffled_BLQ[..., level] = shuffled_BLQ[..., level].roll(1, dims=0)
    moved_B = (shuffled_BLQ != batch.ids_BLQ.long()).flatten(1).any(1)
    difference_B = (classify(trainer.model, replace(batch, ids_BLQ=shuffled_BLQ)) - classify(trainer.model, batch)).abs().amax(1)
    assert int(moved_B.sum()) > IMAGES // 2 and difference_B[moved_B].min() > 1e-6
    loss_and_gradients(trainer, batch)
    gradient = dict(trainer.model.named_parameters())[f"embedding.level_{level}"].grad
    assert gradient is not None and bool(gradient.any())


@pytest.mark.parametrize("layout", ["video", "video of varying length"])
def test_the_order_of_frames_counts(layout: str, make: Any, tmp_path: Path) -> None:
    trainer = make(layout).trainer(tmp_path / "run", loader={"batch_size": IMAGES})
    batch = whole_batch(trainer)
    assert trainer.model.backbone.grid == (4, 2, 4)
    frames_BTS = batch.ids_BLQ.long().unflatten(1, (4, 8))[..., 0]
    swapped_BTS = frames_BTS[:, [1, 0, 2, 3]]
    difference_B = (
        (classify(trainer.model, replace(batch, ids_BLQ=swapped_BTS.flatten(1)[..., None])) - classify(trainer.model, batch)).abs().amax(1)
    )
    differs_B = (frames_BTS[:, 0] != frames_BTS[:, 1]).any(1)
    if batch.shapes_BD is not None:
        differs_B &= batch.shapes_BD[:, 0] >= 2
    assert int(differs_B.sum()) > IMAGES // 2
    assert difference_B[differs_B].min() > 1e-6 and not difference_B[~differs_B & (frames_BTS[:, 0] == frames_BTS[:, 1]).all(1)].any()


def test_a_film_is_mirrored_from_left_to_right_in_all_frames_and_never_in_time(make: Any) -> None:
    dataset = make("video").dataset
    ids_BLQ = torch.from_numpy(next(dataset.batches(IMAGES)).ids_BLQ.astype(np.int64))
    augment = replace(AugmentConfig.off(), flip_prob=1.0, crop_share=1.0)
    places_B = torch.arange(IMAGES)
    batch = Batch(ids_BLQ, places_B, torch.ones(IMAGES), places_B, places_B, epoch=0, seed=0)
    model = Lookup(TokenEmbedding(dataset.spec, dataset.codebook()))
    flipped_BLQ = TokenTransform(dataset.spec, dataset.codebook(), augment, IMAGES).state(model, batch).ids_BLQ
    assert torch.equal(flipped_BLQ.long(), ids_BLQ.unflatten(1, (4, 2, 4)).flip(3).flatten(1, 3))
    assert not torch.equal(flipped_BLQ.long(), ids_BLQ)


@pytest.mark.parametrize(
    ("layout", "setting", "kind"),
    [
        ("sequence of varying length", "flip_prob=0.5", "sequence of varying size"),
        ("sequence of varying length", "crop_share=0.8", "sequence of varying size"),
        ("grid of varying size", "swap_prob=0.5", "grid of varying size"),
        ("video of varying length", "flip_prob=0.5", "video of varying size"),
        ("pyramid", "crop=rrc", "pyramid"),
    ],
)
def test_an_augmentation_that_does_not_fit_the_layout_is_refused(layout: str, setting: str, kind: str, make: Any, tmp_path: Path) -> None:
    words = ("--out", str(tmp_path / "run"), "--epochs", "1", "--device", "cpu", "--set", f"augment.{setting}")
    _, err = call_cli("train", str(make(layout).place), *words, expect=2)
    assert setting.partition("=")[0] in err and f"layout of kind {kind}" in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()
