"""Every network tokenizer on a device: ids are those of the CPU, batches overlap, short memory is survived, and float32 means it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.contracts.tokenizer_contract import sample_images
from tests.datasets import content, convert, write_images
from tests.pipeline.tokenizers.custom import test_torchscript
from tests.pipeline.tokenizers.fitted import test_latent_kmeans
from tests.pipeline.tokenizers.published import test_maskgit, test_open_magvit2, test_titok, test_vit_vqgan, test_vq_kd
from tests.pipeline.tokenizers.published_states import nearest
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.shards.commit import read_commit
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, OverlappedTokenizer, TellingTokenizer
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.fitted.perceptual import PerceptualLoss
from tokenshards.pipeline.tokenizers.nearest_code import NearestCode, residual_ids
from tokenshards.pipeline.tokenizers.networks.network import Network, device_name
from tokenshards.pipeline.tokenizers.networks.overlap import Overlap
from tokenshards.pipeline.tokenizers.published.titok import OneDPiece

SIZE = 32
Hidden = Callable[[], AbstractContextManager[Any]]


def make_conv_vqgan(preset: str, **config: Any) -> Any:
    pytest.importorskip("diffusers", reason="diffusers, which conv-vqgan is built of, is not installed", exc_type=ImportError)
    from tests.pipeline.tokenizers.published import test_conv_vqgan

    return test_conv_vqgan.make(preset, **config)


PUBLISHED: dict[str, Callable[..., Any]] = {
    "vit-vqgan": test_vit_vqgan.make,
    "maskgit": test_maskgit.make,
    "open-magvit2": test_open_magvit2.make,
    "vq-kd": test_vq_kd.make,
    "titok": test_titok.make,
    "titok-vq8k": partial(test_titok.make, legacy=False),
    "one-d-piece": partial(test_titok.make, kind=OneDPiece, max_tokens=4),
    **{f"conv-vqgan-{preset}": partial(make_conv_vqgan, preset) for preset in ("taming", "llamagen", "ibq", "amused")},
}
QUEUED: dict[str, Callable[..., Any]] = {**PUBLISHED, "latent-kmeans": partial(test_latent_kmeans.make, 2)}
NETWORKS: dict[str, Callable[..., Any]] = {
    **QUEUED,
    "torchscript": partial(test_torchscript.make_cosmos, torch.float32),
    "torchscript-bfloat16": test_torchscript.make_cosmos,
}


def equal_share(left: np.ndarray, right: np.ndarray) -> float:
    assert left.shape == right.shape
    return float(np.mean(left == right))


@pytest.mark.parametrize("name", NETWORKS)
def test_ids_and_images_are_those_of_the_cpu(name: str, device: torch.device, without_gpu: Hidden) -> None:
    images = sample_images(21, SIZE)
    with without_gpu():
        there = NETWORKS[name]()
        expected = there.encode(images)
        drawn = None
        try:
            drawn = there.decode(expected)
        except DecodeNotSupported:
            pass
    here = NETWORKS[name]()
    found = here.encode(images)
    assert here.spec == there.spec and found.ids_BLQ.dtype == here.spec.id_dtype
    assert equal_share(found.ids_BLQ, expected.ids_BLQ) > (0.6 if "bfloat16" in name else 0.98), "more than near ties flip"
    assert np.array_equal(here.encode(images).ids_BLQ, found.ids_BLQ), "the same images get other ids the second time"
    if drawn is not None:
        difference = np.abs(here.decode(expected).astype(int) - drawn.astype(int))
        assert difference.mean() < (4 if "bfloat16" in name else 0.05)


@pytest.mark.parametrize("name", PUBLISHED)
def test_bfloat16_gives_ids_near_those_of_the_cpu(name: str, device: torch.device, without_gpu: Hidden) -> None:
    images = sample_images(21, SIZE)
    with without_gpu():
        expected = PUBLISHED[name](dtype="bfloat16").encode(images).ids_BLQ
    tokenizer = PUBLISHED[name](dtype="bfloat16")
    found = tokenizer.encode(images).ids_BLQ
    assert tokenizer.spec.dtype == "bfloat16" and equal_share(found, expected) > 0.6
    assert np.array_equal(tokenizer.encode(images).ids_BLQ, found)


@pytest.mark.parametrize("name", QUEUED)
def test_begun_batches_have_the_ids_of_encode(name: str, device: torch.device) -> None:
    tokenizer = QUEUED[name]()
    assert isinstance(tokenizer, TellingTokenizer) and isinstance(tokenizer, OverlappedTokenizer) is (device.type == "cuda")
    begin = Overlap(tokenizer, device).begin
    batches = [sample_images(count, SIZE, seed=count) for count in (12, 70, 5)]
    expected = [tokenizer.encode(batch).ids_BLQ for batch in batches]
    finishing = []
    for batch in batches:  # all are under way before the first is asked for
        finishing.append(begin(batch))
        batch[:] = 0  # what was begun has a copy
    for finish, ids_BLQ in zip(finishing, expected, strict=True):
        tokens, seconds = finish()
        assert np.array_equal(tokens.ids_BLQ, ids_BLQ) and tokens.ids_BLQ.dtype == tokenizer.spec.id_dtype and 0 < seconds < 60


def test_numbers_that_are_none_are_found_when_a_batch_is_finished(device: torch.device) -> None:
    tokenizer = test_vit_vqgan.make()
    with torch.no_grad():
        next(tokenizer._encoder._module.parameters()).fill_(torch.nan)
    finish = Overlap(tokenizer, device).begin(sample_images(2, SIZE))
    with pytest.raises(TokenizerError, match="not finite numbers"):
        finish()


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_the_nearest_code_is_that_of_float64(metric: Any, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    table_KD, rows_BLD = torch.randn(5000, 24, generator=generator), torch.randn(3, 1000, 24, generator=generator)  # several blocks
    expected_BL, clear_BL = nearest(rows_BLD, table_KD, metric)
    search = NearestCode(table_KD.numpy(), metric)
    ids_N = search(rows_BLD.flatten(0, 1).to(device))
    assert ids_N.device == device and clear_BL.mean() > 0.9
    assert equal_share(ids_N.cpu().numpy()[clear_BL.ravel()], expected_BL.ravel()[clear_BL.ravel()]) == 1.0
    lookup = search.rows(torch.arange(7))  # ids on the CPU, and back again
    assert lookup.device.type == "cpu" and torch.equal(search(rows_BLD.flatten(0, 1).to(device)), ids_N)


def test_residual_levels_are_those_of_the_cpu(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    tables = [torch.randn(40, 8, generator=generator).numpy() for _ in range(3)]
    rows_BLD = torch.randn(2, 50, 8, generator=generator)
    expected, found = (residual_ids([NearestCode(table) for table in tables], rows_BLD.to(place)) for place in ("cpu", device))
    assert found.shape == (2, 50, 3) and equal_share(found.cpu().numpy(), expected.numpy()) > 0.98


def test_float32_is_not_tf32(device: torch.device) -> None:
    """TF32 has 10 bits: its errors are some 3e-4 of the values, those of float32 below 1e-5."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 64, 256)).requires_grad_(False)
    x = torch.randn(8, 64, 8, 8)
    expected = network.double()(x.double())
    torch.set_float32_matmul_precision("high")  # as somebody's training may have left it
    try:
        found = Network(network.float())(x).cpu().double()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert float((found - expected).norm() / expected.norm()) < 1e-5


class Hungry(nn.Module):
    """Wants memory for each row, a sixteenth of the device's or, where that is a CPU, what it does not get above 12 rows."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.bytes = torch.cuda.get_device_properties(device).total_memory // 16 if device.type == "cuda" else 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if not self.bytes and len(x) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        scratch = torch.empty(len(x) * self.bytes, dtype=torch.uint8, device=x.device)
        return x + 1 + scratch[:0].sum()


def test_real_lack_of_memory_halves_the_rows_and_leaves_the_rest_to_others(device: torch.device) -> None:
    module = Hungry(device)
    network = Network(module)
    network._rows = network._told_rows = 64
    values = torch.arange(100.0)
    assert torch.equal(network(values).cpu(), values + 1)
    assert module.seen[:2] == [64, 32] and 1 <= network._rows < 64
    assert any(f"{network._rows} images at a time" in note for note in network.take_notes())
    assert torch.equal(network(values).cpu(), values + 1) and max(module.seen[-3:]) == network._rows


def test_a_saved_tokenizer_makes_equal_shards_twice_in_worker_processes(tmp_path: Path, device: torch.device) -> None:
    save_tokenizer(load_any_decoder(), Store(str(tmp_path / "tok")))
    assert load_tokenizer(Store(str(tmp_path / "tok")), "").spec.fingerprint == load_any_decoder().spec.fingerprint
    write_images(tmp_path / "src", 40, side=SIZE, bad=1)
    for out in ("first", "second"):
        convert(tmp_path / "src", tmp_path / out, tokenizer=str(tmp_path / "tok"), batch_rows=8, shard_rows=24)
        assert verify_dataset(Store(str(tmp_path / out))).ok
    assert content(tmp_path / "first") == content(tmp_path / "second")
    (plan_id,) = (place.name for place in (tmp_path / "first" / "commits").iterdir())
    made_by = read_commit(Store(str(tmp_path / "first")), plan_id, 0)[0].made_by
    assert made_by["device"] == device_name() and made_by["device"].startswith(device.type)


def load_any_decoder() -> Any:
    """A tokenizer that takes images from any decoder."""
    made = test_latent_kmeans.make(2)
    return test_latent_kmeans.LatentKMeans(
        test_latent_kmeans.encoder(), list(made.codebook().values()), preprocess=test_latent_kmeans.Preprocess(size=SIZE)
    )


@pytest.mark.parametrize("quantizer", ["vq", "fsq", "lfq"])
def test_an_autoencoder_trains_stops_and_continues_on_the_device(quantizer: str, tmp_path: Path, device: torch.device) -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
    from tests.pipeline.tokenizers.fitted import test_vq_autoencoder as fitted

    changed = dict(zip(("vq", "fsq", "lfq"), fitted.QUANTIZERS, strict=True))[quantizer]
    config = fitted.settings(epochs=2, **changed)
    torch.manual_seed(7)
    expected = torch.rand(4, device=device)
    torch.manual_seed(7)
    tokenizer, statistics = fitted.fit(tmp_path / "whole", config=config)
    assert torch.equal(torch.rand(4, device=device), expected), "the fit drew from the generator of its process"
    assert statistics["epochs"][1]["pixel_loss"] > 0

    class Stop(Exception):
        pass

    def stop(report: dict[str, Any]) -> None:
        raise Stop

    with pytest.raises(Stop):
        fitted.fit(tmp_path / "stopped", config=config, on_epoch=stop)
    again, continued = fitted.fit(tmp_path / "stopped", config=config)
    losses = [[epoch["pixel_loss"] for epoch in found["epochs"]] for found in (statistics, continued)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    images = sample_images(9, SIZE)
    assert equal_share(again.encode(images).ids_BLQ, tokenizer.encode(images).ids_BLQ) > 0.5


def test_the_perceptual_loss_and_its_gradient_are_those_of_the_cpu(device: torch.device, without_gpu: Hidden) -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.first(x), self.second(self.first(x))]

    drawn, true = (torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    found = []
    for hidden in (True, False):
        torch.manual_seed(0)
        with without_gpu() if hidden else torch.enable_grad():
            place = torch.device("cpu") if hidden else device
            loss = PerceptualLoss(Stages(), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
            x = drawn.to(place).requires_grad_()
            value = loss(x, true.to(place))
            value.backward()
            assert x.grad is not None
            found.append((value.item(), x.grad.cpu()))
    (expected, gradient), (loss_here, gradient_here) = found  # a training may round to TF32
    assert loss_here == pytest.approx(expected, rel=1e-2) and (gradient_here - gradient).norm() < 0.05 * gradient.norm()
