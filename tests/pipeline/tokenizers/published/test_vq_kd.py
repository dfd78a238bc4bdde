from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.pipeline.tokenizers import vq_kd_reference as reference
from tests.pipeline.tokenizers.published_states import State, agreement, pixels, table_from
from tokenshards.pipeline.conversion.import_checkpoint import open_published
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Tokenizer
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.published.vq_kd import VqKd

SIZE = 32
TABLE = "quantize.embedding.weight"


def vectors(images: np.ndarray, without: str = "") -> Tensor:
    return reference.encode(checkpoint(), pixels(images) * 2 - 1, without)


@cache
def checkpoint() -> State:
    state = reference.random_state()
    return {**state, TABLE: table_from(reference.encode(state, pixels(sample_images(24, SIZE, seed=5)) * 2 - 1), 40)}


def write(path: Path, **changes: Tensor | None) -> str:
    """Save it as it is published: under `model`, with teacher, decoder and the counts of its training."""
    junk = {
        "decoder.cls_token": torch.ones(1),
        "decode_task_layer.0.weight": torch.ones(1),
        "teacher_model.visual.proj": torch.ones(1),
        "scaling_layer.shift": torch.ones(1),
        "quantize.cluster_size": torch.ones(40),
        "quantize.embedding.cluster_size": torch.ones(40),
        "quantize.embedding.embed_avg": torch.ones(40, 8),
        "quantize.embedding.initted": torch.ones(1),
    }
    state = {key: value for key, value in {**checkpoint(), **junk, **changes}.items() if value is not None}
    torch.save({"model": state, "epoch": 99, "scaler": {"scale": 1.0}}, path)
    return str(path)


def make(**config: Any) -> VqKd:
    return VqKd.from_checkpoint(checkpoint(), ImportConfig(**config), decoder="test-1", where="memory")


class TestContract(TokenizerContract):
    min_reencode_agreement = 0.0  # there is no way back to pixels
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make()


def test_a_published_file_gives_the_codes_of_plain_operations(tmp_path: Path) -> None:
    tokenizer, images = open_published("vq-kd", write(tmp_path / "x.pth"), ImportConfig()), sample_images(27, SIZE)
    ids = tokenizer.encode(images).ids_BLQ[:, :, 0]
    assert agreement(ids, vectors(images), checkpoint()[TABLE], "l2") == 1.0
    assert len(np.unique(ids)) > 10 and tokenizer.spec.layout.grid == (2, 2)


@pytest.mark.parametrize("quirk", reference.QUIRKS)
def test_each_quirk_decides_codes(quirk: str) -> None:
    images = sample_images(27, SIZE)
    assert agreement(make().encode(images).ids_BLQ[:, :, 0], vectors(images, quirk), checkpoint()[TABLE], "l2") < 0.9


def test_rows_are_compared_as_they_are_and_the_range_never_depends_on_the_batch() -> None:
    images, table = sample_images(27, SIZE), checkpoint()[TABLE]
    ids = make().encode(images).ids_BLQ[:, :, 0]
    assert agreement(ids, vectors(images), table, "cosine") < 0.9
    dark = (images // 128).astype(np.uint8)  # its own code takes values up to 1 for pixels that are already from 0 to 1
    assert agreement(make().encode(dark).ids_BLQ[:, :, 0], vectors(dark), table, "l2") == 1.0
    assert agreement(ids, reference.encode(checkpoint(), pixels(images)), table, "l2") < 0.9
    state = {**checkpoint(), "encoder.pos_embed": torch.zeros(1, 197, 128)}
    preprocess = VqKd.from_checkpoint(state, ImportConfig(), decoder="test-1", where="memory").spec.preprocess
    assert (preprocess.size, preprocess.short_side, preprocess.filter, preprocess.colour_range) == (224, 256, "bicubic", (-1.0, 1.0))


def test_the_task_layer_is_float32_whatever_the_rest_is() -> None:
    images = sample_images(27, SIZE)
    same = (make(dtype="bfloat16").encode(images).ids_BLQ == make().encode(images).ids_BLQ).mean()
    assert 0.8 < same <= 1


def test_there_is_no_way_back_to_pixels() -> None:
    with pytest.raises(DecodeNotSupported, match="its decoder gives features of its teacher"):
        make().decode(TokenBatch(np.zeros((1, 4, 1), np.uint8)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.blocks.1.attn.q_bias": None}, r"the key encoder\.blocks\.1\.attn\.q_bias is missing"),
        ({"encoder.blocks.0.attn.k_bias": torch.ones(128)}, r"encoder\.blocks\.0\.attn\.k_bias is not a part of this network"),
        ({"encoder.norm.weight": torch.ones(128)}, r"encoder\.norm\.weight is not a part of this network"),
        ({"encode_task_layer.2.bias": torch.ones(9)}, r"encode_task_layer\.2\.bias has another shape: \(9,\), expected \(8,\)"),
        ({"encoder.pos_embed": torch.ones(1, 7, 128)}, "7 positions and patches of 16 pixels"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence_with_file_and_key(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=rf"x\.pth: .*{message}"):
        open_published("vq-kd", write(tmp_path / "x.pth", **changes), ImportConfig())
