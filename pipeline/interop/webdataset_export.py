"""`export webdataset`: write a dataset as WebDataset tars, in shard order and bounded memory; equal datasets give equal bytes.

    00000.tar, 00001.tar, …     samples `00000042.tokens.npy` (ids [L, Q]), `.cls` (class index, if there is a label) and `.json`;
                                with masks `.mask.png`, whose pixels are class numbers, for rows that have one
    codebook.safetensors        the vectors of the ids, if the tokenizer has any
    dataset.json                classes, tokenizer spec, counts; written last, so if it exists the export is complete

The layout is that of `webdataset.ShardWriter`, and a test reads it with `webdataset`. We do not use that class: it writes only local files,
leaves an unfinished file after an error, and loads torch.

Shapes: L sites, Q ids per site.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.dataset import CODEBOOK_PATH, Batch, TokenDataset, open_dataset
from tokenshards.pipeline.shards.masks import MASK, Masks
from tokenshards.pipeline.shards.schema import META_PREFIX
from tokenshards.pipeline.storage.store import Store

__all__ = ["WebdatasetExport", "export_webdataset"]

BATCH_ROWS = 512
MOST_ROWS = 100_000
"""Most rows per tar; the limit is needed because a tar is in memory until it is published."""
INDEX_NAME = "dataset.json"
CODEBOOK_NAME = "codebook.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebdatasetExport:
    """Counts and place of an export."""

    url: str
    rows: int
    classes: int
    tars: int
    bytes: int
    unlabelled: int
    pattern: str
    """The argument for `webdataset.WebDataset`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    def table(self) -> list[tuple[str, str]]:
        """Return the report as (name, value) text."""
        without = f", {self.unlabelled:,} of them without a label and a .cls" if self.unlabelled else ""
        return [
            ("rows", f"{self.rows:,}{without}"),
            ("classes", f"{self.classes:,}"),
            ("tars", f"{self.tars:,}, {self.bytes:,} bytes"),
            ("read with", f'webdataset.WebDataset("{self.pattern}", shardshuffle=False).decode()'),
        ]


def export_webdataset(
    data_url: str,
    out_url: str,
    *,
    rows_per_tar: int = 10_000,
    options: dict[str, Any] | None = None,
    out_options: dict[str, Any] | None = None,
) -> WebdatasetExport:
    """Write the rows of a dataset as tars of `rows_per_tar` samples below `out_url`; each shard is verified before it is read.

    Raises ConfigError for an invalid number of rows, or if another export is at `out_url`.
    """
    if not 1 <= rows_per_tar <= MOST_ROWS:
        raise ConfigError(f"--rows-per-tar is {rows_per_tar}; expected 1 to {MOST_ROWS:,}")
    dataset = open_dataset(data_url, storage_options=options, verify=True)
    if not len(dataset):
        raise ConfigError(f"{dataset.store.url} has no rows; expected at least one to export")
    out = Store(out_url, storage_options=options if out_options is None else out_options)
    tars = -(-len(dataset) // rows_per_tar)
    index = _index(dataset, tars, rows_per_tar)
    if out.info(INDEX_NAME) is not None and out.read(INDEX_NAME) != index:
        raise ConfigError(f"{out.url}/{INDEX_NAME} exists with other content from another export; choose another output")
    size = 0
    samples = _samples(dataset)
    for number in range(tars):
        data = _tar(islice(samples, rows_per_tar))
        out.write(f"{number:05d}.tar", data)
        size += len(data)
    if dataset.spec.codebook is not None:
        out.write(CODEBOOK_NAME, dataset.store.read(CODEBOOK_PATH))
    out.write(INDEX_NAME, index)
    return WebdatasetExport(
        url=out.url,
        rows=len(dataset),
        classes=len(dataset.classes),
        tars=tars,
        bytes=size,
        unlabelled=len(dataset) - sum(dataset.manifest.class_counts),
        pattern=f"{out.url}/" + ("00000.tar" if tars == 1 else f"{{00000..{tars - 1:05d}}}.tar"),
    )


def _index(dataset: TokenDataset, tars: int, rows_per_tar: int) -> bytes:
    value = {
        "rows": len(dataset),
        "rows_per_tar": rows_per_tar,
        "tars": tars,
        "classes": list(dataset.classes),
        "class_counts": list(dataset.manifest.class_counts),
        "views": dataset.views,
        "fingerprint": dataset.spec.fingerprint,
        "spec": dataset.spec.to_json(),
        **({} if dataset.manifest.mask is None else {"mask": dataset.manifest.mask.to_json()}),
        "card": dataset.manifest.card,
    }
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def _samples(dataset: TokenDataset) -> Iterator[dict[str, bytes]]:
    """Yield name -> bytes of the members of each sample. Keys are row numbers, because a WebDataset key may not contain a dot."""
    meta = _meta_names(dataset)
    row = 0
    masked = dataset.mask is not None
    for batch in dataset.batches(BATCH_ROWS, columns=["sample_id", "view", "label", *meta, *([MASK] if masked else [])], masks=masked):
        table = batch.table.drop_columns([MASK]) if masked else batch.table
        for values, ids_LQ, label, shape, mask_HW in zip(table.to_pylist(), *_rows(batch), _masks(batch), strict=True):
            described: dict[str, Any] = {name: values[name] for name in ("sample_id", "view", "label")}
            described["meta"] = {name.removeprefix(META_PREFIX): values[name] for name in meta}
            if shape is not None:
                described["shape"] = shape
            members = {"tokens.npy": _npy(ids_LQ), "json": json.dumps(described, ensure_ascii=False).encode()}
            if mask_HW is not None:
                members["mask.png"] = _png(mask_HW)
            if label >= 0:
                members["cls"] = str(label).encode()
            yield {f"{row:08d}.{suffix}": data for suffix, data in members.items()}
            row += 1


def _rows(batch: Batch) -> tuple[list[npt.NDArray[Any]], list[int], list[list[int] | None]]:
    """Return per row the ids [L, Q], the class index, and the shape (None unless the layout has shapes)."""
    tokens = batch.tokens
    shapes: list[list[int] | None] = [None] * len(batch) if tokens.shapes_BD is None else tokens.shapes_BD.tolist()
    sites_B = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD.prod(axis=1)
    counts = [tokens.ids_BLQ.shape[1]] * len(batch) if sites_B is None else sites_B.tolist()
    return [ids_LQ[:sites] for ids_LQ, sites in zip(tokens.ids_BLQ, counts, strict=True)], batch.labels_B.tolist(), shapes


def _masks(batch: Batch) -> list[Masks | None]:
    """Return the mask of each row; None for a row without one."""
    if batch.masks_BHW is None:
        return [None] * len(batch)
    valid = batch.table.column(MASK).is_valid().to_pylist()
    return [mask_HW if there else None for mask_HW, there in zip(batch.masks_BHW, valid, strict=True)]


def _png(mask_HW: Masks) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask_HW)).save(file, "PNG")
    return file.getvalue()


def _meta_names(dataset: TokenDataset) -> list[str]:
    names = dataset.open_shard(dataset.shards[0]).read_row_group(0).table.column_names
    return [name for name in names if name.startswith(META_PREFIX)]


def _npy(ids_LQ: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(ids_LQ), allow_pickle=False)
    return file.getvalue()


def _tar(samples: Iterable[dict[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in samples:
            for name, data in sample.items():
                member = tarfile.TarInfo(name)  # no time and no owner: equal rows give equal bytes
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return file.getvalue()
