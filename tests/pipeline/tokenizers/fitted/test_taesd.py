"""Both networks against plain tensor operations on the published names; a trait that was left out would show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.contracts.tokenizer_contract import sample_images
from tests.pipeline.tokenizers import taesd_reference
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import open_encoder
from tokenshards.pipeline.tokenizers.fitted.taesd import build_decoder, build_encoder
from tokenshards.pipeline.tokenizers.networks.weights import load_into


def pixels(count: int = 2, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def latents(count: int = 2, scale: float = 1.0) -> Tensor:
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(2)) * scale


@pytest.mark.parametrize("pooled", [True, False])
def test_the_encoder_is_the_published_one(pooled: bool) -> None:
    state = taesd_reference.random_state("encoder", pooled=pooled)
    module, channels = build_encoder(state, "x")
    found, expected = load_into(module, state, "x")(pixels()), taesd_reference.encode(state, pixels())
    assert channels == 4 and found.shape == (2, 4, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_decoder_is_the_published_one(pooled: bool, scale: float) -> None:
    state = taesd_reference.random_state("decoder", pooled=pooled)
    module, channels = build_decoder(state, "x")
    found, expected = load_into(module, state, "x")(latents(scale=scale)), taesd_reference.decode(state, latents(scale=scale))
    assert channels == 4 and found.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_what_the_reference_would_notice() -> None:
    """The traits that a wrong module would lack all change the result by far more than the tolerance above."""
    state = taesd_reference.random_state("encoder")
    whole = taesd_reference.encode(state, pixels())
    without_pool = {key: value for key, value in state.items() if ".pool." not in key}
    for changed in (taesd_reference.encode(without_pool, pixels()), taesd_reference.encode(state, pixels() * 2 - 1)):
        assert (changed - whole).abs().max() > 0.05 * whole.abs().max()
    back = taesd_reference.random_state("decoder")
    squeezed = taesd_reference.decode(back, torch.full((1, 4, 4, 4), 30.0))
    torch.testing.assert_close(squeezed, taesd_reference.decode(back, torch.full((1, 4, 4, 4), 60.0)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("part", "key"), [("encoder", "14.weight"), ("decoder", "1.weight")])
def test_other_weights_are_refused(part: str, key: str) -> None:
    state = taesd_reference.random_state(part)
    build = build_encoder if part == "encoder" else build_decoder
    del state[key]
    with pytest.raises(TokenizerError, match=f"no tensor {key}, the keys begin with .* TAESD family at 1/8 of the side .not F32."):
        build(state, "some.pth")


def test_the_file_of_diffusers_is_both_networks(tmp_path: Path) -> None:
    allow_torchvision()  # diffusers loads it where it is installed
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(latent_channels=4).eval()
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(model.state_dict(), file)
    opened = open_encoder(str(file), str(file))
    images = sample_images(3, 32)
    pixels_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = model.encode(pixels_BCHW * 2 - 1).latents
        found_BLC = opened.encode(images)
        torch.testing.assert_close(found_BLC, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
        drawn = (model.decode(expected * 5).sample / 2 + 0.5).clamp(0, 1).mul(255).round().permute(0, 2, 3, 1).numpy()
    assert abs(opened.decode(found_BLC * 5, (4, 4)).astype(float) - drawn).max() <= 1
