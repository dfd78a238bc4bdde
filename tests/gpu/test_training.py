"""The loader and the trainer on a device: batches arrive whole, losses are those of the CPU, checkpoints go both ways."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.datasets import convert
from tests.masked_images import write_masked_images
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tests.stem_adaptors.training.small_runs import FIT, MODEL, KeptReporter, Stopped, death_after, request_for, tokenize_pair
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.augment import PRESETS
from tokenshards.stem_adaptors.commands.evaluation_report import evaluate_run
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.ranks import Ranks, joined_ranks
from tokenshards.stem_adaptors.segment_config import SegmentConfig
from tokenshards.stem_adaptors.training.checkpoints import read_checkpoint
from tokenshards.stem_adaptors.training.evaluate import predict
from tokenshards.stem_adaptors.training.run_directory import open_classifier
from tokenshards.stem_adaptors.training.trainer import Trainer, TrainRequest

KEYED = replace(MODEL, drop_path=0.0)
"""Without drop path, whose random numbers are those of the device's own generator."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenDataset, TokenDataset]:
    train, val = tokenize_pair(tmp_path_factory.mktemp("pair"))
    return open_dataset(str(train)), open_dataset(str(val))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def fit(request: TrainRequest, device: torch.device) -> KeptReporter:
    reporter = KeptReporter()
    Trainer(request, Ranks(), device, reporter).fit()
    return reporter


def every_loss(request: TrainRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the loss of every step: on a GPU the trainer looks at few of them."""
    losses: list[Tensor] = []
    real = Trainer._train_step

    def kept(self: Trainer, batch: Batch) -> Tensor:
        losses.append(real(self, batch))
        return losses[-1]

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_train_step", kept)
        fit(request, device)
    return [loss.item() for loss in losses]


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("order", ["global", "windowed"])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_arrive_whole_on_the_device(
    order: str, prefetch: int, pair: tuple[TokenDataset, TokenDataset], cache: Path, device: torch.device
) -> None:
    config = LoaderConfig(batch_size=16, order=order, window_shards=2, cache_dir=str(cache), prefetch_batches=prefetch, end="pad")
    here, there = TokenLoader(pair[0], config), TokenLoader(pair[0], config, device=device.type)
    for _ in range(3):
        for expected, found in zip(here, there, strict=True):
            for name, tensor in tensors_of(expected).items():
                moved = tensors_of(found)[name]
                assert moved.device == device and moved.dtype == tensor.dtype and torch.equal(moved.cpu(), tensor), name
    here.close(), there.close()


def test_page_locked_copies_reach_the_device_whole(pair: tuple[TokenDataset, TokenDataset], cache: Path, device: torch.device) -> None:
    """Many batches whose memory is given up at once, while the device is busy: none may be overwritten before it is copied."""
    if device.type != "cuda":
        pytest.skip("only a GPU has page-locked memory")
    work = torch.randn(4096, 4096, device=device)
    expected, moved = [], []
    for number in range(200):
        values = torch.full((256, 1024), number, dtype=torch.int32).to(torch.uint16)
        for _ in range(2):
            work = torch.tanh(work @ work)
        empty = torch.zeros(256)
        batch = Batch(values[:, :, None], empty.long(), empty, empty.long(), empty.long(), 0, 0)
        pinned = batch.pin_memory()
        assert pinned.ids_BLQ.is_pinned()
        moved.append(pinned.to(device, non_blocking=True).ids_BLQ)
        expected.append(number)
        del pinned, batch
    assert [int(ids.to(torch.int32).amax()) for ids in moved] == expected == [int(ids.to(torch.int32).amin()) for ids in moved]


def test_batches_dropped_at_once_are_whole_while_the_device_works(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, device: torch.device
) -> None:
    """Kernels read a batch long after the host has dropped it; the memory of no later batch may be the same before that."""
    config = LoaderConfig(batch_size=16, cache_dir=str(cache), end="pad", prefetch_batches=3)
    work = torch.randn(2048, 2048, device=device)
    sums = []
    with closing(TokenLoader(pair[0], config, device=device.type)) as loader:
        for epoch in range(3):
            for batch in loader.epoch(epoch):
                for _ in range(4 if device.type == "cuda" else 0):
                    work = torch.tanh(work @ work)
                sums.append(batch.ids_BLQ.to(torch.int64).sum() + batch.rows_B.sum())
    with closing(TokenLoader(pair[0], config)) as loader:
        expected = [int(batch.ids_BLQ.to(torch.int64).sum() + batch.rows_B.sum()) for epoch in range(3) for batch in loader.epoch(epoch)]
    assert [int(value) for value in sums] == expected


def test_losses_in_float32_are_those_of_the_cpu(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"epochs": 2, "precision": "fp32", "model": KEYED}
    expected = every_loss(request_for(pair[0], tmp_path / "cpu", cache, **options), torch.device("cpu"), monkeypatch)
    found = every_loss(request_for(pair[0], tmp_path / "device", cache, **options), device, monkeypatch)
    assert len(found) == 8 and found == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(
    precision: str,
    pair: tuple[TokenDataset, TokenDataset],
    cache: Path,
    tmp_path: Path,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if precision == "fp16" and device.type != "cuda":
        pytest.skip("--precision fp16 is for GPUs")
    options: dict[str, Any] = {"epochs": 2, "model": KEYED}
    expected = every_loss(request_for(pair[0], tmp_path / "cpu", cache, precision="fp32", **options), torch.device("cpu"), monkeypatch)
    request = request_for(pair[0], tmp_path / "device", cache, precision=precision, val=pair[1], **options)
    found = every_loss(request, device, monkeypatch)
    assert found == pytest.approx(expected, rel=0.05)
    trainer = Trainer(request_for(pair[0], tmp_path / "other", cache, precision=precision, **options), Ranks(), device, KeptReporter())
    assert {group.dtype for group in trainer.model.parameters()} == {torch.float32}, "weights stay float32 under autocast"
    if precision == "auto" and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        assert trainer.optimisation.precision is torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pretraining_learns_what_one_on_the_cpu_learns(
    precision: str,
    pair: tuple[TokenDataset, TokenDataset],
    cache: Path,
    tmp_path: Path,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = replace(MODEL, stem="patch", learned_codebook=True, embed_norm=True)
    mtm: dict[str, Any] = {"objective": "mtm", "mask": MaskConfig(decoder_depth=1), "model": model, "augment": PRESETS["mtm"], "epochs": 2}
    expected = every_loss(request_for(pair[0], tmp_path / "cpu", cache, precision="fp32", **mtm), torch.device("cpu"), monkeypatch)
    request = request_for(pair[0], tmp_path / "device", cache, precision=precision, val=pair[1], **mtm)
    assert every_loss(request, device, monkeypatch) == pytest.approx(expected, rel=5e-3 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_segmenter_learns_what_one_on_the_cpu_learns(
    precision: str, cache: Path, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_masked_images(tmp_path / "masked", 64)
    source = SourceConfig(masks=str(tmp_path / "masked" / "masks"), yes=True)
    convert(tmp_path / "masked" / "images", tmp_path / "tokens", source=source, fit=FIT)
    data = open_dataset(str(tmp_path / "tokens"))
    segments: dict[str, Any] = {
        "objective": "segment",
        "segment": SegmentConfig(head="upernet", channels=8),
        "model": KEYED,
        "augment": AugmentConfig(ops="0.5*flip(), 0.5*swap(), rrc(share=1.0), 0.5*cutmix()", mix_group=4),
        "epochs": 2,
    }
    expected = every_loss(request_for(data, tmp_path / "cpu", cache, precision="fp32", **segments), torch.device("cpu"), monkeypatch)
    request = request_for(data, tmp_path / "device", cache, precision=precision, val=data, **segments)
    assert every_loss(request, device, monkeypatch) == pytest.approx(expected, rel=5e-3 if precision == "fp32" else 0.05)
    found = [evaluate_run(request.out, data, weights="last", device=torch.device(place), batch_size=8) for place in ("cpu", device)]
    assert found[1].overlap.images == 64 and found[1].overlap.miou == pytest.approx(found[0].overlap.miou, abs=0.02)


def test_a_run_that_fell_over_continues_on_the_device_and_its_checkpoint_opens_anywhere(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, device: torch.device
) -> None:
    def request(name: str, **changes: Any) -> TrainRequest:
        return request_for(pair[0], tmp_path / name, cache, val=pair[1], checkpoint_steps=2, precision="fp32", model=MODEL, **changes)

    fit(request("whole"), device)
    with pytest.raises(Stopped), death_after(7):
        fit(request("stopped"), device)
    continued = fit(request("stopped", resume=True), device)
    assert any("continuing at step 6" in line for line in continued.lines)
    whole, stopped = (read_checkpoint(request(name).out, "checkpoint.safetensors") for name in ("whole", "stopped"))
    for group in ("model", "optimizer", "average"):
        left, right = getattr(whole, group), getattr(stopped, group)
        assert left.keys() == right.keys()
        for name, tensor in left.items():  # a GPU adds up in no fixed order
            torch.testing.assert_close(right[name], tensor, rtol=2e-3, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}")
    found = []
    for place in ("cpu", device):
        model, _ = open_classifier(request("whole").out, "last", place)
        tokens = TokenBatch(next(iter(pair[1].batches(16))).ids_BLQ)
        found.append(predict(model, tokens, torch.device(place)))
        report = evaluate_run(request("whole").out, pair[1], weights="best", device=torch.device(place), batch_size=8)
        assert report.accuracy.images == 20
    np.testing.assert_allclose(found[1], found[0], atol=5e-3)


def test_a_run_begun_on_the_cpu_goes_on_on_the_device(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, device: torch.device
) -> None:
    options: dict[str, Any] = {"checkpoint_steps": 2, "precision": "fp32"}
    with pytest.raises(Stopped), death_after(5):
        fit(request_for(pair[0], tmp_path / "run", cache, **options), torch.device("cpu"))
    reporter = fit(request_for(pair[0], tmp_path / "run", cache, resume=True, **{**options, "device": str(device)}), device)
    assert reporter.records[-1]["epoch"] == 3 and all(np.isfinite(record["train_loss"]) for record in reporter.records)


@pytest.mark.filterwarnings("ignore")  # of the compiler: what is deprecated in it, and that TF32 would be faster
@pytest.mark.skipif(shutil.which("c++") is None and not torch.cuda.is_available(), reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_backbone_learns_the_same(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"epochs": 1, "precision": "fp32", "model": KEYED, "val": pair[1]}
    plain = every_loss(request_for(pair[0], tmp_path / "plain", cache, **options), device, monkeypatch)
    compiled = every_loss(request_for(pair[0], tmp_path / "compiled", cache, compile=True, **options), device, monkeypatch)
    assert compiled == pytest.approx(plain, rel=5e-3)
    open_classifier(request_for(pair[0], tmp_path / "compiled", cache).out, "last", device)


def test_a_timm_backbone_trains(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, device: torch.device) -> None:
    allow_torchvision()
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    model = ModelConfig(name="timm:test_vit")
    reporter = fit(request_for(pair[0], tmp_path / "run", cache, epochs=1, accumulate=2, model=model, val=pair[1]), device)
    assert np.isfinite(reporter.records[0]["val_loss"])


def test_formats_of_products_and_of_convolutions_are_set_for_training_on_a_gpu(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, device: torch.device
) -> None:
    allow_torchvision()
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    reporter = KeptReporter()
    request = request_for(pair[0], tmp_path / "run", cache, epochs=1, model=ModelConfig(name="timm:resnet10t"), precision="fp32")
    trainer = Trainer(request, Ranks(), device, reporter)
    trainer.fit()
    weight = trainer.model.backbone.layer1[0].conv1.weight
    on_gpu = device.type == "cuda"
    assert weight.is_contiguous(memory_format=torch.channels_last) or not on_gpu
    assert (torch.get_float32_matmul_precision() == "high") or not on_gpu
    assert any(f"in fp32{' with TF32' if on_gpu else ''}, one process" in line for line in reporter.lines)


def test_a_run_is_measured_in_the_format_of_its_training(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, device: torch.device
) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, epochs=2, val=pair[1], precision="bf16", ema_decay=0.0)
    records = fit(request, device).records
    best = max(records, key=lambda record: record["val_top1"])
    report = evaluate_run(request.out, pair[1], weights="best", device=device, batch_size=16)
    assert report.precision == "bf16" and report.accuracy.top1 == best["val_top1"]
    assert report.accuracy.loss == pytest.approx(best["val_loss"], rel=1e-5)


def test_a_checkpoint_written_beside_the_training_holds_the_weights_of_its_step(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, device: torch.device
) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, epochs=1, checkpoint_steps=1, precision="fp32")
    trainer = Trainer(request, Ranks(), device, KeptReporter())
    trainer.fit()
    saved = read_checkpoint(request.out, "checkpoint.safetensors").model
    assert all(torch.equal(saved[name], tensor.cpu()) for name, tensor in trainer.model.state_dict().items())


def test_the_device_that_is_chosen_has_a_number(device: torch.device) -> None:
    for name in (device.type, str(device), *(["auto"] if device.type == "cuda" else [])):
        with joined_ranks(name) as (ranks, chosen):
            assert ranks.is_main and chosen == device
