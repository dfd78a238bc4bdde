"""A ViT-VQGAN of real size with random weights: tokenizes images twice, encodes them again on CPU and GPU, and measures the speed."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import BENCH, Report, cli, run
from drawn_images import draw_images
from encode_throughput import SIZES, random_checkpoint
from safetensors.torch import save_file
from tokenize_overhead import SUFFIXES, replicate

from tokenshards.pipeline.conversion.import_checkpoint import open_published
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.commit import read_commit
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.published.vit_vqgan import VitVqgan


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The amount of work."""

    network: str
    side: int
    images: int
    shard_rows: int
    links: int
    """Images with synthetic pixels in four shards, for measuring the work on shards beside the network."""
    again: int
    """Images that each device encodes again."""
    throughput: tuple[str, ...]
    repeats: int


REAL = Scale(
    network="small",
    side=32,
    images=256,
    shard_rows=128,
    links=8192,
    again=16,
    throughput=("--dtype", "bfloat16", "--batch", "64", "--slots", "64", "--repeat", "3"),
    repeats=3,
)
SMALL = Scale(
    network="tiny",
    side=8,
    images=48,
    shard_rows=16,
    links=64,
    again=8,
    throughput=("--sizes", "tiny", "--batch", "8", "--repeat", "1"),
    repeats=1,
)


def tokenize_twice(images: Path, root: Path, scale: Scale) -> dict[str, Any]:
    """Return the reports of two runs of `tokenize`; RuntimeError where they differ in any id."""
    reports, contents, devices = [], [], set()
    for out in ("first", "second"):
        options = ("--tokenizer", str(root / "tok"), "--workers", "1", "--shard-rows", str(scale.shard_rows), "--quiet")
        reports.append(cli("tokenize", str(images), str(root / out), *options))
        contents.append(ids_of(root / out))
        (plan_id,) = (place.name for place in (root / out / "commits").iterdir())
        devices.add(read_commit(Store(str(root / out)), plan_id, 0)[0].made_by["device"])
    different = [name for name, ids in contents[0].items() if ids != contents[1].get(name)]
    if contents[0].keys() != contents[1].keys() or different:
        raise RuntimeError(f"two runs of tokenize differ in {len(different)} of {len(contents[0])} images, the first {different[:1]}")
    return {"images": len(contents[0]), "equal": True, "devices": sorted(devices), "busy": [report.get("busy") for report in reports]}


def ids_of(out: Path) -> dict[str, bytes]:
    """Return sample id -> ids of a dataset."""
    found = {}
    for batch in open_dataset(str(out), verify=True).batches(64):
        for row, sample_id in enumerate(batch.sample_ids):
            found[sample_id] = np.ascontiguousarray(batch.ids_BLQ[row]).tobytes()
    return found


def made_again(out: Path, scale: Scale, *, hide_gpu: bool) -> dict[str, Any]:
    """Return the result of `verify --re-encode` on this device or the CPU; no agreement is too small."""
    options = ("--re-encode", str(scale.again), "--seed", "0", "--min-agreement", "0")
    found = cli("verify", str(out), *options, hide_gpu=hide_gpu)["re_encoded"]
    return {name: found[name] for name in ("device", "dtype", "rows_encoded", "rows_different", "ids", "ids_equal", "agreement")}


def agreements(scale: Scale) -> dict[str, float]:
    """Return the shares of equal ids between devices and dtypes, on images of noise, where near ties are common."""
    state = random_checkpoint(*SIZES[scale.network], side=scale.side)
    pixels = 8 * scale.side
    images = np.random.default_rng(0).integers(0, 256, (scale.again, pixels, pixels, 3), np.uint8)
    ids = {}
    for place in ("cpu", "device"):
        for dtype in ("float32", "bfloat16"):
            with no_gpu(place == "cpu"):
                tokenizer = VitVqgan.from_checkpoint(state, ImportConfig(dtype=dtype, decoder=False), decoder="check", where="memory")
                ids[place, dtype] = tokenizer.encode(images).ids_BLQ
    return {
        "device_float32_and_cpu_float32": share(ids["device", "float32"], ids["cpu", "float32"]),
        "device_bfloat16_and_cpu_bfloat16": share(ids["device", "bfloat16"], ids["cpu", "bfloat16"]),
        "device_bfloat16_and_device_float32": share(ids["device", "bfloat16"], ids["device", "float32"]),
        "cpu_bfloat16_and_cpu_float32": share(ids["cpu", "bfloat16"], ids["cpu", "float32"]),
    }


@contextmanager
def no_gpu(hidden: bool) -> Iterator[None]:
    """Let a tokenizer that is built and used inside the block run on the CPU."""
    if not hidden:
        yield
        return
    with patch.object(torch.cuda, "is_available", lambda: False):
        yield


def share(left: np.ndarray, right: np.ndarray) -> float:
    return round(float(np.mean(left == right)), 6)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    scale, report, root = SMALL if options.cpu else REAL, Report(options.out), Path(tempfile.mkdtemp(prefix="gpu-check-"))
    report.add(network=f"ViT-VQGAN {scale.network}, random weights", pixels=8 * scale.side)
    try:
        measure(report, scale, options.images, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(1 if report.values.get("failed") else 0)


def measure(report: Report, scale: Scale, given: Path | None, root: Path) -> None:
    images = given or root / "images"
    with report.step("images"):
        if given is None:
            draw_images(images, scale.images)
        report.add(images="drawn" if given is None else given.name)
    with report.step("import"):
        save_file(random_checkpoint(*SIZES[scale.network], side=scale.side), root / "vit.safetensors")
        options = ("--kind", "vit-vqgan", "--no-decoder")
        report.add(fingerprint=cli("import", "tokenizer", str(root / "vit.safetensors"), str(root / "tok"), *options)["fingerprint"])
        half = open_published("vit-vqgan", str(root / "vit.safetensors"), ImportConfig(dtype="bfloat16", decoder=False))
        save_tokenizer(half, Store(str(root / "tok16")))
    with report.step("tokenize twice"):
        report.add(tokenized=tokenize_twice(images, root, scale))
    with report.step("verify"), ThreadPoolExecutor() as both:  # this step is not timed
        here, there = (both.submit(made_again, root / "first", scale, hide_gpu=hidden) for hidden in (False, True))
        report.add(verified_on_device=here.result(), verified_on_cpu=there.result())
    with report.step("agreement"):
        report.add(agreement=agreements(scale))
    with report.step("overhead of shards"):
        from shard_overhead import measure_overhead

        names = root / "names"
        replicate(sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES), names, scale.links)
        overhead = measure_overhead(names, root / "tok16", root / "overhead", shard_rows=scale.links // 4, repeats=scale.repeats)
        report.add(shard_overhead=overhead)
    with report.step("encode_throughput"):
        said = run(sys.executable, str(BENCH / "encode_throughput.py"), *scale.throughput)
        report.add(encode_throughput=json.loads(said.strip().splitlines()[-1]))


if __name__ == "__main__":
    main()
