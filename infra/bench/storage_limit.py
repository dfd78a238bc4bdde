"""How few bytes do tokens take, and how fast are they written and read? Every codec on the same ids, with ids of images held out.

    python infra/bench/storage_limit.py

Sets of ids, each with a part to fit to and a part to measure:
- `taef2_k391`, `patch8_k1024`: stored ids beside the repository (`--tokens`), 800 images to fit to and 200 to measure;
- `default`: the default tokenizer on the sample images beside the repository (`--images`), every second image to fit to, with 15 random
  crops and mirrorings of each, the others to measure;
- `vq_autoencoder`, `latents_8192`: other tokenizers on the same images, fitted by their commands, the latter with 3 crops of each image;
  only with `--only`, they take minutes.

`share` is stored bytes over the order-0 entropy: the bytes of the measured ids under a table of how frequent each id is in the part to
fit to. For `compact`, the lengths of the streams count, and the model divided over 100,000 images, with its copy in a footer. The model is
fitted as `tokenize --codec compact` does.

Rates are images per CPU second of one process: `encode` from ids to the bytes of a shard, `decode` from the file of a shard to one array.
The measured images are repeated up to `--rows` rows. `compact_numpy` is the codec without numba, on `--slow-rows` rows. SeiT's form is its
byte code with gzip -9 over a file of all images, `constriction` an order-0 coder, where it is installed. `imagenet_gb` is for 1,281,167
images.

The last line is one JSON object. Its `ratio` is the share of `compact` on `taef2_k391`, which should be at most 0.64.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
from tokenize_overhead import SAMPLES

import tokenshards
from tokenshards.pipeline.conversion.codec_model import fit_codec, keep_model
from tokenshards.pipeline.interop.seit.bytes import MAX_CODES, decode_images, encode_images
from tokenshards.pipeline.records import TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards.codebook import Tables, codebook_sha256
from tokenshards.pipeline.shards.codecs import get_codec
from tokenshards.pipeline.shards.compact import rows as compact_rows
from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.model_file import model_bytes
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.spec import CodebookInfo, Layout, Preprocess, TokenizerSpec
from tokenshards.pipeline.shards.token_columns import Codec
from tokenshards.pipeline.shards.writer import EncodedShard, ShardRows, encode_shard
from tokenshards.pipeline.storage.store import Store

TOKENS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokens"
TAEF2 = TOKENS.with_name("taef2")
STORED, MADE, MORE = ("taef2_k391", "patch8_k1024"), ("default",), ("vq_autoencoder", "latents_8192")
BARS = {"taef2_k391": 0.64, "patch8_k1024": 0.56, "default": 0.70}
RATES = {"decode": 8000, "encode": 5000, "decode_numpy": 300}
LISTS = ("default", "publish", "zstd:19")
FITTED = {
    "vq_autoencoder": ("--kind", "vq-autoencoder"),
    "latents_8192": (
        *("--kind", "latent-kmeans", "--codes", "8192", "--mirrored"),
        *("--encoder", str(TAEF2 / "taef2_encoder.pth"), "--decoder", str(TAEF2 / "taef2_decoder.pth")),
    ),
}
VIEWS = {"latents_8192": 4}
"""Of each image to fit to; 16 where nothing stands here. The encoder of taef2 takes most of a second for each on a core."""
IMAGENET, IMAGENET_JPEG_GB, DATASET = 1_281_167, 140.0, 100_000
REPEATS = 3


@dataclass(frozen=True)
class TokenSet:
    """Ids to fit to and to measure, as a tokenizer would give them."""

    spec: TokenizerSpec
    tables: Tables
    train: TokenBatch
    test: TokenBatch

    def codebook(self) -> Tables:
        """Return the code vectors; so `fit_codec` takes the set for a tokenizer."""
        return self.tables


def stored_set(folder: Path, name: str) -> TokenSet:
    table = np.load(folder / f"{name}_codebook.npy").astype(np.float32)
    tables = {"level_0": table}
    parts = {
        part: np.concatenate([np.load(path) for path in sorted(folder.glob(f"{name}_{part}*.npy"))]).reshape(-1, 1024)
        for part in ("train", "test")
    }
    spec = TokenizerSpec(
        family="bench",
        layout=Layout(kind="grid", grid=(32, 32), sites=1024),
        vocabulary=(len(table),),
        preprocess=Preprocess(size=256),
        codebook=CodebookInfo(sha256=codebook_sha256(tables), dims=(table.shape[1],)),
    )
    train, test = (TokenBatch(parts[part].astype(spec.id_dtype)[:, :, None]) for part in ("train", "test"))
    return TokenSet(spec, tables, train, test)


def made_set(images: Path, work: Path, name: str) -> TokenSet:
    """Tokenize half of the images with many views, and the other half with one."""
    for place, files in zip(("fit", "measure"), _halves(images), strict=True):
        (work / place).mkdir(parents=True, exist_ok=True)
        for file in files:
            link = work / place / file.name
            if not link.exists():
                link.symlink_to(file.resolve())
    tokenizer: dict[str, Any] = {}
    if name in FITTED:
        command = [sys.executable, "-m", "tokenshards.cli", "fit-tokenizer", str(work / "fit"), str(work / name), *FITTED[name]]
        if not (work / name).exists():
            subprocess.run(command, check=True, stdout=sys.stderr)
        tokenizer = {"tokenizer": str(work / name)}
    for place, options in (
        ("fit", {"views": str(VIEWS.get(name, 16)), **tokenizer}),
        ("measure", {"tokenizer": str(work / f"{name}_fit")}),
    ):
        tokenshards.tokenize(str(work / place), str(work / f"{name}_{place}"), workers=1, **options)
    opened = [tokenshards.open_dataset(str(work / f"{name}_{place}")) for place in ("fit", "measure")]
    tokens = [concatenate_tokens([batch.tokens for batch in dataset.batches(256)]) for dataset in opened]
    return TokenSet(opened[0].spec, opened[0].codebook(), *tokens)


def _halves(images: Path) -> tuple[list[Path], list[Path]]:
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    if len(files) < 4:
        sys.exit(f"{images} holds {len(files)} images; expected at least 4: give a folder as --images")
    return files[::2], files[1::2]


def order0_bytes(tokens: TokenSet) -> float:
    """Return the bytes of a measured image under a table of the part to fit to."""
    bits = 0.0
    for level, counts_K in enumerate(tokens.train.count_ids(tokens.spec.vocabulary)):
        share_K = (counts_K + 0.5) / (counts_K + 0.5).sum()
        bits -= float(np.log2(share_K)[tokens.test.ids_BLQ[:, :, level]].sum())
    return bits / 8 / len(tokens.test)


def repeated(tokens: TokenBatch, count: int) -> TokenBatch:
    return tokens.take(np.arange(count) % len(tokens))


def shard_of(tokens: TokenBatch, spec: TokenizerSpec, codec: Codec) -> EncodedShard:
    count = len(tokens)
    rows = ShardRows(
        sample_id=[f"image_{row:08d}" for row in range(count)],
        view=np.zeros(count, np.int16),
        label=[None] * count,
        meta={},
        orig_width=np.full(count, 500, np.int32),
        orig_height=np.full(count, 375, np.int32),
        orig_bytes=np.full(count, 110_000, np.int64),
    )
    return encode_shard(rows, tokens, spec=spec, codec=codec, label_type=None, meta_types={})


def rate(work: Callable[[], Any], images: int) -> float:
    """Return images per CPU second of the best of some turns: other work on the machine only makes a turn slower."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return round(images / min(seconds), 1)


def measured_codec(tokens: TokenSet, codec: Codec, work: Path, count: int, entropy: float) -> dict[str, Any]:
    """Return size and rates of a codec of the product."""
    own = shard_of(tokens.test, tokens.spec, codec).token_bytes / len(tokens.test)
    share = 0.0
    if isinstance(codec, CompactCodec):
        share = (len(model_bytes(codec.model)) + len(codec.model_copy() or "")) / DATASET
        keep_model(codec, Store(str(work)))
    many = repeated(tokens.test, count)
    path = work / "shard.parquet"
    path.write_bytes(shard_of(many, tokens.spec, codec).data)
    found = ShardReader.open(Store(str(work)), path.name).read(()).tokens
    if not np.array_equal(found.ids_BLQ, many.ids_BLQ):
        sys.exit(f"{codec.name}: other ids came back")
    encode = rate(lambda: shard_of(many, tokens.spec, codec), count)
    decode = rate(lambda: ShardReader.open(Store(str(work)), path.name).read(()), count)
    return line_of(own, share, entropy, encode, decode)


def line_of(own: float, share: float, entropy: float, encode: float, decode: float) -> dict[str, Any]:
    total = own + share
    return {
        "bytes": round(total, 1),
        "of_it_model": round(share, 2),
        "share": round(total / entropy, 4),
        "encode": encode,
        "decode": decode,
        "imagenet_gb": round(total * IMAGENET / 1e9, 3),
    }


def measured_seit(tokens: TokenSet, count: int, entropy: float) -> dict[str, Any] | None:
    """Return size and rates of SeiT's byte code with gzip -9; None where it cannot hold the ids."""
    if tokens.spec.layout.ids_per_site > 1 or max(tokens.spec.vocabulary) > MAX_CODES:
        return None
    order_K = np.argsort(-tokens.train.count_ids(tokens.spec.vocabulary)[0], kind="stable")
    place_K = np.empty_like(order_K)
    place_K[order_K] = np.arange(len(order_K))
    ids_NL = place_K[tokens.test.ids_BLQ[:, :, 0]].astype(np.uint16)
    own = len(gzip.compress(encode_images(ids_NL)[0], 9)) / len(ids_NL)
    many_NL = ids_NL[np.arange(count) % len(ids_NL)]
    data, lengths_N = encode_images(many_NL)
    stored, bounds_N1 = gzip.compress(data, 9), np.concatenate([[0], np.cumsum(lengths_N)])
    encode = rate(lambda: gzip.compress(encode_images(many_NL)[0], 9), count)
    decode = rate(lambda: decode_images(gzip.decompress(stored), bounds_N1, many_NL.shape[1], len(order_K)), count)
    return line_of(own, 0.0, entropy, encode, decode)


def measured_constriction(tokens: TokenSet, count: int, entropy: float) -> dict[str, Any] | None:
    """Return size and rates of an order-0 ANS coder, a stream for 50 images; None where constriction is not installed."""
    try:
        import constriction
    except ImportError:
        return None
    models = []
    for counts_K in tokens.train.count_ids(tokens.spec.vocabulary):
        share_K = (counts_K + 0.5) / (counts_K + 0.5).sum()
        models.append(constriction.stream.model.Categorical(share_K, perfect=False))

    def encode(batch: TokenBatch) -> list[list[npt.NDArray[np.uint32]]]:
        streams = []
        for start in range(0, len(batch), 50):
            own = []
            for level, model in enumerate(models):
                coder = constriction.stream.stack.AnsCoder()
                coder.encode_reverse(batch.ids_BLQ[start : start + 50, :, level].astype(np.int32).ravel(), model)
                own.append(coder.get_compressed())
            streams.append(own)
        return streams

    def decode(streams: list[list[npt.NDArray[np.uint32]]]) -> None:
        for own in streams:
            for model, words in zip(models, own, strict=True):
                constriction.stream.stack.AnsCoder(words).decode(model, 50 * tokens.spec.layout.sites)

    size = sum(words.nbytes for own in encode(tokens.test) for words in own) / len(tokens.test)
    many = repeated(tokens.test, count - count % 50)
    streams = encode(many)
    return line_of(size, 0.0, entropy, rate(lambda: encode(many), len(many)), rate(lambda: decode(streams), len(many)))


def measured_set(name: str, tokens: TokenSet, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    entropy = order0_bytes(tokens)
    print(f"{name}: {len(tokens.train)} images to fit to, {len(tokens.test)} to measure; order-0 entropy {entropy:,.1f} bytes", flush=True)
    before = resource.getrusage(resource.RUSAGE_SELF)
    compact = fit_codec(tokens.train, tokens, DATASET, lambda line: print(f"  {line}", flush=True))  # type: ignore[arg-type]
    after = resource.getrusage(resource.RUSAGE_SELF)
    found: dict[str, Any] = {}
    for codec in (*(get_codec(other) for other in LISTS), compact):
        short = codec.name.partition(":")[0] if codec is compact else codec.name
        found[short] = measured_codec(tokens, codec, work, options.rows, entropy)
        print(f"  {short:<14}{json.dumps(found[short])}", flush=True)
    kernels, compact_rows.kernels = compact_rows.kernels, lambda: None
    try:
        found["compact_numpy"] = measured_codec(tokens, compact, work, options.slow_rows, entropy)
    finally:
        compact_rows.kernels = kernels
    found["seit_gzip"] = measured_seit(tokens, options.rows, entropy)
    found["constriction_order0"] = measured_constriction(tokens, options.rows, entropy)
    for other in ("compact_numpy", "seit_gzip", "constriction_order0"):
        print(f"  {other:<20}{json.dumps(found[other])}", flush=True)
    return {
        "order0_bytes": round(entropy, 1),
        "fitted_to": len(tokens.train),
        "measured": len(tokens.test),
        "model_bytes": len(model_bytes(compact.model)),
        "fit_cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "bar": BARS.get(name),
        "codecs": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tokens", type=Path, default=TOKENS, help="folder with the stored ids; default: those beside the repository")
    parser.add_argument("--images", type=Path, default=SAMPLES, help="folder with images; default: the samples beside the repository")
    parser.add_argument("--work", type=Path, help="folder that keeps the tokenized images; default: a temporary one")
    parser.add_argument(
        "--only", nargs="+", default=[*STORED, *MADE], choices=[*STORED, *MADE, *MORE], metavar="SET", help="some of the sets"
    )
    parser.add_argument("--rows", type=int, default=4096, help="rows of the shards that are timed")
    parser.add_argument("--slow-rows", type=int, default=512, help="likewise for the decoder without numba")
    options = parser.parse_args()
    sets = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            tokens = stored_set(options.tokens, name) if name in STORED else made_set(options.images, work, name)
            sets[name] = measured_set(name, tokens, work, options)
    first = sets[options.only[0]]["codecs"]["compact"]["share"]
    line = {
        "name": "storage_limit",
        "ratio": sets.get("taef2_k391", {}).get("codecs", {}).get("compact", {}).get("share", first),
        "sets": sets,
        "rates_should_be": RATES,
        "imagenet_jpeg_gb": IMAGENET_JPEG_GB,
        "rows": options.rows,
        "slow_rows": options.slow_rows,
        "load": [round(value, 2) for value in os.getloadavg()],
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
