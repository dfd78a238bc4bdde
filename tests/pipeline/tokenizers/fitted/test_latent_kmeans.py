from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.pipeline.tokenizers import taesd_reference
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Tokenizer
from tokenshards.pipeline.tokenizers.config import LatentFitConfig
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.fitted.latent_fit import fit_latent_kmeans
from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import LatentEncoder, LatentKMeans, open_encoder

SIZE = 32


def encoder(*, decodes: bool = True) -> LatentEncoder:
    decoder = taesd_reference.random_state("decoder", pooled=False) if decodes else None
    return LatentEncoder(taesd_reference.random_state("encoder"), decoder)


def preprocess(size: int = SIZE) -> Preprocess:
    return Preprocess(size=size, decoder="test-1")


def make(levels: int = 1, *, decodes: bool = True) -> LatentKMeans:
    latents_NC = encoder().encode(sample_images(6, SIZE, seed=3)).flatten(0, 1).numpy()
    rng = np.random.default_rng(0)
    tables = [latents_NC[rng.choice(len(latents_NC), 20, replace=False)] * np.float32(0.4**q) for q in range(levels)]
    return LatentKMeans(encoder(decodes=decodes), tables, preprocess=preprocess())


def hashed(images: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(hashlib.sha256(image.tobytes()).hexdigest(), image) for image in images]


def fit(images: np.ndarray, **config: object) -> tuple[LatentKMeans, dict]:
    settings = LatentFitConfig(size=SIZE, **config)  # type: ignore[arg-type]
    return fit_latent_kmeans(hashed(images), encoder(), settings, preprocess())


class TestOneLevel(TokenizerContract):
    min_reencode_agreement = 0.0  # its networks are random: nothing leads back
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make()


class TestTwoLevelsWithoutDecoder(TestOneLevel):
    def make_tokenizer(self) -> Tokenizer:
        return make(2, decodes=False)


def test_ids_are_those_of_the_published_names() -> None:
    """Residual nearest rows the slow way, in float64, on latents of plain tensor operations."""
    tokenizer, images = make(2), sample_images(11, SIZE)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    rest = taesd_reference.encode(taesd_reference.random_state("encoder"), pixels).flatten(2).transpose(1, 2).double().numpy()
    ids = tokenizer.encode(images).ids_BLQ
    for q, table in enumerate(tokenizer.codebook().values()):
        distance = np.square(rest[:, :, None] - table.astype(np.float64)).sum(axis=3)
        nearest = distance.argmin(axis=2)
        close = np.sort(distance, axis=2)
        clear = close[:, :, 1] - close[:, :, 0] > 1e-3 * close[:, :, 1]
        assert clear.mean() > 0.95 and np.array_equal(ids[:, :, q][clear], nearest[clear])
        rest = rest - table[ids[:, :, q]]


def test_images_are_those_of_the_published_names() -> None:
    tokenizer, images = make(), sample_images(9, SIZE)
    tokens = tokenizer.encode(images)
    latents = torch.from_numpy(tokenizer.codebook()["level_0"][tokens.ids_BLQ[:, :, 0]]).transpose(1, 2).reshape(9, 4, 4, 4)
    pixels = taesd_reference.decode(taesd_reference.random_state("decoder", pooled=False), latents)
    expected = (pixels.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(tokenizer.decode(tokens).astype(float) - expected).max() <= 1


def test_neighbours_and_batch_size_move_no_id() -> None:
    tokenizer, images = make(2), sample_images(19, SIZE)
    whole = tokenizer.encode(images).ids_BLQ
    alone = np.concatenate([tokenizer.encode(images[index : index + 1]).ids_BLQ for index in range(19)])
    assert np.array_equal(whole, alone) and np.array_equal(tokenizer.encode(images[::-1]).ids_BLQ[::-1], whole)


def test_a_fit_depends_on_the_images_and_not_on_their_order() -> None:
    images = sample_images(24, SIZE)
    first, statistics = fit(images, codes=12, levels=2)
    second, again = fit(images[::-1], codes=12, levels=2)
    assert first.spec.fingerprint == second.spec.fingerprint and statistics == again
    assert fit(images[:-1], codes=12, levels=2)[0].spec.fingerprint != first.spec.fingerprint
    assert statistics["images"] == 24 and statistics["latents"] == 24 * 16 and len(statistics["levels"]) == 2
    assert all(level["codes"] == 12 and level["dead_codes"] == 0 and "psnr_db" in level for level in statistics["levels"])
    assert len(statistics["embedding"]["mean"]) == len(statistics["embedding"]["std"]) == 4


def test_mirror_images_double_the_latents_and_few_of_them_limit_the_codes() -> None:
    _, plain = fit(sample_images(24, SIZE), codes=64)
    _, mirrored = fit(sample_images(24, SIZE), codes=64, mirrored=True)
    assert plain["levels"][0]["codes"] == 16 and plain["notes"] == ["codes limited from 64 to 16: one for each 25 of 384 latents"]
    assert mirrored["latents"] == 2 * plain["latents"] and mirrored["levels"][0]["codes"] == 30


def test_no_image_is_one_sentence() -> None:
    with pytest.raises(TokenizerError, match="there is no image to fit a tokenizer to"):
        fit(sample_images(0, SIZE))


def test_without_a_decoder_nothing_is_drawn(tmp_path: Path) -> None:
    save_tokenizer(make(decodes=False), Store(str(tmp_path)))
    loaded = load_tokenizer(Store(str(tmp_path)))
    with pytest.raises(DecodeNotSupported, match="fitted without --decoder"):
        loaded.decode(TokenBatch(np.zeros((1, 16, 1), np.uint8)))


def test_the_fingerprint_covers_the_weights(tmp_path: Path) -> None:
    one = make()
    state = taesd_reference.random_state("encoder")
    state["14.bias"] = state["14.bias"] + 1e-3
    other = LatentKMeans(
        LatentEncoder(state, taesd_reference.random_state("decoder", pooled=False)), list(one.codebook().values()), preprocess=preprocess()
    )
    assert one.spec.codebook == other.spec.codebook and one.spec.fingerprint != other.spec.fingerprint
    store = Store(str(tmp_path))
    assert sorted(save_tokenizer(one, store)) == ["codebook.safetensors", "tokenizer.json", "weights.safetensors"]


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    torch.save(taesd_reference.random_state("encoder"), tmp_path / "encoder.pth")
    torch.save({"state_dict": taesd_reference.random_state("decoder", channels=8)}, tmp_path / "decoder.pth")
    first, second = str(tmp_path / "encoder.pth"), str(tmp_path / "decoder.pth")
    with pytest.raises(TokenizerError, match="the encoder has 4 channels and the decoder does not"):
        open_encoder(first, second)
    with pytest.raises(TokenizerError, match="no tensor 14.weight"):
        open_encoder(second, None)
    broken = taesd_reference.random_state("encoder")
    del broken["7.conv.2.bias"]
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(TokenizerError, match=r"broken\.pth: the key 7\.conv\.2\.bias is missing"):
        open_encoder(str(tmp_path / "broken.pth"), None)
    with pytest.raises(TokenizerError, match="size 36 and tables of .* multiple of 8"):
        LatentKMeans(encoder(), [np.zeros((3, 4), np.float32)], preprocess=preprocess(36))
