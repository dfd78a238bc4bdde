"""Keys, augmentations, embeddings and classifiers on a device: random numbers bit for bit those of the CPU, and no wait for the GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pipeline.shards.samples import LAYOUTS
from tests.stem_adaptors.augment.layouts import grid, keys_of, spec_of, tables_of
from tests.stem_adaptors.augment.test_transform import EVERYTHING, batch_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import Layout
from tokenshards.stem_adaptors.augment import SampleKeys, TokenTransform, allowed_augmentations
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, build_classifier
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding
from tokenshards.stem_adaptors.objectives.accuracy import Counts

SAMPLES = 24
MODEL = ModelConfig(name="vit_nano", width=16, depth=2, heads=2)


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Let what makes the host wait for a GPU be an error."""
    if device.type != "cuda":
        yield
        return
    with warnings.catch_warnings():  # that it does not see every wait
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_random_numbers_are_those_of_the_cpu_bit_for_bit(device: torch.device) -> None:
    keys = keys_of(100, start=(1 << 32) - 50)  # positions on both sides of 32 bits
    there = SampleKeys(keys.seed, keys.epoch, keys.positions_B.to(device))
    for draw in (
        lambda keys: keys.words("a", 7),
        lambda keys: keys.uniform("b", 5),
        lambda keys: keys.integers("c", 1000, 3),
        lambda keys: keys.integers("d", keys.positions_B[:, None] % 7 + 1, 2),
        lambda keys: keys.normal("e", 9),
        lambda keys: keys.chosen("f", 0.3),
        lambda keys: keys[3:9].words("g", 2),
    ):
        found: Tensor = draw(there)
        assert found.device == device and torch.equal(found.cpu(), draw(keys))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_all_augmentations_are_those_of_the_cpu_and_wait_for_nothing(layout: Layout, device: torch.device) -> None:
    spec = spec_of(layout)
    config = allowed_augmentations(spec, EVERYTHING)
    batch = batch_of(spec, SAMPLES)
    expected = TokenTransform(spec, tables_of(spec), config, 5, 0.1)(Lookup(TokenEmbedding(spec, tables_of(spec))), batch)
    transform, model = TokenTransform(spec, tables_of(spec), config, 5, 0.1), Lookup(TokenEmbedding(spec, tables_of(spec)).to(device))
    there = batch.to(device)
    transform(model, there)  # constants go to the device once, and ids of the first batch are looked at
    with no_waiting(device):
        found = transform(model, there)
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None and theirs is not None:
            assert ours.device == device
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)
        else:
            assert ours is theirs is None


def test_ids_of_every_stored_dtype_are_looked_up(device: torch.device) -> None:
    spec = spec_of(grid(6, 5, 2))
    embedding = TokenEmbedding(spec, tables_of(spec))
    ids_BLQ = batch_of(spec, SAMPLES).ids_BLQ
    expected = embedding(ids_BLQ)
    for dtype in (torch.uint8, torch.uint16, torch.uint32, torch.int64):
        found = TokenEmbedding(spec, tables_of(spec)).to(device)(ids_BLQ.to(dtype).to(device))
        assert found.device == device and torch.equal(found.cpu(), expected) and found.stride() == expected.stride()
    with pytest.raises(ConfigError, match="the vocabulary has 0 to"):
        TokenEmbedding(spec, tables_of(spec)).to(device)((ids_BLQ + 100).to(device))


@pytest.mark.parametrize("learned", [False, True])
def test_a_step_forward_and_back_is_that_of_the_cpu_and_waits_for_nothing_where_the_table_is_fixed(
    learned: bool, device: torch.device
) -> None:
    spec = spec_of(grid(12, 12, 2))
    config = allowed_augmentations(spec, EVERYTHING)
    batch = batch_of(spec, SAMPLES)
    model_config = ModelConfig(name="vit_nano", width=16, depth=2, heads=2, learned_codebook=learned)

    def step(model: TokenClassifier, transform: TokenTransform, batch: Any, counts: Counts) -> Tensor:
        loss_B, logits_BC = transform.answers(model, transform.inputs(model, batch))
        loss_B.mean().backward()
        counts.add(logits_BC.detach(), batch.labels_B, batch.weights_B, loss_B.detach())
        return logits_BC.detach()

    found = []
    for place in (torch.device("cpu"), device):
        transform = TokenTransform(spec, tables_of(spec), config, 5, 0.1)
        model = build_classifier(spec, tables_of(spec), None, model_config, 5, transform.out_grid).to(place)
        counts = Counts(5, place)
        step(model, transform, batch.to(place), counts)
        model.zero_grad()
        moved = batch.to(place)
        with nullcontext() if learned else no_waiting(place):  # torch's own gradient of a table may wait
            logits_BC = step(model, transform, moved, counts)
        gradient = torch.cat([p.grad.cpu().flatten() for p in model.parameters() if p.grad is not None])
        found.append((logits_BC.cpu(), gradient, counts.sums.cpu()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=5e-3, atol=5e-3)  # the stem is a convolution: TF32
    assert (found[1][1] - found[0][1]).norm() < 0.02 * found[0][1].norm()
    torch.testing.assert_close(found[1][2][:2], found[0][2][:2], rtol=5e-3, atol=0.05)


def test_a_video_classifier_and_one_of_rows_of_varying_size_run(device: torch.device) -> None:
    for name in ("video", "sequence_variable", "grid_variable", "pyramid"):
        spec = spec_of(LAYOUTS[name])
        batch = batch_of(spec, SAMPLES)
        logits = []
        for place in (torch.device("cpu"), device):
            model = build_classifier(spec, tables_of(spec), None, MODEL, 5).eval().to(place)
            with torch.inference_mode():
                there = batch.to(place)
                logits.append(model(there.ids_BLQ, mask_BL=there.mask_BL, shapes_BD=there.shapes_BD).cpu())
        torch.testing.assert_close(logits[1], logits[0], rtol=5e-3, atol=5e-3)
