"""How much memory does training with 21,841 classes take beside the model?

    python infra/bench/many_classes.py

Writes made-up tokens of the shape of ImageNet-21k (21,841 classes, 10^6 rows, 4 x 4 ids each), decodes all of them and trains ViT-nano on a
few batches, augmented, with a validation set and a checkpoint. Counted is the peak of resident memory of that process, without what it had
after its imports and without the model: four times its parameters, for weights, gradients and the two moments of Adam. `ratio` is that over
a gigabyte. The mapped copy of the ids counts too.

Shapes: B rows of a shard, L sites.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards import CodebookInfo, Layout, Preprocess, ShardRows, TokenizerSpec, encode_shard, get_codec
from tokenshards.pipeline.shards.codebook import codebook_sha256
from tokenshards.pipeline.shards.commit import write_object
from tokenshards.pipeline.shards.manifest import Manifest, ShardEntry, publish_manifest
from tokenshards.pipeline.storage.store import Store

CLASSES, CODES, SIDE, WIDTH, SHARD_ROWS, VAL_ROWS = 21_841, 256, 4, 8, 50_000, 2_000
GIGABYTE = 1e9


def write_dataset(root: Path, rows: int, seed: int) -> None:
    """Publish random ids, with labels by name; classes are dealt so that any CLASSES rows in succession have all of them."""
    rng = np.random.default_rng(seed)
    tables = {"level_0": np.random.default_rng(0).standard_normal((CODES, WIDTH)).astype(np.float32)}
    spec = TokenizerSpec(
        family="bench",
        layout=Layout(kind="grid", grid=(SIDE, SIDE), sites=SIDE * SIDE),
        vocabulary=(CODES,),
        preprocess=Preprocess(size=32),
        codebook=CodebookInfo(sha256=codebook_sha256(tables), dims=(WIDTH,)),
    )
    names = [f"n{number:08d}" for number in range(CLASSES)]
    counts_C = np.bincount(np.arange(rows) * 7919 % CLASSES, minlength=CLASSES)
    store, entries = Store(str(root)), []
    for shard, start in enumerate(range(0, rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, rows - start)
        labels = [names[number * 7919 % CLASSES] for number in range(start, start + count)]
        columns = ShardRows(
            sample_id=[f"{label}/{number}.JPEG" for number, label in enumerate(labels, start)],
            view=np.zeros(count, np.int16),
            label=list(labels),
            meta={},
            orig_width=np.full(count, 500, np.int32),
            orig_height=np.full(count, 375, np.int32),
            orig_bytes=np.full(count, 110_000, np.int64),
        )
        tokens = TokenBatch(rng.integers(0, CODES, (count, SIDE * SIDE, 1)).astype(spec.id_dtype))
        data = encode_shard(columns, tokens, spec=spec, codec=get_codec("default"), label_type="string", meta_types={}).data
        written = write_object(store, "shards", shard, data)
        entries.append(
            ShardEntry(
                shard=shard, path=written.path, sha256=written.sha256, size=written.size, rows=count, quarantine_path=None,
                quarantine_sha256=None, quarantine_size=0, quarantined=0, inputs_seen=count, plan_id="bench", commit_sha256="",
            )
        )  # fmt: skip
    store.write("tokenizer/codebook.safetensors", save(tables))
    manifest = Manifest(
        generation=0, parent=None, plan_ids=("bench",), spec=spec, classes=tuple(names), class_counts=tuple(counts_C.tolist()),
        totals={}, statistics={}, card={}, tokenizer_objects={}, label_type="string", shards=entries,
    )  # fmt: skip
    publish_manifest(store, manifest)


def resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def train(root: Path, batch: int, steps: int) -> dict[str, float]:
    """Train in this process and return its megabytes."""
    import torch

    from tokenshards.pipeline.shards import open_dataset
    from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
    from tokenshards.stem_adaptors.data.selection import select
    from tokenshards.stem_adaptors.ranks import Ranks
    from tokenshards.stem_adaptors.training.trainer import Trainer, TrainRequest

    class Quiet:
        def say(self, message: str) -> None: ...

        def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None: ...

        def epoch(self, record: dict[str, object]) -> None: ...

    torch.set_num_threads(2)
    began, imported = time.perf_counter(), resident()
    request = TrainRequest(
        data=select(open_dataset(str(root / "train")), rows=range(batch * steps)),  # all rows are decoded, some are drawn
        val=open_dataset(str(root / "val")),
        out=Store(str(root / "run")),
        model=ModelConfig(name="vit_nano"),
        augment=AugmentConfig(),
        loader=LoaderConfig(batch_size=batch, cache_dir=str(root / "cache")),
        train=TrainConfig(epochs=1),
    )
    trainer = Trainer(request, Ranks(), torch.device("cpu"), Quiet())
    record = trainer.fit().record
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    model = 4.0 * sum(parameter.numel() * parameter.element_size() for parameter in trainer.model.parameters())
    return {
        "megabytes": round((peak - imported - model) / 1e6, 1),
        "peak_megabytes": round(peak / 1e6, 1),
        "after_imports_megabytes": round(imported / 1e6, 1),
        "model_megabytes": round(model / 1e6, 1),
        "val_images": record["val_images"],
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--train-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train_in:
        print(json.dumps(train(options.train_in, options.batch, options.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "train", options.rows, 0)
        write_dataset(Path(folder) / "val", VAL_ROWS, 1)
        # A process of its own: making the data must not count.
        command = [sys.executable, __file__, "--train-in", folder, "--batch", str(options.batch), "--steps", str(options.steps)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    result = {"name": "many_classes", "ratio": round(found["megabytes"] * 1e6 / GIGABYTE, 3), "limit": 1, "classes": CLASSES}
    print(json.dumps({**result, "rows": options.rows, "batch": options.batch, "steps": options.steps, **found}))


if __name__ == "__main__":
    main()
