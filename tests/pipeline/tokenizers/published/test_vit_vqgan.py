from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.pipeline.tokenizers import vit_vqgan_reference as reference
from tests.pipeline.tokenizers.published_states import State, agreement, pixels, table_from
from tokenshards.pipeline.conversion.import_checkpoint import open_published
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Tokenizer
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.published.vit_vqgan import VitVqgan

SIZE = 32
TABLE = "quantizer.embedding.weight"


@cache
def checkpoint() -> State:
    state = reference.random_state()
    return {**state, TABLE: table_from(reference.encode(state, pixels(sample_images(12, SIZE, seed=5))), 40)}


def write(path: Path, **changes: Tensor | None) -> str:
    """Save it as Lightning does, with what the losses of its training leave behind."""
    junk = {"loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 64, 1, 1), "loss.discriminator.blocks.0.0.weight": torch.ones(3)}
    state = {**checkpoint(), **junk, **changes}
    wrapped = {"epoch": 9, "pytorch-lightning_version": "1.5.0", "state_dict": {k: v for k, v in state.items() if v is not None}}
    torch.save({**wrapped, "hyper_parameters": {"image_size": 32}, "optimizer_states": [{"state": {0: torch.ones(2)}}]}, path)
    return str(path)


def make(**config: object) -> VitVqgan:
    return VitVqgan.from_checkpoint(checkpoint(), ImportConfig(**config), decoder="test-1", where="memory")  # type: ignore[arg-type]


class TestContract(TokenizerContract):
    min_reencode_agreement = 0.0  # its networks are random: nothing leads back
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make()


class TestContractOfKeptCodesWithoutDecoder(TestContract):
    def make_tokenizer(self) -> Tokenizer:
        return make(decoder=False).keep([3, 5, 8, 13, 21, 34, 39, 2, 17])


def test_a_published_file_gives_the_codes_of_plain_operations(tmp_path: Path) -> None:
    tokenizer, images = open_published("vit-vqgan", write(tmp_path / "vit.ckpt"), ImportConfig()), sample_images(21, SIZE)
    ids = tokenizer.encode(images).ids_BLQ[:, :, 0]
    assert agreement(ids, reference.encode(checkpoint(), pixels(images)), checkpoint()[TABLE], "cosine") == 1.0
    assert len(np.unique(ids)) > 20


@pytest.mark.parametrize("quirk", reference.QUIRKS)
def test_each_quirk_decides_codes(quirk: str) -> None:
    images = sample_images(21, SIZE)
    without = reference.encode(checkpoint(), pixels(images), without=quirk)
    assert agreement(make().encode(images).ids_BLQ[:, :, 0], without, checkpoint()[TABLE], "cosine") < 0.9


def test_rows_are_compared_at_length_1_and_pixels_run_from_0_to_1() -> None:
    images, table = sample_images(21, SIZE), checkpoint()[TABLE]
    ids = make().encode(images).ids_BLQ[:, :, 0]
    assert agreement(ids, reference.encode(checkpoint(), pixels(images)), table, "l2") < 0.9
    assert agreement(ids, reference.encode(checkpoint(), pixels(images) * 2 - 1), table, "cosine") < 0.9
    preprocess = make().spec.preprocess
    assert (preprocess.size, preprocess.resize, preprocess.filter, preprocess.colour_range) == (SIZE, "squash", "bicubic", (0.0, 1.0))
    assert make().spec.codebook is not None and not make().spec.codebook.rows_normalised  # the raw rows are what SeiT trains on


def test_images_are_those_of_plain_operations() -> None:
    ids = np.random.default_rng(0).integers(0, 40, (9, 16, 1)).astype(np.uint8)
    rows = checkpoint()[TABLE][torch.from_numpy(ids[:, :, 0]).long()]
    shown = make().decode(TokenBatch(ids)).astype(float)

    def away(drawn: Tensor) -> float:
        return float(np.abs(shown - (drawn.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()).max())

    assert away(reference.decode(checkpoint(), rows)) <= 1 and np.ptp(shown) > 200
    for quirk in ("rows of length 1", "tanh"):
        assert away(reference.decode(checkpoint(), rows, without=quirk)) > 8


def test_kept_codes_are_renumbered_and_others_go_to_the_nearest_left(tmp_path: Path) -> None:
    images, kept = sample_images(21, SIZE), [3, 8, 21, 34, 2, 17]
    smaller = make().keep(kept)
    assert smaller.spec.vocabulary == (6,) and smaller.spec.config == {"kept_codes": kept}
    expected = reference.encode(checkpoint(), pixels(images))
    assert agreement(smaller.encode(images).ids_BLQ[:, :, 0], expected, checkpoint()[TABLE][kept], "cosine") == 1.0
    assert smaller.keep([4, 1]).spec.config == {"kept_codes": [2, 8]}
    assert smaller.spec.fingerprint != make().keep(kept[::-1]).spec.fingerprint != make().spec.fingerprint
    save_tokenizer(smaller, Store(str(tmp_path)))
    loaded = load_tokenizer(Store(str(tmp_path)))
    assert np.array_equal(loaded.encode(images).ids_BLQ, smaller.encode(images).ids_BLQ)


def test_neighbours_and_batch_size_move_no_id() -> None:
    tokenizer, images = make(), sample_images(19, SIZE)
    whole = tokenizer.encode(images).ids_BLQ
    alone = np.concatenate([tokenizer.encode(images[index : index + 1]).ids_BLQ for index in range(19)])
    assert np.array_equal(whole, alone) and np.array_equal(tokenizer.encode(images[::-1]).ids_BLQ[::-1], whole)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_layers_find_their_rows_in_order_in_memory(order: torch.memory_format) -> None:
    encoder, seen = make().build_encoder(), []
    encoder.get_submodule("encoder.transformer.layers.0").register_forward_hook(lambda _, given, found: seen.extend([given[0], found]))
    encoder(torch.zeros(2, 3, SIZE, SIZE).contiguous(memory_format=order))
    assert len(seen) == 2 and all(values.is_contiguous() for values in seen)


def test_bfloat16_is_another_tokenizer_with_nearly_the_same_codes() -> None:
    images, half = sample_images(21, SIZE), make(dtype="bfloat16")
    same = (half.encode(images).ids_BLQ == make().encode(images).ids_BLQ).mean()
    assert 0.8 < same < 1 and half.spec.dtype == "bfloat16" and half.spec.fingerprint != make().spec.fingerprint


def test_without_its_decoder_it_is_smaller_and_draws_nothing() -> None:
    small = make(decoder=False)
    assert not any(name.startswith(("decoder.", "post_quant.")) for name in small.weights()) and len(small.weights()) < len(
        make().weights()
    )
    assert np.array_equal(small.encode(sample_images(3, SIZE)).ids_BLQ, make().encode(sample_images(3, SIZE)).ids_BLQ)
    with pytest.raises(DecodeNotSupported, match="imported without its decoder"):
        small.decode(TokenBatch(np.zeros((1, 16, 1), np.uint8)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_quant.bias": None}, "the key pre_quant.bias is missing"),
        (
            {"encoder.transformer.layers.1.0.fn.to_out.weight": None},
            r"the key encoder\.transformer\.layers\.1\.0\.fn\.to_out\.weight is mis",
        ),
        ({"encoder.transformer.layers.1.0.fn.to_qkv.weight": None}, r"no tensor encoder\.transformer\.layers\.1\.0\.fn\.to_qkv\.weight"),
        (
            {"encoder.transformer.norm.weight": torch.ones(7)},
            r"encoder\.transformer\.norm\.weight has another shape: \(7,\), expected \(48,\)",
        ),
        ({"decoder.de_pos_embedding": torch.ones(1, 16, 3)}, r"decoder\.de_pos_embedding has another shape"),
        ({"encoder.cls_token": torch.ones(1)}, r"encoder\.cls_token is not a part of this network"),
        ({"head.weight": torch.ones(1)}, r"the key head\.weight is not a part of a vit-vqgan checkpoint"),
        ({TABLE: None}, r"no tensor quantizer\.embedding\.weight, the keys begin with"),
        ({TABLE: torch.ones(3)}, r"of 2 dimensions, but one of shape \(3,\)"),
        ({TABLE: torch.ones(3, 5)}, r"codes of 5 values.*encoder gives 8"),
        ({"encoder.en_pos_embedding": torch.ones(1, 15, 48)}, "15 positions and patches of 8 pixels"),
        ({"encoder.transformer.layers.0.0.fn.to_qkv.weight": torch.ones(96, 48)}, "32 attention channels; expected a multiple of 64"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence_with_file_and_key(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=rf"vit\.ckpt: .*{message}") as caught:
        open_published("vit-vqgan", write(tmp_path / "vit.ckpt", **changes), ImportConfig())
    assert "\n" not in str(caught.value)


def test_weights_that_give_no_numbers_are_noticed() -> None:
    state = {**checkpoint(), "pre_quant.bias": torch.full((8,), float("nan"))}
    broken = VitVqgan.from_checkpoint(state, ImportConfig(), decoder="test-1", where="memory")
    with pytest.raises(TokenizerError, match="not finite numbers"):
        broken.encode(sample_images(2, SIZE))
