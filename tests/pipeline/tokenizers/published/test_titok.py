from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.pipeline.tokenizers import titok_reference as reference
from tests.pipeline.tokenizers.published_states import State, agreement, pixels, table_from
from tokenshards.pipeline.conversion.import_checkpoint import import_notes, open_published
from tokenshards.pipeline.errors import ConfigError, TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.published.titok import OneDPiece, TiTok

SIZE = 32
TABLE = "quantize.embedding.weight"
METRICS = {True: "cosine", False: "l2"}


@cache
def checkpoint(legacy: bool) -> State:
    state = reference.random_state(legacy=legacy)
    return {**state, TABLE: table_from(reference.encode(state, pixels(sample_images(24, SIZE, seed=5)), legacy=legacy), 40)}


def write(path: Path, legacy: bool, **changes: Tensor | None) -> str:
    """Save it as the hub has it, with a buffer that one way of training leaves behind."""
    state = {**checkpoint(legacy), "quantize.embed_prob": torch.ones(40), **changes}
    save_file({key: value.contiguous() for key, value in state.items() if value is not None}, path)
    return str(path)


def make(legacy: bool = True, kind: type[TiTok] = TiTok, **config: Any) -> TiTok:
    return kind.from_checkpoint(checkpoint(legacy), ImportConfig(**config), decoder="test-1", where="memory")


class TestLegacy(TokenizerContract):
    min_reencode_agreement = 0.0  # its networks are random: nothing leads back
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make()


class TestVq8k(TestLegacy):
    def make_tokenizer(self) -> Tokenizer:
        return make(legacy=False)


class TestOneDPiece(TestLegacy):
    def make_tokenizer(self) -> Tokenizer:
        return make(kind=OneDPiece, max_tokens=4)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_published_file_gives_the_codes_of_plain_operations(legacy: bool, tmp_path: Path) -> None:
    tokenizer, images = open_published("titok", write(tmp_path / "model.safetensors", legacy), ImportConfig()), sample_images(27, SIZE)
    ids = tokenizer.encode(images).ids_BLQ[:, :, 0]
    assert (
        agreement(ids, reference.encode(checkpoint(legacy), pixels(images), legacy=legacy), checkpoint(legacy)[TABLE], METRICS[legacy]) == 1
    )
    assert len(np.unique(ids)) > 20 and tokenizer.spec.layout.kind == "sequence" and not tokenizer.spec.layout.ordered


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("quirk", reference.QUIRKS)
def test_each_quirk_decides_codes(quirk: str, legacy: bool) -> None:
    if quirk == "unturned" and not legacy:
        pytest.skip("only the first family reads its latents unturned")
    images = sample_images(27, SIZE)
    without = reference.encode(checkpoint(legacy), pixels(images), legacy=legacy, without=quirk)
    assert agreement(make(legacy).encode(images).ids_BLQ[:, :, 0], without, checkpoint(legacy)[TABLE], METRICS[legacy]) < 0.9


@pytest.mark.parametrize("legacy", [True, False])
def test_how_rows_are_compared_and_pixels_run(legacy: bool) -> None:
    images, table = sample_images(27, SIZE), checkpoint(legacy)[TABLE]
    ids = make(legacy).encode(images).ids_BLQ[:, :, 0]
    plain = reference.encode(checkpoint(legacy), pixels(images), legacy=legacy)
    assert agreement(ids, plain, table, METRICS[not legacy]) < 0.9
    shifted = reference.encode(checkpoint(legacy), pixels(images) * 2 - 1, legacy=legacy)
    assert agreement(ids, shifted, table, METRICS[legacy]) < 0.9
    preprocess = make(legacy).spec.preprocess
    assert (preprocess.size, preprocess.resize, preprocess.filter, preprocess.colour_range) == (SIZE, "crop", "bicubic", (0.0, 1.0))


@pytest.mark.parametrize("legacy", [True, False])
def test_images_are_those_of_plain_operations(legacy: bool) -> None:
    ids = np.random.default_rng(0).integers(0, 40, (9, 6, 1)).astype(np.uint8)
    raw = checkpoint(legacy)[TABLE][torch.from_numpy(ids[:, :, 0]).long()]
    shown = make(legacy).decode(TokenBatch(ids)).astype(float)

    def away(rows: Tensor) -> float:
        drawn = reference.decode(checkpoint(legacy), rows, legacy=legacy)
        return float(np.abs(shown - (drawn.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()).max())

    unit = F.normalize(raw, dim=-1)
    assert away(unit if legacy else raw) <= 1 and np.ptp(shown) > 200
    assert away(raw if legacy else unit) > 8


def test_first_tokens_are_an_image_of_their_own(tmp_path: Path) -> None:
    images, whole, short = sample_images(9, SIZE), make(kind=OneDPiece), make(kind=OneDPiece, max_tokens=3)
    ids = whole.encode(images).ids_BLQ
    assert np.array_equal(short.encode(images).ids_BLQ, ids[:, :3]) and short.spec.layout.sites == 3
    assert short.spec.layout.ordered and short.spec.layout.prefix_decodable and short.spec.fingerprint != whole.spec.fingerprint
    rows = F.normalize(checkpoint(True)[TABLE][torch.from_numpy(ids[:, :3, 0]).long()], dim=-1)
    drawn = (reference.decode(checkpoint(True), rows, legacy=True).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(short.decode(TokenBatch(ids[:, :3])).astype(float) - drawn).max() <= 1
    save_tokenizer(short, Store(str(tmp_path)))
    assert np.array_equal(load_tokenizer(Store(str(tmp_path))).encode(images).ids_BLQ, ids[:, :3])


def test_without_its_decoder_the_family_is_still_known(tmp_path: Path) -> None:
    images = sample_images(9, SIZE)
    for legacy in (True, False):
        save_tokenizer(make(legacy, decoder=False), Store(str(tmp_path / str(legacy))))
        loaded = load_tokenizer(Store(str(tmp_path / str(legacy))))
        assert np.array_equal(loaded.encode(images).ids_BLQ, make(legacy).encode(images).ids_BLQ)


def longer(state: State, latents: int) -> State:
    parts = ("latent_tokens", "encoder.latent_token_positional_embedding", "decoder.latent_token_positional_embedding")
    return {key: value[:1].repeat(latents, 1) if key in parts else value for key, value in state.items()}


def test_titok_and_one_d_piece_are_told_apart_by_the_number_of_latents() -> None:
    for latents, right, wrong in ((256, OneDPiece, TiTok), (128, TiTok, OneDPiece)):
        state = longer(checkpoint(True), latents)
        with pytest.raises(TokenizerError, match=rf"it has {latents} latents and a pixel decoder, .* give --kind {right.family}$"):
            wrong.from_checkpoint(state, ImportConfig(), decoder="test-1", where="memory")
        assert import_notes(right.from_checkpoint(state, ImportConfig(), decoder="test-1", where="memory")) == []
    with pytest.raises(TokenizerError, match="no pixel decoder, as the vq8k TiToks have; one-d-piece does not.*give --kind titok"):
        make(legacy=False, kind=OneDPiece)
    assert import_notes(make(legacy=False)) == []
    (note,) = import_notes(make())
    assert "it has 6 latents, and the published checkpoints of titok have 32, 64, 128" in note


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="--max-tokens is 7; this checkpoint gives 6"):
        make(kind=OneDPiece, max_tokens=7)
    with pytest.raises(ConfigError, match="--max-tokens is 3; titok has no such choice"):
        make(max_tokens=3)
    with pytest.raises(ConfigError, match="--size is 64; titok has no such choice"):
        make(size=64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.transformer.1.attn.in_proj_bias": None}, r"the key encoder\.transformer\.1\.attn\.in_proj_bias is missing"),
        ({"latent_tokens": None}, "no tensor latent_tokens, the keys begin with"),
        ({"encoder.positional_embedding": torch.ones(6, 128)}, "encoder has 6 positions of 128 channels; expected a square and 1"),
        ({"pixel_decoder.conv_in.bias": None}, r"pixel_decoder\.conv_in\.bias is missing"),
        ({"pixel_quantize.embedding.weight": None}, r"no tensor pixel_quantize\.embedding\.weight"),
        ({"generator.weight": torch.ones(1)}, r"generator\.weight is not a part of a titok checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence_with_file_and_key(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=rf"x\.safetensors: .*{message}"):
        open_published("titok", write(tmp_path / "x.safetensors", True, **changes), ImportConfig())
