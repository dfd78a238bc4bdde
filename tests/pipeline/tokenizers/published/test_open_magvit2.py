from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.pipeline.tokenizers import open_magvit2_reference as reference
from tests.pipeline.tokenizers.published_states import State, pixels
from tokenshards.pipeline.conversion.import_checkpoint import open_published
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.published.open_magvit2 import OpenMagvit2, sign_tables

SIZE = 32


@cache
def checkpoint(signs: int = 18) -> State:
    return reference.random_state(signs=signs)


def write(path: Path, **changes: Tensor | None) -> str:
    """Save it as Lightning does, with moving averages that differ from the parameters, and what its losses leave behind."""
    state = {key: value for key, value in {**checkpoint(), **changes}.items() if value is not None}
    averages = {f"model_ema.{key.replace('.', '')}": value for key, value in state.items()}
    noisy = {key: value + 0.3 for key, value in state.items()}
    rest = {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones(()), "loss.discriminator.main.0.bias": torch.ones(3)}
    torch.save({"state_dict": {**noisy, **averages, **rest}, "epoch": 270, "callbacks": {}}, path)
    return str(path)


def make(signs: int = 18, **config: Any) -> OpenMagvit2:
    settings = ImportConfig(**{"size": SIZE, **config})
    return OpenMagvit2.from_checkpoint(checkpoint(signs), settings, decoder="test-1", where="memory")


def published(ids_BLQ: np.ndarray) -> np.ndarray:
    low, high = np.moveaxis(ids_BLQ.astype(np.int64), -1, 0)
    return low + 512 * high


def away(ids_BL: np.ndarray, numbers_BLD: Tensor) -> float:
    """Share of the signs that are clear and differ."""
    clear = (numbers_BLD.abs() > 1e-4 * numbers_BLD.std()).numpy()
    bits = (ids_BL[..., None] >> np.arange(numbers_BLD.shape[-1])) & 1
    return float((bits != (numbers_BLD > 0).numpy())[clear].mean())


class TestContract(TokenizerContract):
    min_reencode_agreement = 0.0  # its networks are random: nothing leads back
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make()


class TestOneGroup(TestContract):
    def make_tokenizer(self) -> Tokenizer:
        return make(signs=8)


def test_a_published_file_gives_the_ids_of_plain_operations(tmp_path: Path) -> None:
    tokenizer, images = open_published("open-magvit2", write(tmp_path / "x.ckpt"), ImportConfig(size=SIZE)), sample_images(13, SIZE)
    ids = tokenizer.encode(images).ids_BLQ
    assert ids.dtype == np.uint16 and tokenizer.spec.vocabulary == (512, 512) and tokenizer.spec.layout.grid == (8, 8)
    numbers = reference.encode(checkpoint(), pixels(images) * 2 - 1)
    assert away(published(ids), numbers) == 0.0
    assert (published(ids) == reference.published_ids(numbers).numpy()).mean() > 0.99 and len(np.unique(published(ids))) > 200


def test_ids_are_the_signs_and_their_vectors_too() -> None:
    images = sample_images(13, SIZE)
    ids, tables = make().encode(images).ids_BLQ, make().codebook()
    vectors = np.concatenate([tables[f"level_{q}"][ids[:, :, q]] for q in range(2)], axis=-1)
    numbers = reference.encode(checkpoint(), pixels(images) * 2 - 1)
    assert vectors.shape == (13, 64, 18) and (vectors == np.where(numbers > 0, 1, -1)).mean() > 0.999
    assert [table.shape for table in sign_tables(14)] == [(128, 7), (128, 7)] and sign_tables(3)[0][5].tolist() == [1, -1, 1]


@pytest.mark.parametrize("quirk", reference.QUIRKS)
def test_each_quirk_decides_ids(quirk: str) -> None:
    images = sample_images(13, SIZE)
    without = reference.encode(checkpoint(), pixels(images) * 2 - 1, without=quirk)
    assert away(published(make().encode(images).ids_BLQ), without) > 0.02


def test_pixels_run_from_minus_1_to_1() -> None:
    images = sample_images(13, SIZE)
    assert away(published(make().encode(images).ids_BLQ), reference.encode(checkpoint(), pixels(images))) > 0.02
    preprocess = make(size=None).spec.preprocess
    assert (preprocess.size, preprocess.short_side, preprocess.colour_range) == (256, 256, (-1.0, 1.0))


def test_images_are_those_of_plain_operations_with_each_quirk() -> None:
    images = sample_images(9, SIZE)
    ids = make().encode(images).ids_BLQ
    bits = (published(ids)[..., None] >> np.arange(18)) & 1
    signs = torch.from_numpy(bits * 2 - 1).float().transpose(1, 2).reshape(9, 18, 8, 8)
    shown = make().decode(TokenBatch(ids)).astype(float)

    def difference(without: str) -> float:
        drawn = reference.decode(checkpoint(), signs, without)
        return float(np.abs(shown - (((drawn + 1) / 2).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()).max())

    assert difference("") <= 1 and np.ptp(shown) > 200
    for quirk in reference.DECODER_QUIRKS:
        assert difference(quirk) > (2 if quirk == "unbiased spread" else 8), quirk


def test_moving_averages_are_taken_unless_told_otherwise(tmp_path: Path) -> None:
    path, images = write(tmp_path / "x.ckpt"), sample_images(5, SIZE)
    plain = open_published("open-magvit2", path, ImportConfig(size=SIZE, ema=False))
    averages = open_published("open-magvit2", path, ImportConfig(size=SIZE))
    assert np.array_equal(averages.encode(images).ids_BLQ, make().encode(images).ids_BLQ)
    assert (plain.encode(images).ids_BLQ == averages.encode(images).ids_BLQ).mean() < 0.9


def test_there_are_no_codes_to_keep() -> None:
    with pytest.raises(TokenizerError, match="its ids are signs without a table"):
        make().keep([1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.down.0.block.0.conv1.bias": torch.ones(32)}, r"encoder\.down\.0\.block\.0\.conv1\.bias is not a part of this network"),
        ({"encoder.mid_block.0.norm1.bias": None}, r"encoder\.mid_block\.0\.norm1\.bias is missing"),
        ({"decoder.adaptive.1.beta.bias": None}, r"decoder\.adaptive\.1\.beta\.bias is missing"),
        ({"encoder.conv_in.weight": torch.ones(32, 3, 1, 3, 3)}, r"no tensor encoder\.conv_in\.weight of 4 dimensions"),
        ({"quant_conv.weight": torch.ones(1)}, r"quant_conv\.weight is not a part of a open-magvit2 checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence_with_file_and_key(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=rf"x\.ckpt: .*{message}"):
        open_published("open-magvit2", write(tmp_path / "x.ckpt", **changes), ImportConfig(size=SIZE))
