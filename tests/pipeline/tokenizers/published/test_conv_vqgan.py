from __future__ import annotations

from dataclasses import dataclass
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
from tests.pipeline.tokenizers import conv_vqgan_reference as reference
from tests.pipeline.tokenizers.published_states import State, agreement, pixels, table_from
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.conversion.import_checkpoint import import_notes, open_published
from tokenshards.pipeline.errors import ConfigError, TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import ImportConfig

allow_torchvision()  # diffusers loads it where it is installed
conv_vqgan = pytest.importorskip(
    "tokenshards.pipeline.tokenizers.published.conv_vqgan", reason="diffusers is not installed", exc_type=ImportError
)

SIZE = 32
TABLE = "quantize.embedding.weight"


@dataclass(frozen=True)
class Project:
    layout: reference.Layout
    metric: str
    low: float
    widths: tuple[int, ...] = (32, 32, 64)
    blocks: int = 2
    attends: bool = True


PROJECTS = {
    "taming": Project(reference.TAMING, "l2", -1.0),
    "llamagen": Project(reference.LLAMAGEN, "cosine", -1.0),
    "ibq": Project(reference.TAMING, "dot", -1.0, widths=(32, 64), blocks=4),
    "amused": Project(reference.DIFFUSERS, "l2", 0.0, attends=False),
}


def vectors(name: str, images: np.ndarray, state: State | None = None, without: str = "") -> Tensor:
    project = PROJECTS[name]
    seen = pixels(images) * (1 - project.low) + project.low
    return reference.encode(state or checkpoint(name), project.layout, len(project.widths), seen, without)


@cache
def checkpoint(name: str) -> State:
    project = PROJECTS[name]
    state = reference.random_state(project.layout, widths=project.widths, blocks=project.blocks, attends=project.attends)
    return {**state, TABLE: table_from(vectors(name, sample_images(12, SIZE, seed=5), state), 40)}


def write(path: Path, name: str, **changes: Tensor | None) -> str:
    """Save it as the project does: Lightning's wrapper, LlamaGen's, or safetensors; with what training left behind."""
    state = {**checkpoint(name), **changes}
    state = {key: value.contiguous() for key, value in state.items() if value is not None}
    if name == "amused":
        save_file(state, path)
        return str(path)
    if name == "llamagen":
        torch.save({"model": {**state, "quantize.codebook_used": torch.zeros(99)}, "optimizer": {"state": {}}, "steps": 3}, path)
        return str(path)
    junk = {"loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 4, 1, 1), "loss.discriminator.main.0.weight": torch.ones(3)}
    if name == "ibq":
        averages = {f"model_ema.{key.replace('.', '')}": value for key, value in state.items()}
        noisy = {key: value + 0.3 for key, value in state.items()}
        state = {**noisy, **averages, "model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones(())}
    torch.save({"state_dict": {**state, **junk}, "epoch": 4, "hyper_parameters": {"embed_dim": 8}}, path)
    return str(path)


def make(name: str, **config: Any) -> Any:
    settings = ImportConfig(**{"size": SIZE, "preset": name, **config})
    return conv_vqgan.ConvVqgan.from_checkpoint(checkpoint(name), settings, decoder="test-1", where="memory")


class TestTaming(TokenizerContract):
    min_reencode_agreement = 0.0  # its networks are random: nothing leads back
    flips_per_file = 4
    project = "taming"

    def make_tokenizer(self) -> Tokenizer:
        return make(self.project)


class TestLlamaGen(TestTaming):
    project = "llamagen"


class TestIbq(TestTaming):
    project = "ibq"


class TestAmused(TestTaming):
    project = "amused"


@pytest.mark.parametrize("name", PROJECTS)
def test_a_published_file_gives_the_codes_of_plain_operations(name: str, tmp_path: Path) -> None:
    tokenizer = open_published("conv-vqgan", write(tmp_path / "x.ckpt", name), ImportConfig(size=SIZE, preset=name))
    images = sample_images(13, SIZE)
    ids = tokenizer.encode(images).ids_BLQ[:, :, 0]
    assert agreement(ids, vectors(name, images), checkpoint(name)[TABLE], PROJECTS[name].metric) == 1.0
    side = SIZE >> (len(PROJECTS[name].widths) - 1)
    assert tokenizer.spec.layout.grid == (side, side) and len(np.unique(ids)) > 20
    assert tokenizer.spec.codebook is not None and tokenizer.spec.codebook.metric == PROJECTS[name].metric


@pytest.mark.parametrize("name", PROJECTS)
@pytest.mark.parametrize("quirk", reference.QUIRKS)
def test_each_quirk_decides_codes(quirk: str, name: str) -> None:
    if "attention" in quirk and not PROJECTS[name].attends:
        pytest.skip("aMUSEd has no attention")
    images = sample_images(13, SIZE)
    without = vectors(name, images, without=quirk)
    assert agreement(make(name).encode(images).ids_BLQ[:, :, 0], without, checkpoint(name)[TABLE], PROJECTS[name].metric) < 0.9


@pytest.mark.parametrize("name", PROJECTS)
def test_how_rows_are_compared_and_pixels_run(name: str) -> None:
    images, table, project = sample_images(13, SIZE), checkpoint(name)[TABLE], PROJECTS[name]
    ids = make(name).encode(images).ids_BLQ[:, :, 0]
    for metric in {"l2", "cosine", "dot"} - {project.metric}:
        assert agreement(ids, vectors(name, images), table, metric) < 0.9
    other = pixels(images) * (2 if project.low == 0 else 1) - (1 if project.low == 0 else 0)
    plain = reference.encode(checkpoint(name), project.layout, len(project.widths), other)
    assert agreement(ids, plain, table, project.metric) < 0.9
    preprocess = make(name, size=None).spec.preprocess
    assert (preprocess.size, preprocess.resize, preprocess.colour_range) == (256, "crop", (project.low, 1.0))


@pytest.mark.parametrize("name", PROJECTS)
def test_images_are_those_of_plain_operations(name: str) -> None:
    project, tokenizer = PROJECTS[name], make(name)
    ids = np.random.default_rng(0).integers(0, 40, (5, tokenizer.spec.layout.sites, 1)).astype(np.uint8)
    rows = checkpoint(name)[TABLE][torch.from_numpy(ids[:, :, 0]).long()]
    rows = F.normalize(rows, dim=-1) if project.metric == "cosine" else rows
    drawn = reference.decode(checkpoint(name), project.layout, len(project.widths), rows)
    expected = (((drawn - project.low) / (1 - project.low)).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    shown = tokenizer.decode(TokenBatch(ids)).astype(float)
    assert np.abs(shown - expected).max() <= 1 and np.ptp(shown) > 200


def test_moving_averages_are_taken_unless_told_otherwise(tmp_path: Path) -> None:
    path, images = write(tmp_path / "x.ckpt", "ibq"), sample_images(5, SIZE)
    averages = open_published("conv-vqgan", path, ImportConfig(size=SIZE, preset="ibq"))
    plain = open_published("conv-vqgan", path, ImportConfig(size=SIZE, preset="ibq", ema=False))
    assert np.array_equal(averages.encode(images).ids_BLQ, make("ibq").encode(images).ids_BLQ)
    assert averages.spec.fingerprint != plain.spec.fingerprint
    assert (plain.encode(images).ids_BLQ == averages.encode(images).ids_BLQ).mean() < 0.9


def test_the_moving_averages_beside_a_llamagen_model_are_taken_unless_told_otherwise(tmp_path: Path) -> None:
    noisy = {key: value + 0.3 for key, value in checkpoint("llamagen").items()}
    torch.save({"model": noisy, "ema": checkpoint("llamagen"), "steps": 3}, tmp_path / "x.pt")
    images, settings = sample_images(5, SIZE), {"size": SIZE, "preset": "llamagen"}
    averages = open_published("conv-vqgan", str(tmp_path / "x.pt"), ImportConfig(**settings))
    plain = open_published("conv-vqgan", str(tmp_path / "x.pt"), ImportConfig(**settings, ema=False))
    assert averages.spec.weights_sha256 == make("llamagen").spec.weights_sha256 != plain.spec.weights_sha256
    assert np.array_equal(averages.encode(images).ids_BLQ, make("llamagen").encode(images).ids_BLQ)
    assert np.array_equal(plain.codebook()["level_0"], noisy[TABLE].numpy())


def test_taming_and_ibq_are_told_apart(tmp_path: Path) -> None:
    for name, other in (("taming", "ibq"), ("ibq", "taming")):
        path = write(tmp_path / f"{name}.ckpt", name)
        with pytest.raises(TokenizerError, match=rf"{name}\.ckpt: it has . blocks a level and .*moving averages.*give --preset {name}"):
            open_published("conv-vqgan", path, ImportConfig(size=SIZE, preset=other))
        assert import_notes(open_published("conv-vqgan", path, ImportConfig(size=SIZE, preset=name))) == []


def test_what_cannot_be_told_apart_is_said(tmp_path: Path) -> None:
    state = {**checkpoint("taming"), "model_ema.decay": torch.ones(())}
    with_averages = {**state, **{f"model_ema.{key.replace('.', '')}": value for key, value in checkpoint("taming").items()}}
    torch.save({"state_dict": with_averages}, tmp_path / "x.ckpt")
    tokenizer = open_published("conv-vqgan", str(tmp_path / "x.ckpt"), ImportConfig(size=SIZE, preset="taming"))
    (note,) = import_notes(tokenizer)
    assert "it has 2 blocks a level and moving averages" in note and "taming have 2 blocks and no moving averages" in note
    assert import_notes(tokenizer) == [], "told once"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("taming", {"encoder.mid.attn_1.k.bias": None}, r"the key encoder\.mid\.attn_1\.k\.bias is missing"),
        (
            "taming",
            {"encoder.down.1.downsample.conv.weight": torch.ones(1)},
            r"encoder\.down\.1\.downsample\.conv\.weight has another shape",
        ),
        ("llamagen", {"decoder.conv_blocks.0.upsample.conv.bias": None}, r"decoder\.conv_blocks\.0\.upsample\.conv\.bias is missing"),
        ("llamagen", {"encoder.mid.2.norm1.weight": None}, r"the key encoder\.mid\.2\.norm1\.weight is missing"),
        ("amused", {"encoder.conv_norm_out.bias": None}, r"the key encoder\.conv_norm_out\.bias is missing"),
        ("taming", {"encoder.down.0.block.0.temb_proj.weight": torch.ones(2)}, r"temb_proj\.weight is not a part of this network"),
        ("taming", {TABLE: None}, r"no tensor quantize\.embedding\.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_sentence_with_file_and_published_key(
    name: str, changes: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match=rf"x\.ckpt: .*{message}"):
        open_published("conv-vqgan", write(tmp_path / "x.ckpt", name, **changes), ImportConfig(size=SIZE, preset=name))


def test_whose_checkpoint_it_is_must_be_said_and_fit(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ckpt", "llamagen")
    for preset in (None, "vqgan"):
        with pytest.raises(ConfigError, match="--preset is .*; expected one of taming, llamagen, ibq, amused"):
            open_published("conv-vqgan", path, ImportConfig(size=SIZE, preset=preset))
    with pytest.raises(TokenizerError, match=r"no encoder\.down\.0…, which --preset taming has; its names are those of llamagen: decoder"):
        open_published("conv-vqgan", path, ImportConfig(size=SIZE, preset="taming"))
