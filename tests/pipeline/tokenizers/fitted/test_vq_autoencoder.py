from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import vector_quantize_pytorch as library
from PIL import Image

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tokenshards.pipeline.errors import ConfigError, TokenizerError
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.storage.tensor_file import load_tensors
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import FSQ_LEVELS, VqFitConfig
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.fitted.linear_start import start_linear
from tokenshards.pipeline.tokenizers.fitted.perceptual import PerceptualLoss
from tokenshards.pipeline.tokenizers.fitted.quantizers import FsqBound, TrainedQuantizer
from tokenshards.pipeline.tokenizers.fitted.training_state import TrainingState
from tokenshards.pipeline.tokenizers.fitted.vq_autoencoder import COLOURS, Decoder, Encoder, VqAutoencoder
from tokenshards.pipeline.tokenizers.fitted.vq_training import fit_vq_autoencoder
from tokenshards.pipeline.tokenizers.nearest_code import NearestCode

SIZE = 32
PREPROCESS = Preprocess(size=SIZE, colour_range=COLOURS, decoder="test-1")
QUANTIZERS = ({"levels": 2}, {"quantizer": "fsq", "levels": 1, "codes": 256}, {"quantizer": "lfq", "levels": 1, "codes": 64})


def drawn_images(count: int = 40) -> list[tuple[str, np.ndarray]]:
    return [(hashlib.sha256(image.tobytes()).hexdigest(), image) for image in sample_images(count, SIZE, seed=5)]


def settings(**changed: object) -> VqFitConfig:
    return VqFitConfig(**{"size": SIZE, "codes": 32, "width": 8, "depth": 1, "epochs": 2, "batch": 8, "learning_rate": 3e-3, **changed})  # type: ignore[arg-type]


def fit(
    where: Path, images: list[tuple[str, np.ndarray]] | None = None, config: VqFitConfig | None = None, **more: object
) -> tuple[VqAutoencoder, dict]:
    state = TrainingState(Store(str(where)))
    return fit_vq_autoencoder(images or drawn_images(), config or settings(), PREPROCESS, state=state, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("changed", QUANTIZERS, ids=["vq", "fsq", "lfq"])
class TestEveryQuantizer(TokenizerContract):
    min_reencode_agreement = 0.0  # so short a training leads back to no codes
    flips_per_file = 6

    @pytest.fixture(autouse=True)
    def _fitted(self, changed: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.fitted = _FITTED.get(str(changed)) or fit(tmp_path_factory.mktemp("fit"), config=settings(**changed))[0]
        _FITTED[str(changed)] = self.fitted

    def make_tokenizer(self) -> Tokenizer:
        return self.fitted

    shared_tokenizer = make_tokenizer


_FITTED: dict[str, VqAutoencoder] = {}


class _Stop(Exception):
    pass


@pytest.mark.parametrize("changed", QUANTIZERS, ids=["vq", "fsq", "lfq"])
def test_a_stopped_training_continues_to_the_same_bytes(changed: dict, tmp_path: Path) -> None:
    config = settings(epochs=3, **changed)
    whole, statistics = fit(tmp_path / "whole", config=config)

    def stop(report: dict) -> None:
        if report["epoch"] == 2:
            raise _Stop

    with pytest.raises(_Stop):
        fit(tmp_path / "stopped", config=config, on_epoch=stop)
    seen: list[int] = []
    torch.manual_seed(1)  # what the process drew before must not matter
    continued, same = fit(tmp_path / "stopped", config=config, on_epoch=lambda report: seen.append(report["epoch"]))
    assert seen == [3]
    assert continued.spec.fingerprint == whole.spec.fingerprint
    assert same == statistics


def test_a_fit_leaves_the_generators_of_its_process_alone(tmp_path: Path) -> None:
    """A training in the same process, or a user's own script, draws the same numbers whether a tokenizer was fitted before or not."""
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    fit(tmp_path / "a", config=settings(epochs=1))
    assert torch.equal(torch.rand(4), expected)


def test_the_order_of_images_and_equal_ones_change_nothing(tmp_path: Path) -> None:
    images = drawn_images()
    first, _ = fit(tmp_path / "a", images)
    second, _ = fit(tmp_path / "b", [*reversed(images), images[3]])
    other, _ = fit(tmp_path / "c", images, settings(seed=1))
    assert first.spec.fingerprint == second.spec.fingerprint != other.spec.fingerprint


def test_training_brings_images_nearer_than_the_components_it_starts_from(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 5, 5, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(cells).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for cells in noise]
    images = [(hashlib.sha256(image.tobytes()).hexdigest(), image) for image in smooth]  # what is beside a patch tells of it
    few = {"codes": 8, "levels": 1, "width": 16}
    _, short = fit(tmp_path / "a", images, settings(epochs=1, learning_rate=1e-12, **few))
    _, long = fit(tmp_path / "b", images, settings(epochs=6, **few))
    assert long["epochs"][-1]["psnr_db"] > short["epochs"][-1]["psnr_db"] + 0.5
    assert long["epochs"][-1]["pixel_loss"] < long["epochs"][0]["pixel_loss"]
    assert [report["epoch"] for report in long["epochs"]] == [1, 2, 3, 4, 5, 6]


def test_held_out_images_are_not_trained_on(tmp_path: Path) -> None:
    images = drawn_images(32)
    _, statistics = fit(tmp_path / "a", images)
    names = sorted(images, key=lambda pair: _rank(pair[0]))
    changed = [(name, np.zeros_like(pixels) if name == names[0][0] else pixels) for name, pixels in images]
    other, _ = fit(tmp_path / "b", changed)
    assert statistics["held_out"] == 2
    assert other.spec.fingerprint == fit(tmp_path / "c", images)[0].spec.fingerprint


def _rank(name: str) -> int:
    from tokenshards.pipeline.canonical import keyed_hash64

    return keyed_hash64("0", name)


def test_another_training_is_not_continued(tmp_path: Path) -> None:
    def stop(report: dict) -> None:
        raise _Stop

    with pytest.raises(_Stop):
        fit(tmp_path, on_epoch=stop)
    with pytest.raises(TokenizerError, match="stopped here after 1 epoch"):
        fit(tmp_path, config=settings(width=16))
    with pytest.raises(TokenizerError, match="other options or images"):
        fit(tmp_path, drawn_images(39))
    path = tmp_path / "training.state"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(TokenizerError, match=r"training\.state: .*sha256.* Delete it to train from the start"):
        fit(tmp_path)
    path.unlink()
    assert fit(tmp_path)[1]["images"] == 40


def test_a_training_that_the_first_version_stopped_is_continued(tmp_path: Path) -> None:
    """Its state was the SHA-256 of a safetensors file and that file."""

    def stop(report: dict) -> None:
        raise _Stop

    with pytest.raises(_Stop):
        fit(tmp_path / "stopped", on_epoch=stop)
    store = Store(str(tmp_path / "stopped"))
    tensors, state = load_tensors(store, "training.state")
    metadata = {"training": state["training"], "reports": json.dumps(state["reports"])}
    body = safetensors.torch.save(tensors, metadata=metadata)
    store.write("training.state", hashlib.sha256(body).digest() + body)
    seen: list[dict] = []
    continued, _ = fit(tmp_path / "stopped", on_epoch=seen.append)
    assert [report["epoch"] for report in seen] == list(range(2, settings().epochs + 1))
    assert continued.spec.fingerprint == fit(tmp_path / "whole")[0].spec.fingerprint


def test_one_image_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="1 image .* at least 2"):
        fit(tmp_path, drawn_images(1))


def test_a_diverging_training_says_so(tmp_path: Path) -> None:
    def infinite(drawn: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        return drawn.sum() * float("nan")

    with pytest.raises(TokenizerError, match="smaller --learning-rate"):
        fit(tmp_path, features=infinite)


def test_half_of_the_images_are_seen_mirrored(tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    def watch(drawn: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        seen.append((true.permute(0, 2, 3, 1) * 127.5 + 127.5).round().byte().numpy())
        return drawn.sum() * 0

    images = drawn_images()
    fit(tmp_path, images, features=watch)
    plain, mirrored = ({image.tobytes() for image in way} for way in (dict(images).values(), [i[:, ::-1].copy() for _, i in images]))
    trained = [image.tobytes() for batch in seen for image in batch]
    assert all(image in plain or image in mirrored for image in trained)
    assert sum(image in mirrored for image in trained) * 2 == len(trained) == 2 * 32


def test_commitment_draws_vectors_to_their_codes(tmp_path: Path) -> None:
    losses = [
        fit(tmp_path / str(weight), config=settings(commitment=weight, epochs=4))[1]["epochs"][-1]["code_loss"] for weight in (0.0, 10.0)
    ]
    assert losses[1] < 0.95 * losses[0]


def test_a_device_without_room_for_a_batch_says_what_to_give(tmp_path: Path) -> None:
    def full(drawn: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(TokenizerError, match="too small for steps of 8 images of 32 pixels .*20.00 GiB.* smaller --batch"):
        fit(tmp_path, features=full)


def test_dead_codes_come_back(tmp_path: Path) -> None:
    quantizer = TrainedQuantizer(settings(levels=1), vectors_per_batch=4096)
    rng = torch.Generator().manual_seed(0)
    vectors_BLD = torch.randn(8, 512, 16, generator=rng)
    quantizer.train()
    quantizer(vectors_BLD)
    with torch.no_grad():
        quantizer.module.layers[0]._codebook.embed[0, 5:] = 1e4  # far from everything: never used
        quantizer.module.layers[0]._codebook.cluster_size[0, 5:] = 0
    for _ in range(3):
        quantizer(vectors_BLD)
    ids_N = NearestCode(quantizer.tables()[0])(vectors_BLD.flatten(0, 1))
    assert len(ids_N.unique()) > 25


@pytest.mark.parametrize("codes", FSQ_LEVELS)
def test_fsq_ids_are_those_of_the_library(codes: int) -> None:
    levels = FSQ_LEVELS[codes]
    vectors_BLD = torch.randn(2, 500, len(levels), generator=torch.Generator().manual_seed(codes)) * 2
    theirs = library.FSQ(list(levels))
    _, expected_BL = theirs(vectors_BLD)
    bounded_BLD = FsqBound(levels)(vectors_BLD)
    found_N = NearestCode(theirs.implicit_codebook.numpy())(bounded_BLD.flatten(0, 1))
    assert torch.equal(found_N, expected_BL.flatten().long())


def test_a_fitted_fsq_gives_the_ids_that_it_was_trained_with(tmp_path: Path) -> None:
    tokenizer, _ = fit(tmp_path, config=settings(quantizer="fsq", levels=1, codes=256))
    encoder = Encoder(patch=4, width=8, depth=1, code_width=3)
    encoder.load_state_dict({key[8:]: torch.from_numpy(value) for key, value in tokenizer.weights().items() if key.startswith("encoder.")})
    images = sample_images(6, SIZE, seed=9)
    with torch.no_grad():
        vectors_BLD = encoder(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
        _, expected_BL = library.FSQ(list(FSQ_LEVELS[256]))(vectors_BLD)
    assert (tokenizer.encode(images).ids_BLQ[:, :, 0] == expected_BL.numpy()).mean() > 0.99


def test_each_level_is_looked_up_in_what_the_levels_before_it_left(tmp_path: Path) -> None:
    tokenizer, _ = fit(tmp_path, config=settings(levels=3))
    images = sample_images(6, SIZE, seed=9)
    tables = [table.astype(np.float64) for table in tokenizer.codebook().values()]
    with torch.no_grad():
        module = tokenizer.build_encoder()
        module.load_state_dict({key: torch.from_numpy(value) for key, value in tokenizer.weights().items() if key.startswith("encoder.")})
        rest_BLD = module(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).double().numpy()
    ids_BLQ = tokenizer.encode(images).ids_BLQ
    for q, table_KD in enumerate(tables):
        nearest_BL = np.square(rest_BLD[:, :, None] - table_KD).sum(axis=3).argmin(axis=2)
        assert (ids_BLQ[:, :, q] == nearest_BL).mean() > 0.99
        rest_BLD = rest_BLD - table_KD[ids_BLQ[:, :, q]]
    summed = tokenizer.dequantise(torch.from_numpy(ids_BLQ.astype(np.int64))).numpy()
    np.testing.assert_allclose(summed, sum(table_KD[ids_BLQ[:, :, q]] for q, table_KD in enumerate(tables)), rtol=1e-4, atol=1e-5)


def test_lfq_ids_are_the_signs() -> None:
    vectors_BLD = torch.randn(2, 500, 6, generator=torch.Generator().manual_seed(0))
    quantizer = TrainedQuantizer(settings(quantizer="lfq", levels=1, codes=64), vectors_per_batch=1000).eval()
    _, expected_BL, _ = quantizer.module(vectors_BLD)
    found_N = NearestCode(quantizer.tables()[0])(vectors_BLD.flatten(0, 1))
    assert torch.equal(found_N, expected_BL.flatten().long())
    assert torch.equal(torch.from_numpy(quantizer.tables()[0])[found_N], vectors_BLD.flatten(0, 1).sign())


@pytest.mark.parametrize("alike", [True, False])
def test_the_linear_start_is_the_best_there_and_back(alike: bool) -> None:
    images_MHWC = sample_images(20, SIZE, seed=2)
    there, back = torch.nn.Conv2d(3, 5, 4, 4), torch.nn.ConvTranspose2d(5, 3, 4, 4)
    start_linear(there, back, images_MHWC, alike=alike)
    pixels = torch.from_numpy(images_MHWC).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        vectors, error = there(pixels), (back(there(pixels)) - pixels).square().mean()
    patches_NP = pixels.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48).double()
    centred_NP = patches_NP - patches_NP.mean(dim=0)
    rest = torch.linalg.svdvals(centred_NP)[5:].square().sum() / centred_NP.numel()
    colours_only = (patches_NP.mean(dim=0).reshape(3, 16).mean(dim=1, keepdim=True) - patches_NP.mean(dim=0).reshape(3, 16)).square().mean()
    assert float(error) == pytest.approx(float(rest + colours_only), rel=1e-3)
    deviations = vectors.std(dim=(0, 2, 3)).tolist()
    assert deviations[0] == pytest.approx(1, rel=1e-2) and (deviations == pytest.approx([1] * 5, rel=1e-2)) == alike


def test_before_training_the_networks_are_their_linear_way(tmp_path: Path) -> None:
    encoder, decoder = Encoder(patch=4, width=8, depth=2, code_width=6), Decoder(patch=4, width=8, depth=2, code_width=6, side=8)
    pixels = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        vectors_BLD = encoder(pixels)
        torch.testing.assert_close(vectors_BLD, encoder.linear(pixels).flatten(2).transpose(1, 2))
        grid_BDhw = vectors_BLD.transpose(1, 2).reshape(2, 6, 8, 8)
        torch.testing.assert_close(decoder(vectors_BLD), decoder.linear(grid_BDhw))


def test_perceptual_loss_is_zero_for_equal_images_and_reaches_what_is_drawn() -> None:
    torch.manual_seed(0)

    class Stages(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 5, 3)

        def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
            first = self.first(pixels)
            return [first, self.second(first.relu())]

    loss = PerceptualLoss(Stages(), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    true = torch.rand(2, 3, 8, 8) * 2 - 1
    drawn = true.clone().requires_grad_()
    assert loss(drawn, true).item() == 0
    other = (true + 0.1 * torch.randn_like(true)).requires_grad_()
    loss(other, true).backward()
    assert other.grad is not None and float(other.grad.abs().sum()) > 0
    with torch.no_grad():
        assert float(loss(true * 0.5, true)) < float(loss(-true, true))


def test_perceptual_loss_compares_directions_of_features() -> None:
    class Colours(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
            return [pixels]

    loss, true = PerceptualLoss(Colours(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), torch.rand(2, 3, 8, 8) * 2 - 1
    assert loss(0.3 * true, true).item() == pytest.approx(0, abs=1e-9)
    assert loss(-true, true).item() == pytest.approx(4, rel=1e-4)


def test_a_perceptual_loss_changes_what_is_trained(tmp_path: Path) -> None:
    def mean_colour(drawn: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        return (drawn.mean(dim=(2, 3)) - true.mean(dim=(2, 3))).square().mean()

    plain, _ = fit(tmp_path / "a")
    other, _ = fit(tmp_path / "b", features=mean_colour)
    assert plain.spec.fingerprint != other.spec.fingerprint


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"quantizer": "pq"}, "--quantizer is 'pq'; expected vq or fsq or lfq"),
        ({"quantizer": "fsq", "levels": 2}, "--levels is 2; expected 1 to 1"),
        ({"quantizer": "fsq", "levels": 1, "codes": 300}, "--codes is 300; expected one of 256, 1024"),
        ({"quantizer": "lfq", "levels": 1, "codes": 300}, "--codes is 300; expected a power of 2"),
        ({"quantizer": "lfq", "levels": 1, "codes": 64, "code_width": 4}, "--code-width is 4"),
        ({"size": 30}, "--size is 30; expected 8 to 1024 pixels, a multiple of --patch 4"),
        ({"epochs": 0}, "--epochs is 0"),
    ],
)
def test_options_out_of_range(changed: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        settings(**changed)


def test_a_patch_of_two_pixels_has_codes_of_twelve_values(tmp_path: Path) -> None:
    tokenizer, _ = fit(tmp_path, config=settings(patch=2, epochs=1, levels=1))
    assert tokenizer.codebook()["level_0"].shape == (32, 12)
    assert tokenizer.spec.layout.grid == (16, 16)


def test_the_same_tokenizer_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        tokenizer, statistics = fit(tmp_path / f"fit-{name}")
        save_tokenizer(tokenizer, Store(str(tmp_path / name)), "", statistics)
    for file in ("tokenizer.json", "codebook.safetensors", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_size_of_other_patches_is_refused(tmp_path: Path) -> None:
    tokenizer, _ = fit(tmp_path)
    spec = replace(tokenizer.spec, preprocess=replace(PREPROCESS, size=30))
    with pytest.raises(TokenizerError, match="size 30; expected a multiple of 4 pixels"):
        VqAutoencoder.from_saved(spec, {**tokenizer.codebook(), **tokenizer.weights()})
    with pytest.raises(TokenizerError, match="level_1 missing"):
        VqAutoencoder.from_saved(tokenizer.spec, {"level_0": tokenizer.codebook()["level_0"], **tokenizer.weights()})
