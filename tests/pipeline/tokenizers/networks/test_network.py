"""Networks on a device: memory that is too small, and batches that are begun before the one before them is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.contracts.tokenizer_contract import sample_images
from tests.datasets import SilentReporter, content, convert, write_images
from tests.inline import InlineRunner
from tests.pipeline.tokenizers.fitted import test_latent_kmeans
from tests.pipeline.tokenizers.published import test_open_magvit2, test_vit_vqgan
from tokenshards.pipeline.errors import ConfigError, TokenizerError
from tokenshards.pipeline.runners.local import available_cores
from tokenshards.pipeline.shards.commit import read_commit
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import OverlappedTokenizer, TellingTokenizer, Tokenizer
from tokenshards.pipeline.tokenizers.config import GPU_ROWS
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import LatentKMeans
from tokenshards.pipeline.tokenizers.networks import network, overlap
from tokenshards.pipeline.tokenizers.networks.network import SLOTS, Network, choose_device, device_name, gpu_rows
from tokenshards.pipeline.tokenizers.networks.overlap import Overlap

SIZE = 32
TOKENIZERS = {
    "latent-kmeans": lambda: test_latent_kmeans.make(2),
    "vit-vqgan": test_vit_vqgan.make,
    "open-magvit2": test_open_magvit2.make,
}


def save_any_decoder(folder: Path) -> None:
    """Save a tokenizer that takes images from any decoder."""
    made = test_latent_kmeans.make()
    tables = list(made.codebook().values())
    save_tokenizer(LatentKMeans(test_latent_kmeans.encoder(), tables, preprocess=Preprocess(size=SIZE)), Store(str(folder)))


class Small(nn.Module):
    """Adds 1 to each row and its neighbours' sum times 0; out of memory above `limit` rows."""

    def __init__(self, limit: int, error: Exception | None = None) -> None:
        super().__init__()
        self.limit, self.seen = limit, list[int]()
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.limit:
            raise self.error
        return x + 1


def on_a_gpu(module: nn.Module, rows: int = 64) -> Network:
    """A network that begins with as many rows at a time as on a GPU."""
    made = Network(module)
    made._rows = made._told_rows = rows
    return made


# Memory


def test_a_cpu_takes_eight_rows_at_a_time() -> None:
    module = Small(1000)
    made = Network(module)
    assert torch.equal(made(torch.arange(20.0)), torch.arange(1.0, 21.0)) and module.seen == [SLOTS] * 3
    assert made(torch.zeros(0, 3)).shape == (0, 3) and made.take_notes() == []


def test_a_gpu_takes_no_more_rows_than_a_batch_needs() -> None:
    module = Small(1000)
    made = on_a_gpu(module)
    for count, seen in ((100, [64, 40]), (64, [64]), (3, [8]), (0, [8])):
        module.seen.clear()
        assert torch.equal(made(torch.arange(float(count))), torch.arange(float(count)) + 1)
        assert module.seen == seen


@pytest.mark.parametrize("limit", [1, 2, 5, 8, 40, 64])
def test_too_little_memory_halves_the_rows_and_they_stay_halved(limit: int) -> None:
    module = Small(limit)
    made, values = on_a_gpu(module), torch.arange(150.0)
    assert torch.equal(made(values), values + 1)
    fits = max(rows for rows in (1, 2, 4, 8, 16, 32, 64) if rows <= limit)
    notes = made.take_notes()
    assert len(notes) == (fits < 64) and all(
        f"{fits} image{'s' if fits > 1 else ''} at a time" in note and "64 before" in note for note in notes
    )
    module.seen.clear()
    assert torch.equal(made(values), values + 1)
    assert max(module.seen) == fits and made.take_notes() == []


def test_rows_at_once_on_a_gpu_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GPU_ROWS, raising=False)
    assert gpu_rows() == 64
    monkeypatch.setenv(GPU_ROWS, "256")
    monkeypatch.setattr(network, "choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(nn.Module, "to", lambda module, device: module)
    assert gpu_rows() == 256 and Network(Small(1000))._rows == 256 and Network(Small(1000), fixed_rows=3)._rows == 3
    for wrong in ("100", "4", "8192", "-64", "many", ""):
        monkeypatch.setenv(GPU_ROWS, wrong)
        with pytest.raises(ConfigError, match=f"TOKENSHARDS_GPU_ROWS is {wrong!r}; expected a power of 2 from 8 to 4096"):
            Network(Small(1000))


def test_the_device_is_the_one_that_the_worker_is_pinned_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert choose_device() == torch.device("cuda", 3)


def test_rows_are_halved_in_the_middle_of_a_batch() -> None:
    module = Small(64)
    made, values = on_a_gpu(module), torch.arange(150.0)
    made(values[:64])
    module.limit = 16
    assert torch.equal(made(values), values + 1) and module.seen[:4] == [64, 64, 32, 16]


def test_one_image_that_does_not_fit_is_said() -> None:
    made = Network(Small(0))
    with pytest.raises(TokenizerError, match="memory of cpu .* is too small for 1 image at a time.*a smaller network"):
        made(torch.zeros(20))


def test_a_module_of_one_number_of_rows_is_given_no_other() -> None:
    module = Small(1000)
    made = Network(module, fixed_rows=3)
    assert torch.equal(made(torch.arange(7.0)), torch.arange(1.0, 8.0)) and module.seen == [3, 3, 3]
    module.limit = 2
    with pytest.raises(TokenizerError, match="too small for 3 images at a time, the fewest"):
        made(torch.zeros(7))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: out of memory",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_libraries_without_memory_count_too_and_other_errors_stay_errors(text: str) -> None:
    made = Network(Small(4, RuntimeError(text)))
    assert torch.equal(made(torch.arange(10.0)), torch.arange(1.0, 11.0))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Network(Small(4, RuntimeError("mat1 and mat2 shapes cannot be multiplied")))(torch.zeros(10))


# What a worker imports before anything else: notes the threads of each call, and has memory for 3 images.
WORKER = """
import os, torch
real = torch.nn.Sequential.forward
def forward(self, x):
    with open(os.environ["THREADS_SEEN"], "a") as seen:
        seen.write(f"{torch.get_num_threads()}\\n")
    if len(x) > 3:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return real(self, x)
torch.nn.Sequential.forward = forward
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_goes_on_with_fewer_rows_and_says_so_and_workers_share_the_cores(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "src", 16, side=SIZE)
    save_any_decoder(tmp_path / "tok")
    sizes = {"tokenizer": str(tmp_path / "tok"), "batch_rows": 8, "shard_rows": 8}
    convert(tmp_path / "src", tmp_path / "plain", runner=InlineRunner(), **sizes)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    monkeypatch.setenv("THREADS_SEEN", str(tmp_path / "threads"))
    reporter = SilentReporter()
    convert(tmp_path / "src", tmp_path / "short", reporter=reporter, workers=workers, **sizes)

    note = f"memory of {device_name()} is short: 2 images at a time go through the network from here on, 8 before"
    told = sum(note in line for line in reporter.lines)
    assert 1 <= told <= workers, "once for each worker, not for each shard"
    logged = [json.loads(line) for path in (tmp_path / "short").glob("runs/*/driver.jsonl") for line in path.read_text().splitlines()]
    assert sum(note in entry["message"] for entry in logged) == told
    (plan_id,) = (place.name for place in (tmp_path / "short" / "commits").iterdir())
    made_by = [read_commit(Store(str(tmp_path / "short")), plan_id, shard)[0].made_by for shard in range(2)]
    assert sum("notes" in entry for entry in made_by) == told, "a shard without news has no such key"
    plain, short = content(tmp_path / "plain"), content(tmp_path / "short")
    same = [np.mean(np.frombuffer(plain[name][1], np.uint8) == np.frombuffer(ids, np.uint8)) for name, (_, ids) in short.items()]
    assert plain.keys() == short.keys() and np.mean(same) > 0.99
    assert set((tmp_path / "threads").read_text().split()) == {str(max(1, available_cores() // workers))}


# Overlap


@pytest.mark.parametrize("name", TOKENIZERS)
def test_begun_batches_have_the_ids_of_encode(name: str) -> None:
    tokenizer: Any = TOKENIZERS[name]()
    begin = Overlap(tokenizer, torch.device("cpu")).begin
    batches = [sample_images(12, SIZE, seed=seed) for seed in range(3)]
    first = begin(batches[0])
    for index, batch in enumerate(batches):
        following = begin(batches[index + 1]) if index < 2 else first
        pixels, expected = batch.copy(), tokenizer.encode(batch).ids_BLQ
        batch[:] = 0  # what was begun has a copy
        tokens, seconds = first()
        assert np.array_equal(tokens.ids_BLQ, expected) and tokens.ids_BLQ.dtype == tokenizer.spec.id_dtype and seconds > 0
        assert pixels.any()
        first = following


def test_begin_checks_images_and_finish_checks_numbers() -> None:
    tokenizer = test_latent_kmeans.make()
    begin = Overlap(tokenizer, torch.device("cpu")).begin
    with pytest.raises(TokenizerError, match="expected uint8"):
        begin(sample_images(2, 16))
    with torch.no_grad():
        next(tokenizer._encoder._encoder._module.parameters()).fill_(torch.nan)
    finish = begin(sample_images(2, SIZE))
    with pytest.raises(TokenizerError, match="not finite numbers"):
        finish()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_gpu_offers_to_begin_and_a_cpu_does_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "choose_device", lambda: torch.device("cpu"))
    tokenizer: Tokenizer = TOKENIZERS[name]()
    assert isinstance(tokenizer, TellingTokenizer) and not isinstance(tokenizer, OverlappedTokenizer)
    monkeypatch.setattr(overlap, "choose_device", lambda: torch.device("cuda"))
    assert isinstance(TOKENIZERS[name](), OverlappedTokenizer)


def test_a_job_that_overlaps_writes_the_same_shards_with_two_batches_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "src", 40, side=SIZE, bad=2)
    save_any_decoder(tmp_path / "tok")
    sizes = {"tokenizer": str(tmp_path / "tok"), "batch_rows": 8, "shard_rows": 24}
    convert(tmp_path / "src", tmp_path / "plain", runner=InlineRunner(), **sizes)
    under_way, most = 0, 0
    real = LatentKMeans.__init__

    def begins(self: LatentKMeans, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        begin = Overlap(self, torch.device("cpu")).begin

        def counted(images_BHWC: np.ndarray) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            finish = begin(images_BHWC)

            def finished() -> Any:
                nonlocal under_way
                under_way -= 1
                return finish()

            return finished

        self.begin = counted

    def waits(self: LatentKMeans, images_BHWC: np.ndarray) -> None:
        raise AssertionError("a tokenizer that can begin is never made to wait")

    monkeypatch.setattr(LatentKMeans, "__init__", begins)
    monkeypatch.setattr(LatentKMeans, "encode", waits)
    convert(tmp_path / "src", tmp_path / "overlapped", runner=InlineRunner(), **sizes)
    assert content(tmp_path / "overlapped") == content(tmp_path / "plain") and most == 2 and under_way == 0
