from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.pipeline.tokenizers import maskgit_reference as reference
from tests.pipeline.tokenizers.published_states import State, agreement, pixels, table_from
from tokenshards.pipeline.conversion.import_checkpoint import open_published
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.published.maskgit import MaskGitVqgan

SIZE = 32
TABLE = "quantize.embedding.weight"


@cache
def checkpoint() -> State:
    state = reference.random_state()
    return {**state, TABLE: table_from(reference.encode(state, pixels(sample_images(12, SIZE, seed=5))), 40)}


def write(path: Path, **changes: Tensor | None) -> str:
    """Save it as it is published: a bare state dict."""
    torch.save({k: v for k, v in {**checkpoint(), **changes}.items() if v is not None}, path)
    return str(path)


def make(**config: object) -> MaskGitVqgan:
    settings = ImportConfig(**{"size": SIZE, **config})  # type: ignore[arg-type]
    return MaskGitVqgan.from_checkpoint(checkpoint(), settings, decoder="test-1", where="memory")


class TestContract(TokenizerContract):
    min_reencode_agreement = 0.0  # its networks are random: nothing leads back
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make()


def test_a_published_file_gives_the_codes_of_plain_operations(tmp_path: Path) -> None:
    tokenizer, images = open_published("maskgit", write(tmp_path / "x.bin"), ImportConfig(size=SIZE)), sample_images(13, SIZE)
    ids = tokenizer.encode(images).ids_BLQ[:, :, 0]
    assert agreement(ids, reference.encode(checkpoint(), pixels(images)), checkpoint()[TABLE], "l2") == 1.0
    assert tokenizer.spec.layout.grid == (8, 8) and len(np.unique(ids)) > 20


@pytest.mark.parametrize("quirk", reference.QUIRKS)
def test_each_quirk_decides_codes(quirk: str) -> None:
    images = sample_images(13, SIZE)
    without = reference.encode(checkpoint(), pixels(images), without=quirk)
    assert agreement(make().encode(images).ids_BLQ[:, :, 0], without, checkpoint()[TABLE], "l2") < 0.9


def test_distances_are_plain_and_pixels_run_from_0_to_1() -> None:
    images = sample_images(13, SIZE)
    ids = make().encode(images).ids_BLQ[:, :, 0]
    assert agreement(ids, reference.encode(checkpoint(), pixels(images)), checkpoint()[TABLE], "cosine") < 0.9
    assert agreement(ids, reference.encode(checkpoint(), pixels(images) * 2 - 1), checkpoint()[TABLE], "l2") < 0.9
    preprocess = MaskGitVqgan.from_checkpoint(checkpoint(), ImportConfig(), decoder="test-1", where="memory").spec.preprocess
    assert (preprocess.size, preprocess.resize, preprocess.filter, preprocess.colour_range) == (256, "crop", "bicubic", (0.0, 1.0))


def test_images_are_those_of_plain_operations() -> None:
    ids = np.random.default_rng(0).integers(0, 40, (9, 64, 1)).astype(np.uint8)
    rows = checkpoint()[TABLE][torch.from_numpy(ids[:, :, 0]).long()].transpose(1, 2).unflatten(2, (8, 8))
    shown = make().decode(TokenBatch(ids)).astype(float)

    def away(drawn: Tensor) -> float:
        return float(np.abs(shown - (drawn.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()).max())

    assert away(reference.decode(checkpoint(), rows)) <= 1 and np.ptp(shown) > 200
    assert away(reference.decode(checkpoint(), rows, without="shortcut of the output")) > 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.down.0.block.0.conv1.bias": torch.ones(32)}, r"down\.0\.block\.0\.conv1\.bias is not a part of this network"),
        (
            {"encoder.down.2.block.0.nin_shortcut.weight": torch.ones(64, 32, 1, 1)},
            r"another shape: \(64, 32, 1, 1\), expected \(64, 64, 1, 1\)",
        ),
        ({"encoder.mid.0.norm2.bias": None}, r"encoder\.mid\.0\.norm2\.bias is missing"),
        ({"encoder.down.1.block.0.conv1.weight": None}, r"no tensor encoder\.down\.1\.block\.0\.conv1\.weight"),
        ({"quant_conv.weight": torch.ones(1)}, r"quant_conv\.weight is not a part of a maskgit checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence_with_file_and_key(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=rf"x\.bin: .*{message}"):
        open_published("maskgit", write(tmp_path / "x.bin", **changes), ImportConfig(size=SIZE))


def test_a_side_that_strides_do_not_divide_is_refused() -> None:
    with pytest.raises(TokenizerError, match="size 30; expected a multiple of 4 pixels"):
        make(size=30)
