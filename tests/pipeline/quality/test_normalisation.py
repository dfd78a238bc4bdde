"""A tokenizer that was saved with the wrong range of colours is told from one that was saved with its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.contracts.tokenizer_contract import sample_images
from tests.datasets import ROOT
from tests.pipeline.tokenizers import taesd_reference
from tests.pipeline.tokenizers.colour_families import PatchMeans, TaesdCodes, patch_means_state, saved_with, trained
from tests.pipeline.tokenizers.toys import VariableSequenceToy
from tokenshards.pipeline.images.decode import decode_image
from tokenshards.pipeline.quality.normalisation import RANGES, probe_normalisation
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import LatentEncoder, LatentKMeans

NAMES = list(RANGES)
DATA = ROOT.parent / "shared" / "data"


def images(count: int, side: int = 32, seed: int = 1) -> np.ndarray:
    """Smooth colours: [count, side, side, 3]."""
    coarse = torch.from_numpy(np.random.default_rng(seed).random((count, 3, 4, 4)))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").permute(0, 2, 3, 1)
    return (255 * smooth).round().byte().numpy()


def without_decoder(tokenizer: PatchMeans) -> PatchMeans:
    tables = {name: value for name, value in tokenizer.weights().items() if name.startswith("encoder.")}
    return PatchMeans.from_saved(tokenizer.spec, {**tokenizer.codebook(), **tables})


@pytest.mark.parametrize("decodes", [True, False], ids=["decoder", "no decoder"])
@pytest.mark.parametrize("true", NAMES)
@pytest.mark.parametrize("saved", NAMES)
def test_the_wrong_range_warns_and_names_the_right_one(true: str, saved: str, decodes: bool) -> None:
    tokenizer = saved_with(trained(PatchMeans, patch_means_state(), images(24), RANGES[true]), RANGES[saved])
    probe = probe_normalisation(tokenizer if decodes else without_decoder(tokenizer), images(24, seed=2))
    assert (probe.own.psnr_db is not None) == decodes and len(probe.others) == 2
    if saved == true:
        assert probe.warnings() == []
        return
    (warning,) = probe.warnings()
    assert f"maps pixels to {saved} " in warning and f"but {true} gives" in warning and ("dB" in warning) == decodes


@pytest.mark.skipif(not (DATA / "taef2").is_dir(), reason="the weights of taef2 are not at hand")
@pytest.mark.parametrize("saved", NAMES)
def test_real_weights_and_photographs(saved: str) -> None:
    state = {
        f"{part}.{key}": value.float()
        for part in ("encoder", "decoder")
        for key, value in torch.load(DATA / "taef2" / f"taef2_{part}.pth", weights_only=True).items()
    }
    policy = Preprocess(size=64)
    photos = np.stack(
        [decode_image(path.read_bytes(), policy).pixels_HWC for path in sorted((DATA / "imagenet_samples").glob("*.JPEG"))[:28]]
    )
    tokenizer = saved_with(trained(TaesdCodes, state, photos[:16], (0.0, 1.0)), RANGES[saved])
    warnings = probe_normalisation(tokenizer, photos[16:]).warnings()
    assert len(warnings) == (saved != "0 to 1")
    assert all("but 0 to 1 gives" in warning for warning in warnings)


def fixed_families() -> list[Tokenizer]:
    encoder = LatentEncoder(taesd_reference.random_state("encoder"), None)
    table = encoder.encode(sample_images(6, 32)).flatten(0, 1).numpy()[:20]
    return [LatentKMeans(encoder, [table], preprocess=Preprocess(size=32, decoder="test-1")), VariableSequenceToy()]


@pytest.mark.parametrize("tokenizer", fixed_families(), ids=lambda tokenizer: tokenizer.spec.family)
def test_a_family_that_has_a_range_of_its_own_is_left_alone(tokenizer: Tokenizer) -> None:
    probe = probe_normalisation(tokenizer, sample_images(20, tokenizer.spec.preprocess.size))
    assert probe.others == () and probe.warnings() == [] and probe.own.entropy_bits is not None


def test_images_that_were_scaled_before_they_were_saved() -> None:
    dark = (images(24) // 255).astype(np.uint8)
    (warning,) = probe_normalisation(VariableSequenceToy(), dark[:, :16, :16]).warnings()
    assert "between 0 and" in warning


def test_the_tokenizer_itself_is_not_changed() -> None:
    tokenizer = trained(PatchMeans, patch_means_state(), images(24), (-1.0, 1.0))
    before, ids = tokenizer.spec.fingerprint, tokenizer.encode(images(8)).ids_BLQ
    probe_normalisation(tokenizer, images(8))
    assert tokenizer.spec.fingerprint == before and np.array_equal(tokenizer.encode(images(8)).ids_BLQ, ids)
