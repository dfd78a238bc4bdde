"""How fast do batches come from token shards? Compares raw ids with other loaders, and fully augmented embeddings with SeiT's code path.

    python infra/bench/loader_throughput.py --data DIR

DIR holds `*.npy` (or `tokens/*.npy`) of ids with 1,024 ids an image and a `*_codebook.npy`; they are generated when absent. There are three
parts. Everything is in the page cache, and every side runs in one process:

1. Raw batches of 1,024 rows over one cold epoch and two warm ones. Ours: `TokenLoader`, order `global`, shuffled, a fresh cache folder, so
   the first epoch decodes the shards; ids and labels. The other loaders get uncompressed ids alone, and each its fastest of these settings:
   - litdata: `TokensLoader` blocks stacked by numpy, unshuffled and shuffled, and its `StreamingDataLoader(num_workers=0)`;
   - mosaicml-streaming: `bytes` columns as numpy views, stacked or joined, unshuffled (its `ndarray` columns are slower);
   - webdataset: raw bytes as numpy views, stacked, unshuffled (shuffling and its own `npy` decoder are slower).
2. Training batches of 128: synonyms, block swap, random-resized crop 32 -> 28, noise, CutMix, with the defaults of `AugmentConfig`, one
   thread. Ours: `TokenLoader` -> `TokenTransform`, with the codebook lookup in its middle. The reference (SeiT, Park et al. 2023,
   following its code): per sample ids -> Token-EDA -> float32 one-hot [K, 32, 32] -> crop by bicubic `F.interpolate`; per batch
   one-hot @ codebook -> noise -> CutMix. SeiT's Python loop over ids draws and reads one number for each id. Here whole-grid operations
   replace this loop, so the reference is faster than the original. `augmented_over_reference_with_its_loop` is the ratio to the original
   loop; it has no limit.
3. The same from our side on one core: with all augmentations, and with the gather alone.

Sides alternate; ratios are medians. The last line is one JSON object; `ratio` is the smallest of all figures over their limits.

Shapes: B samples, N rows, L sites, Q ids per site, K codes, D values of a code, H x W grid, C classes, S synonyms of a code.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from read_throughput import SIDE, SITES, allow_torchvision, load_ids, one_row
from safetensors.numpy import save

from tokenshards.pipeline.malloc import keep_freed_memory
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards import (
    CodebookInfo,
    Layout,
    Preprocess,
    ShardRows,
    TokenDataset,
    TokenizerSpec,
    encode_shard,
    get_codec,
    open_dataset,
)
from tokenshards.pipeline.shards.codebook import codebook_sha256
from tokenshards.pipeline.shards.commit import write_object
from tokenshards.pipeline.shards.manifest import Manifest, ShardEntry, publish_manifest
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import TokenTransform, soft_targets
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding

EPOCHS, RAW_BATCH, TRAIN_BATCH, CLASSES, SMOOTHING = 3, 1024, 128, 1000, 0.1
SHARD_ROWS, WIDTH, SLOW_ROWS = 10_000, 32, 10_000
LIMITS = {
    "over_litdata": 5,
    "over_mosaicml_streaming": 20,
    "over_webdataset": 20,
    "augmented_over_reference": 60,
    "augmented_per_second_one_core": 3_000,
    "gathered_per_second_one_core": 20_000,
}


def load_codebook(folder: Path | None, codes: int) -> np.ndarray:
    files = sorted(path for path in (*folder.glob("*_codebook.npy"), *folder.glob("tokens/*_codebook.npy"))) if folder else []
    for path in files:
        codebook = np.load(path)
        if codebook.shape == (codes, WIDTH):
            return np.ascontiguousarray(codebook, np.float32)
    return np.random.default_rng(0).standard_normal((codes, WIDTH)).astype(np.float32)


def write_dataset(ids_NL: np.ndarray, codebook_KD: np.ndarray, root: Path) -> TokenDataset:
    """Publish the rows as a dataset of our own, in shards of 10,000."""
    tables = {"level_0": codebook_KD}
    spec = TokenizerSpec(
        family="bench",
        layout=Layout(kind="grid", grid=(SIDE, SIDE), sites=SITES),
        vocabulary=(len(codebook_KD),),
        preprocess=Preprocess(size=256),
        codebook=CodebookInfo(sha256=codebook_sha256(tables), dims=(WIDTH,)),
    )
    store, entries = Store(str(root)), []
    for shard, start in enumerate(range(0, len(ids_NL), SHARD_ROWS)):
        part_NL = ids_NL[start : start + SHARD_ROWS]
        count, numbers = len(part_NL), range(start, start + len(part_NL))
        rows = ShardRows(
            sample_id=[f"n{number % CLASSES:08d}/image_{number}.JPEG" for number in numbers],
            view=np.zeros(count, np.int16),
            label=[number % CLASSES for number in numbers],
            meta={},
            orig_width=np.full(count, 500, np.int32),
            orig_height=np.full(count, 375, np.int32),
            orig_bytes=np.full(count, 110_000, np.int64),
        )
        tokens = TokenBatch(part_NL[:, :, None])
        data = encode_shard(rows, tokens, spec=spec, codec=get_codec("default"), label_type="int64", meta_types={}).data
        reference = write_object(store, "shards", shard, data)
        entries.append(
            ShardEntry(
                shard=shard, path=reference.path, sha256=reference.sha256, size=reference.size, rows=count, quarantine_path=None,
                quarantine_sha256=None, quarantine_size=0, quarantined=0, inputs_seen=count, plan_id="bench", commit_sha256="",
            )
        )  # fmt: skip
    store.write("tokenizer/codebook.safetensors", save(tables))
    counts = tuple(np.bincount(np.arange(len(ids_NL)) % CLASSES, minlength=CLASSES).tolist())
    manifest = Manifest(
        generation=0, parent=None, plan_ids=("bench",), spec=spec, classes=tuple(range(CLASSES)), class_counts=counts,
        totals={}, statistics={}, card={}, tokenizer_objects={}, label_type="int64", shards=entries,
    )  # fmt: skip
    publish_manifest(store, manifest)
    return open_dataset(str(root))


def seconds(work: Callable[[], int], rows: int) -> float:
    start = time.perf_counter()
    seen = work()
    taken = time.perf_counter() - start
    assert seen == rows, (seen, rows)
    return taken


def ours_raw(dataset: TokenDataset, root: Path) -> list[float]:
    """Return the seconds of one cold and two warm epochs. The first epoch includes opening, and so the decoding."""
    cache = Path(tempfile.mkdtemp(dir=root))
    loaders: list[TokenLoader] = []

    def epoch() -> int:
        if not loaders:
            loaders.append(TokenLoader(dataset, LoaderConfig(batch_size=RAW_BATCH, end="pad", cache_dir=str(cache))))
        return int(sum(batch.weights_B.sum() for batch in loaders[0]))

    taken = [seconds(epoch, len(dataset)) for _ in range(EPOCHS)]
    loaders[0].close()
    shutil.rmtree(cache, ignore_errors=True)
    return taken


def batched(samples: Iterable[Any], join: Callable[[list[Any]], np.ndarray] = np.stack) -> int:
    iterator, seen = iter(samples), 0
    while batch := list(islice(iterator, RAW_BATCH)):
        seen += len(join(batch))
    return seen


def joined(parts: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(parts), np.uint16).reshape(len(parts), SITES)


def litdata_settings(ids_NL: np.ndarray, root: Path) -> dict[str, Callable[[], int]]:
    allow_torchvision()
    import litdata

    loader = litdata.TokensLoader(block_size=SITES)
    litdata.optimize(
        one_row, list(ids_NL), str(root / "lit"), chunk_bytes="64MB", num_workers=1, item_loader=loader, verbose=False,
    )  # fmt: skip

    def opened(name: str, shuffle: bool) -> Any:
        # Separate folders: two litdata datasets on one folder wait for each other's chunks.
        shutil.copytree(root / "lit", root / name)
        return litdata.StreamingDataset(str(root / name), item_loader=litdata.TokensLoader(block_size=SITES), shuffle=shuffle)

    plain, shuffled = opened("plain", False), opened("shuffled", True)
    batches = litdata.StreamingDataLoader(opened("loader", False), batch_size=RAW_BATCH, num_workers=0)
    return {
        "stacked": lambda: batched(block.numpy() for block in plain),
        "stacked, shuffled": lambda: batched(block.numpy() for block in shuffled),
        "StreamingDataLoader": lambda: sum(len(batch) for batch in batches),
    }


def streaming_settings(ids_NL: np.ndarray, root: Path) -> dict[str, Callable[[], int]]:
    allow_torchvision()
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(root / "mds"), columns={"tokens": "bytes"}) as sink:
        for ids_L in ids_NL:
            sink.write({"tokens": ids_L.tobytes()})
    dataset = StreamingDataset(local=str(root / "mds"), shuffle=False, batch_size=RAW_BATCH, num_canonical_nodes=1)
    return {
        "stacked": lambda: batched(np.frombuffer(sample["tokens"], np.uint16) for sample in dataset),
        "joined": lambda: batched((sample["tokens"] for sample in dataset), joined),
    }


def webdataset_settings(ids_NL: np.ndarray, root: Path) -> dict[str, Callable[[], int]]:
    import webdataset as wds

    tar = root / "a.tar"
    with wds.TarWriter(str(tar)) as sink:
        for row, ids_L in enumerate(ids_NL):
            sink.write({"__key__": f"{row:08d}", "bin": ids_L.tobytes()})
    samples = wds.WebDataset(f"file:{tar}", shardshuffle=False)
    return {"stacked": lambda: batched(np.frombuffer(sample["bin"], np.uint16) for sample in samples)}


OTHERS = {
    "litdata": (litdata_settings, None),
    "mosaicml_streaming": (streaming_settings, SLOW_ROWS),
    "webdataset": (webdataset_settings, SLOW_ROWS),
}


def raw_batches(ids_NL: np.ndarray, dataset: TokenDataset, root: Path, repeats: int) -> dict[str, Any]:
    """Return samples per second over three epochs, ours and the best setting of each other loader, in turns; slow loaders get fewer
    rows."""
    sides: dict[str, tuple[int, dict[str, Callable[[], int]]]] = {}
    for name, (make, rows) in OTHERS.items():
        folder = root / name
        folder.mkdir()
        part_NL = ids_NL[:rows]
        try:
            sides[name] = len(part_NL), make(part_NL, folder)
        except ImportError as error:
            print(f"{name} is not installed: {error}")
    cold, warm, ours = [], [], []
    theirs: dict[str, dict[str, list[float]]] = {name: {setting: [] for setting in settings} for name, (_, settings) in sides.items()}
    for repeat in range(repeats):
        taken = ours_raw(dataset, root)
        ours.append(EPOCHS * len(ids_NL) / sum(taken))
        cold.append(len(ids_NL) / taken[0])
        warm.append((EPOCHS - 1) * len(ids_NL) / sum(taken[1:]))
        for name, (rows, settings) in sides.items():
            if repeat and name != "litdata":
                continue
            for setting, work in settings.items():
                theirs[name][setting].append(EPOCHS * rows / sum(seconds(work, rows) for _ in range(EPOCHS)))
    print(
        f"{'ours':>20}: {statistics.median(ours):,.0f} samples/s; cold {statistics.median(cold):,.0f}, warm {statistics.median(warm):,.0f}"
    )
    result: dict[str, Any] = {
        "ours": round(statistics.median(ours)), "ours_cold": round(statistics.median(cold)), "ours_warm": round(statistics.median(warm)),
    }  # fmt: skip
    for name, rates in theirs.items():
        middle = {setting: statistics.median(values) for setting, values in rates.items()}
        best = max(middle, key=lambda setting: middle[setting])
        result[name] = round(middle[best])
        print(f"{name:>20}: {middle[best]:,.0f} samples/s ({best}; {', '.join(f'{s} {v:,.0f}' for s, v in middle.items())})")
    return result


def our_batches(dataset: TokenDataset, cache: Path, config: AugmentConfig | None) -> Iterator[int]:
    """Yield the size of one batch of embeddings after the other, all made in the calling thread. Without a config only the gather runs."""
    tables = dataset.codebook()
    embedding = TokenEmbedding(dataset.spec, tables)
    transform = TokenTransform(dataset.spec, tables, config, len(dataset.classes), SMOOTHING) if config else None
    # One core: no thread makes batches ahead.
    loader = TokenLoader(dataset, LoaderConfig(batch_size=TRAIN_BATCH, cache_dir=str(cache), prefetch_batches=0))
    memory = embedding.buffer(TRAIN_BATCH)
    while True:
        for batch in loader:
            if transform is None:
                yield len(embedding(batch.ids_BLQ, out=memory))
                continue
            x_BDHW, _, _ = transform(Lookup(embedding), batch)
            assert x_BDHW.shape == (TRAIN_BATCH, WIDTH, 28, 28)
            yield len(x_BDHW)


class Reference:
    """SeiT's data path for one batch; `config` holds the probabilities."""

    def __init__(self, ids_NL: np.ndarray, codebook_KD: np.ndarray, config: AugmentConfig, *, id_by_id: bool = False) -> None:
        self.ids_NL, self.config, self.id_by_id = ids_NL, config, id_by_id
        self.codebook_KD = torch.from_numpy(codebook_KD)
        unit_KD = F.normalize(self.codebook_KD, dim=1)
        likeness_KK = (unit_KD @ unit_KD.T).fill_diagonal_(-2)
        self.synonyms_KS = likeness_KK.topk(config.synonym_count, dim=1).indices
        self.generator = torch.Generator().manual_seed(0)
        self.next_row = 0

    def batches(self) -> Iterator[int]:
        while True:
            rows = np.arange(self.next_row, self.next_row + TRAIN_BATCH) % len(self.ids_NL)
            self.next_row += TRAIN_BATCH
            x_BKHW = torch.stack([self.sample(row) for row in rows.tolist()])
            x_BDHW = torch.einsum("bkhw,kd->bdhw", x_BKHW, self.codebook_KD)
            labels_B = torch.from_numpy(rows % CLASSES)
            self.noise(x_BDHW)
            self.cutmix(x_BDHW, soft_targets(labels_B, CLASSES, SMOOTHING))
            assert x_BDHW.shape == (TRAIN_BATCH, WIDTH, 28, 28)
            yield TRAIN_BATCH

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def integer(self, high: int) -> int:
        return int(torch.randint(high, (), generator=self.generator))

    def sample(self, row: int) -> torch.Tensor:
        """Ids to a cropped one-hot [K, 28, 28]."""
        ids_HW = torch.from_numpy(self.ids_NL[row].astype(np.int64)).view(SIDE, SIDE)
        draw = self.uniform()
        if draw < self.config.synonym_prob:
            ids_HW = self.synonyms_id_by_id(ids_HW) if self.id_by_id else self.synonyms(ids_HW)
        elif draw < self.config.synonym_prob + self.config.swap_prob:
            ids_HW = self.swap(ids_HW)
        onehot_KHW = torch.zeros(len(self.codebook_KD), SIDE, SIDE).scatter_(0, ids_HW[None], 1.0)
        top, left, height, width = self.crop_box()
        crop_1KHW = onehot_KHW[None, :, top : top + height, left : left + width]
        return F.interpolate(crop_1KHW, size=(28, 28), mode="bicubic")[0]

    def synonyms(self, ids_HW: torch.Tensor) -> torch.Tensor:
        replaced_HW = torch.rand(SIDE, SIDE, generator=self.generator) < self.config.synonym_replace_prob
        picks_HW = torch.randint(self.config.synonym_count, (SIDE, SIDE), generator=self.generator)
        return torch.where(replaced_HW, self.synonyms_KS[ids_HW, picks_HW], ids_HW)

    def synonyms_id_by_id(self, ids_HW: torch.Tensor) -> torch.Tensor:
        replaced_HW = ids_HW.clone()
        for row in range(SIDE):
            for column in range(SIDE):
                if self.uniform() < self.config.synonym_replace_prob:
                    replaced_HW[row, column] = self.synonyms_KS[ids_HW[row, column], self.integer(self.config.synonym_count)]
        return replaced_HW

    def swap(self, ids_HW: torch.Tensor) -> torch.Tensor:
        side = int(SIDE * self.uniform(0, self.config.swap_max_share))
        while True:
            (top, left), (other_top, other_left) = ((self.integer(SIDE - side), self.integer(SIDE - side)) for _ in range(2))
            if math.hypot(top - other_top, left - other_left) > side:
                break
        swapped_HW = ids_HW.clone()
        swapped_HW[top : top + side, left : left + side] = ids_HW[other_top : other_top + side, other_left : other_left + side]
        swapped_HW[other_top : other_top + side, other_left : other_left + side] = ids_HW[top : top + side, left : left + side]
        return swapped_HW

    def crop_box(self) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = SIDE * SIDE * self.uniform(self.config.crop_scale_min, 1)
            ratio = math.exp(self.uniform(-math.log(self.config.crop_ratio_max), math.log(self.config.crop_ratio_max)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= SIDE and 0 < height <= SIDE:
                return self.integer(SIDE - height + 1), self.integer(SIDE - width + 1), height, width
        return 0, 0, SIDE, SIDE

    def noise(self, x_BDHW: torch.Tensor) -> None:
        count = int(len(x_BDHW) * self.config.noise_prob)
        chosen = torch.randperm(len(x_BDHW), generator=self.generator)[:count]
        channel = torch.randn(count, WIDTH, 1, 1, generator=self.generator) * self.config.noise_channel_std
        x_BDHW[chosen] += channel + torch.randn(count, *x_BDHW.shape[1:], generator=self.generator) * self.config.noise_std

    def cutmix(self, x_BDHW: torch.Tensor, targets_BC: torch.Tensor) -> torch.Tensor:
        side, lam = x_BDHW.shape[-1], self.uniform()  # Beta(1, 1)
        cut = int(side * math.sqrt(1 - lam))
        middle_y, middle_x = self.integer(side), self.integer(side)
        top, bottom = max(0, middle_y - cut // 2), min(side, middle_y + cut // 2)
        left, right = max(0, middle_x - cut // 2), min(side, middle_x + cut // 2)
        x_BDHW[:, :, top:bottom, left:right] = x_BDHW.flip(0)[:, :, top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (side * side)
        return lam * targets_BC + (1 - lam) * targets_BC.flip(0)


def rate(batches: Iterator[int], count: int) -> float:
    start = time.perf_counter()
    return sum(islice(batches, count)) / (time.perf_counter() - start)


def embedding_batches(ids_NL: np.ndarray, dataset: TokenDataset, root: Path, repeats: int) -> dict[str, float]:
    """Return samples per second of augmented and plain embeddings, ours and the reference's, in turns on one core."""
    config = AugmentConfig()
    cache = root / "cache"
    sides = {
        "augmented": our_batches(dataset, cache, config),
        "gathered": our_batches(dataset, cache, None),
        "reference": Reference(ids_NL, dataset.codebook()["level_0"], config).batches(),
        "reference_with_its_loop": Reference(ids_NL, dataset.codebook()["level_0"], config, id_by_id=True).batches(),
    }
    batches = {"augmented": 24, "gathered": 48, "reference": 1, "reference_with_its_loop": 1}
    for side in sides.values():
        next(side)  # decodes and fills caches
    rates: dict[str, list[float]] = {name: [] for name in sides}
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(everything)})
    try:
        for _ in range(repeats):
            for name, side in sides.items():
                rates[name].append(rate(side, batches[name]))
    finally:
        os.sched_setaffinity(0, everything)

    def over(name: str) -> float:
        return statistics.median(mine / theirs for mine, theirs in zip(rates["augmented"], rates[name], strict=True))

    result = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in result.items():
        print(f"{name:>24}: {value:,.1f} samples/s (median), {max(rates[name]):,.1f} (best)")
    ratios = {"over_reference": over("reference"), "over_reference_with_its_loop": over("reference_with_its_loop")}
    return {**{name: round(value, 1) for name, value in result.items()}, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with *.npy of ids and a codebook; generated when absent")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # for all sides, as in `tokenshards train`
    ids_NL = load_ids(options.data, options.rows)
    codebook_KD = load_codebook(options.data, int(ids_NL.max()) + 1)
    root = Path(tempfile.mkdtemp())
    try:
        dataset = write_dataset(ids_NL, codebook_KD, root / "dataset")
        raw = raw_batches(ids_NL, dataset, root, options.repeats)
        embedded = embedding_batches(ids_NL, dataset, root, options.repeats)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    figures = {f"over_{name}": raw["ours"] / raw[name] for name in OTHERS if name in raw}
    figures["augmented_over_reference"] = embedded.pop("over_reference")
    with_its_loop = embedded.pop("over_reference_with_its_loop")
    figures["augmented_per_second_one_core"] = embedded["augmented"]
    figures["gathered_per_second_one_core"] = embedded["gathered"]
    result = {
        "name": "loader_throughput",
        "ratio": round(min(value / LIMITS[name] for name, value in figures.items()), 3),
        "limit": 1,
        **{name: round(value, 1) for name, value in figures.items()},
        "limits": LIMITS,
        "augmented_over_reference_with_its_loop": round(with_its_loop, 1),
        "rows": len(ids_NL),
        "epochs": EPOCHS,
        "raw_samples_per_second": raw,
        "embedding_samples_per_second": embedded,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
