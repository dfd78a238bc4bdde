"""`export seit`: write a dataset in SeiT's release layout, in bounded memory; equal datasets give equal bytes.

The token stream goes to a temporary file first. Every file is published whole, the token stream last, so if it exists the export is
complete.

Shapes: B images, K codes, D width of a code vector.
"""

from __future__ import annotations

import gzip
import io
import json
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.interop.seit.bytes import MAX_CODES, encode_images
from tokenshards.pipeline.interop.seit.importer import SYNONYMS_PATH
from tokenshards.pipeline.interop.seit.tables import import_torch, nearest_codes
from tokenshards.pipeline.interop.seit.token_files import check_split_name
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["SeitExport", "export_seit"]

BATCH_IMAGES = 512
GZIP_LEVEL = 6
SEIT_GRID = (32, 32)
CLASSES_NAME = "classes.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeitExport:
    """Counts, files and place of an export."""

    url: str
    split: str
    images: int
    classes: int
    token_bytes: int
    """Bytes of the token stream before gzip."""
    files: dict[str, int]
    """Bytes of each file."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {**asdict(self), "notes": list(self.notes)}

    def rows(self) -> list[tuple[str, str]]:
        """Return the table as (name, value) text."""
        sizes = [(name, f"{size:,} bytes") for name, size in self.files.items()]
        return [("images", f"{self.images:,}"), ("classes", f"{self.classes:,}"), *sizes, *(("note", note) for note in self.notes)]


def export_seit(
    data_url: str, out_url: str, *, split: str, options: dict[str, Any] | None = None, out_options: dict[str, Any] | None = None
) -> SeitExport:
    """Write the rows of a dataset, in shard order, as split `split` of SeiT's layout below `out_url`; each shard is verified.

    Raises ConfigError if the format cannot hold the dataset (the message lists every reason), if a codebook, synonym or class file of
    another split at `out_url` would be replaced by a different one, or if torch, which writes codebook.ckpt, is missing.
    """
    check_split_name(split)
    dataset = open_dataset(data_url, storage_options=options, verify=True)
    _refuse_unfit(dataset)
    torch = import_torch("codebook.ckpt")
    out = Store(out_url, storage_options=out_options)
    codebook_KD = dataset.codebook()["level_0"]
    checkpoint = io.BytesIO()
    torch.save(torch.from_numpy(np.ascontiguousarray(codebook_KD)), checkpoint)
    files = {
        "codebook.ckpt": checkpoint.getvalue(),
        "codebook.safetensors": save({"codebook": np.ascontiguousarray(codebook_KD)}),
        "synonyms.json": _synonyms(dataset, codebook_KD),
        CLASSES_NAME: "".join(f"{name}\n" for name in dataset.classes).encode(),
    }
    _refuse_other_files(out, files)
    with tempfile.TemporaryFile(prefix="tokenshards-export-") as stream:
        labels_N, sizes_N = _write_stream(dataset, stream)
        index = io.BytesIO()
        np.save(index, np.concatenate([[0], np.cumsum(sizes_N)]).astype(np.int64))
        files[f"{split}-token.index.npy.gz"] = gzip.compress(index.getvalue(), GZIP_LEVEL, mtime=0)
        files[f"{split}-label.txt"] = "".join(f"{label}\n" for label in labels_N.tolist()).encode()
        with _mapped(stream) as mapped:
            files[f"{split}-token.data.bin.gz"] = mapped
            for name, data in files.items():
                out.write(name, data)
            sizes = {name: len(data) for name, data in files.items()}
    grid = dataset.spec.layout.grid
    odd_grid = f"the grid is {grid[0]}x{grid[1]}; SeiT's own reader takes only {SEIT_GRID[0]}x{SEIT_GRID[1]}"
    return SeitExport(
        url=out.url,
        split=split,
        images=len(labels_N),
        classes=len(dataset.classes),
        token_bytes=int(sizes_N.sum()),
        files=sizes,
        notes=() if grid == SEIT_GRID else (odd_grid,),
    )


def _refuse_unfit(dataset: TokenDataset) -> None:
    spec, layout = dataset.spec, dataset.spec.layout
    unlabelled = len(dataset) - sum(dataset.manifest.class_counts)
    multiline = [name for name in dataset.classes if len(str(name).splitlines()) != 1]
    reasons = [
        reason
        for applies, reason in (
            (layout.kind != "grid", f"layout {layout.kind}; SeiT's format holds grids"),
            (dataset.views > 1, f"{dataset.views} views per image; SeiT's format holds one row per image"),
            (layout.variable, "rows of different shape; SeiT's format holds one grid for all"),
            (layout.ids_per_site != 1, f"levels {layout.ids_per_site}; SeiT's format holds one id per site"),
            (max(spec.vocabulary) > MAX_CODES, f"vocabulary {max(spec.vocabulary):,}; SeiT's format holds at most {MAX_CODES} codes"),
            (spec.codebook is None, "no codebook; SeiT's classifiers embed ids by its rows"),
            (not len(dataset), "no rows; SeiT's format holds at least one image"),
            (unlabelled > 0, f"{counted(unlabelled, 'row')} without a label; SeiT's format holds a class for every image"),
            (bool(multiline), f"the class name {shorten(multiline[:1])}; {CLASSES_NAME} holds one name per line"),
        )
        if applies
    ]
    if reasons:
        raise ConfigError(f"{dataset.store.url} cannot be written in SeiT's format: {'. '.join(reasons)}")


def _refuse_other_files(out: Store, files: dict[str, bytes]) -> None:
    """Raise ConfigError if a file that all splits share already exists with other content."""
    for name, data in files.items():
        if out.info(name) is not None and out.read(name) != data:
            raise ConfigError(
                f"{out.url}/{name} exists with other content; expected that of this dataset, because all splits in a folder share "
                "this file. Choose another output"
            )


def _write_stream(dataset: TokenDataset, file: IO[bytes]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Write the token stream to a file; return per image its class index and its bytes before gzip."""
    labels: list[npt.NDArray[np.int64]] = []
    sizes: list[npt.NDArray[np.int64]] = []
    with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as stream:
        for batch in dataset.batches(BATCH_IMAGES):
            data, sizes_B = encode_images(batch.ids_BLQ[:, :, 0])
            stream.write(data)
            labels.append(batch.labels_B)
            sizes.append(sizes_B)
    return np.concatenate(labels), np.concatenate(sizes)


@contextmanager
def _mapped(file: IO[bytes]) -> Iterator[bytes]:
    """Map a file, so that a store can send it without a copy in memory: slices of the map are bytes, which store clients need."""
    file.flush()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield cast(bytes, mapped)


def _synonyms(dataset: TokenDataset, codebook_KD: npt.NDArray[np.float32]) -> bytes:
    """Return the synonym table imported with the tokens, else for each code all other codes, nearest by cosine first."""
    if SYNONYMS_PATH in dataset.manifest.tokenizer_objects:
        return dataset.store.read(SYNONYMS_PATH)
    return json.dumps({str(code): near.tolist() for code, near in enumerate(nearest_codes(codebook_KD))}).encode()
