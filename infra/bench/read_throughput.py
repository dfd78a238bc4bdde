"""How fast are token shards read? Whole row groups to one numpy array against `pyarrow.parquet.read_table` of the same file.

    python infra/bench/read_throughput.py --data DIR

DIR holds `*.npy` (or `tokens/*.npy`) of unsigned ids [images, ...] with 1,024 ids an image; they are generated when absent. The rows are
written as one shard with the default codec. Two readers take turns: `ShardReader.iter_tokens`, row group by row group with checksums, and
`read_table(columns=["tokens"])`, which also uses threads and stops at an Arrow table. Other loaders read the same rows uncompressed, each
at its fastest setting, into batches of 1,024; a loader that is not installed (extra `bench`) is left out. All files are in the page cache,
and one process reads. The last line is one JSON object; `ratio` is our rate over read_table's, the median of the pairs, and should be
0.85 or more.
"""

from __future__ import annotations

import argparse
import json
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
import pyarrow.parquet as pq

from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards import Layout, Preprocess, ShardReader, ShardRows, TokenizerSpec, encode_shard, get_codec
from tokenshards.pipeline.storage.store import Store

SIDE, SITES, BATCH = 32, 1024, 1024


def load_ids(folder: Path | None, rows: int) -> np.ndarray:
    """uint16 [rows, 1024]; real rows are repeated with their ids shifted, so that no two rows are equal."""
    files = sorted(path for path in (*folder.glob("*.npy"), *folder.glob("tokens/*.npy")) if "codebook" not in path.name) if folder else []
    sets: dict[str, list[np.ndarray]] = {}
    for path in files:
        sets.setdefault(path.name.rsplit("_", 1)[0], []).append(np.load(path).reshape(-1, SITES))
    if sets:
        name = max(sets, key=lambda name: sum(len(part) for part in sets[name]))
        found = np.concatenate(sets[name]).astype(np.int64)
        print(f"{len(found)} real rows of {name}")
    else:
        rng = np.random.default_rng(0)
        walk = rng.integers(-9, 10, (1000, SIDE, SIDE)).cumsum(axis=1).cumsum(axis=2)
        found = np.abs(walk).reshape(-1, SITES) % 391
        print(f"{len(found)} generated rows")
    size = int(found.max()) + 1
    shift = np.arange(rows)[:, None] // len(found)
    return ((found[np.arange(rows) % len(found)] + shift) % size).astype(np.uint16)


def write_shard(ids_BL: np.ndarray, path: Path) -> None:
    count = len(ids_BL)
    spec = TokenizerSpec(
        family="bench",
        layout=Layout(kind="grid", grid=(SIDE, SIDE), sites=SITES),
        vocabulary=(int(ids_BL.max()) + 1,),
        preprocess=Preprocess(size=256),
    )
    rows = ShardRows(
        sample_id=[f"n{row % 1000:08d}/image_{row}.JPEG" for row in range(count)],
        view=np.zeros(count, np.int16),
        label=[row % 1000 for row in range(count)],
        meta={},
        orig_width=np.full(count, 500, np.int32),
        orig_height=np.full(count, 375, np.int32),
        orig_bytes=np.full(count, 110_000, np.int64),
    )
    shard = encode_shard(rows, TokenBatch(ids_BL[:, :, None]), spec=spec, codec=get_codec("default"), label_type="int64", meta_types={})
    path.write_bytes(shard.data)
    print(f"{count} rows in {len(shard.data):,} bytes: {shard.token_bytes / count:.1f} token bytes a row")


def ours(path: Path) -> int:
    return sum(len(tokens.ids_BLQ) for tokens in ShardReader.open(Store(str(path.parent)), path.name).iter_tokens())


def ours_one_thread(path: Path) -> int:
    reader = ShardReader.open(Store(str(path.parent)), path.name)
    return sum(len(reader.read_tokens(group).ids_BLQ) for group in range(reader.num_row_groups))


def ours_whole(path: Path) -> int:
    return len(ShardReader.open(Store(str(path.parent)), path.name).read(()).tokens.ids_BLQ)


def read_table(path: Path) -> int:
    return int(pq.read_table(path, columns=["tokens"]).num_rows)


def read_table_to_numpy(path: Path) -> int:
    column = pq.read_table(path, columns=["tokens"])["tokens"].combine_chunks()
    return len(column.flatten().to_numpy().reshape(len(column), SITES))


def rate(read: Callable[[], int]) -> float:
    start = time.perf_counter()
    rows = read()
    return rows / (time.perf_counter() - start)


def batched(samples: Iterable[Any], rows: int) -> int:
    """Stack samples into batches, as a training loop would need them, and count the rows."""
    iterator, seen = iter(samples), 0
    while batch := list(islice(iterator, BATCH)):
        seen += len(np.stack(batch))
    assert seen == rows, (seen, rows)
    return seen


def webdataset_reader(ids_BL: np.ndarray, root: Path) -> Callable[[], int]:
    import webdataset as wds

    with wds.TarWriter(str(root / "a.tar")) as sink:
        for row, ids_L in enumerate(ids_BL):
            sink.write({"__key__": f"{row:08d}", "npy": ids_L})
    return lambda: batched((s["npy"] for s in wds.WebDataset(f"file:{root / 'a.tar'}", shardshuffle=False).decode()), len(ids_BL))


def allow_torchvision() -> None:
    """Let a torchvision wheel import beside a CPU-only torch: define the two operators that torchvision's own library would define."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        allow_torchvision.library = torch.library.Library("torchvision", "DEF")  # type: ignore[attr-defined]
        for name in ("nms", "qnms"):
            allow_torchvision.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[attr-defined]


def streaming_reader(ids_BL: np.ndarray, root: Path) -> Callable[[], int]:
    allow_torchvision()
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(root / "mds"), columns={"tokens": f"ndarray:uint16:{SITES}"}) as sink:
        for ids_L in ids_BL:
            sink.write({"tokens": ids_L})
    dataset = StreamingDataset(local=str(root / "mds"), shuffle=False, batch_size=BATCH, num_canonical_nodes=1)
    return lambda: batched((sample["tokens"] for sample in dataset), len(ids_BL))


def one_row(ids_L: np.ndarray) -> Iterator[Any]:
    import torch

    yield torch.from_numpy(ids_L)


def litdata_reader(ids_BL: np.ndarray, root: Path) -> Callable[[], int]:
    allow_torchvision()
    import litdata

    loader = litdata.TokensLoader(block_size=SITES)
    litdata.optimize(
        one_row, list(ids_BL), str(root / "lit"), chunk_bytes="64MB", num_workers=1, item_loader=loader, verbose=False,
    )  # fmt: skip
    dataset = litdata.StreamingDataset(str(root / "lit"), item_loader=litdata.TokensLoader(block_size=SITES), shuffle=False)
    return lambda: batched((block.numpy() for block in dataset), len(ids_BL))


def others(ids_BL: np.ndarray, root: Path, repeats: int) -> dict[str, Any]:
    """Samples a second of the other loaders, or the reason why one was not measured."""
    found: dict[str, Any] = {}
    makers = {"litdata": litdata_reader, "mosaicml-streaming": streaming_reader, "webdataset": webdataset_reader}
    for name, make in makers.items():
        folder = root / name
        folder.mkdir()
        try:
            read = make(ids_BL, folder)
            found[name] = round(max(rate(read) for _ in range(repeats)))
        except ImportError as error:
            found[name] = f"not installed: {error}"
        print(f"{name:>20}: {found[name]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with *.npy of ids; generated when absent")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    ids_BL = load_ids(options.data, options.rows)
    root = Path(tempfile.mkdtemp())
    try:
        shard = root / "shard.parquet"
        write_shard(ids_BL, shard)
        reader = ShardReader.open(Store(str(root)), shard.name)
        assert np.array_equal(reader.read(()).tokens.ids_BLQ[:, :, 0], ids_BL)
        rates: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            for read in (ours, read_table, ours_one_thread, ours_whole, read_table_to_numpy):
                rates.setdefault(read.__name__, []).append(rate(lambda read=read: read(shard)))  # type: ignore[misc]
        for name, values in rates.items():
            print(f"{name:>20}: {statistics.median(values):,.0f} samples/s (median), {max(values):,.0f} (best)")
        pairs = [mine / theirs for mine, theirs in zip(rates["ours"], rates["read_table"], strict=True)]
        single = [mine / theirs for mine, theirs in zip(rates["ours_one_thread"], rates["read_table"], strict=True)]
        whole = [mine / theirs for mine, theirs in zip(rates["ours_whole"], rates["read_table_to_numpy"], strict=True)]
        result = {
            "name": "read_throughput",
            "ratio": round(statistics.median(pairs), 3),
            "limit": 0.85,
            "ratio_one_thread": round(statistics.median(single), 3),
            "ratio_whole_shard_to_one_array": round(statistics.median(whole), 3),
            "rows": len(ids_BL),
            "ids_per_row": SITES,
            "samples_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
            "other_loaders_samples_per_second": others(ids_BL[: min(len(ids_BL), 10_000)], root, 3),
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
