"""`OUT/README.md`, the dataset card: content of the data set and how to read it, for people and for the Hugging Face Hub.

The card is made only from manifest and shards, and shows no host, no credentials and no local path. We never overwrite an edited card or
another README.md: the last line of our card holds a digest of the lines above it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import FormatError, MissingObjectError
from tokenshards.pipeline.shards.columns import Column, dataset_columns
from tokenshards.pipeline.shards.manifest import Manifest
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["CARD_PATH", "has_own_card", "is_own_card", "public_source", "write_card"]

CARD_PATH = "README.md"
MOST_FILES_NAMED = 5000
CLASSES_NAMED = 100
MARK = "<!-- tokenshards wrote this card ({}). Edit it freely: an edited card is never overwritten. -->"
_BUCKETS = ("s3", "s3a", "gs", "gcs", "hf")
"""Schemes whose first part names a bucket or repository; in other schemes it may name a host."""
_LICENCES = {
    *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-nd-4.0", "cc-by-3.0", "cc-by-sa-3.0", "odc-by", "odbl", "pddl", "openrail", "unknown", "other"),
}
"""Licence identifiers of the Hub, in lower case."""


def write_card(store: Store, manifest: Manifest) -> bool:
    """Write the card of a dataset, but never replace a README.md that is not ours; return whether our card is in place."""
    try:
        found = store.read(CARD_PATH)
    except MissingObjectError:
        found = None
    if found is not None and not is_own_card(found):
        return False
    try:
        columns = dataset_columns(store, manifest)
    except (FormatError, MissingObjectError):
        columns = []  # `verify` reports damaged shards
    text = "\n".join(_lines(manifest, columns, _data_files(store, manifest))).encode()
    card = text + f"\n{MARK.format(sha256_hex(text))}\n".encode()
    if card != found:
        store.write(CARD_PATH, card)
    return True


def has_own_card(store: Store) -> bool:
    """Return whether the card of a dataset exists as we wrote it."""
    try:
        return is_own_card(store.read(CARD_PATH))
    except MissingObjectError:
        return False


def is_own_card(data: bytes) -> bool:
    """Return whether a README.md is a card as we wrote it, without an edit."""
    text, newline, last = data.removesuffix(b"\n").rpartition(b"\n")
    return bool(newline) and last.decode("utf-8", "replace") == MARK.format(sha256_hex(text))


def public_source(root: str) -> str:
    """Return the recorded source without local path and host name."""
    if "/" not in root:
        return root  # the card of a published copy has only a name
    if "://" not in root:
        return f"`{root.rstrip('/').rpartition('/')[2]}`, on a disk"
    parts = urlsplit(root)
    if parts.scheme in _BUCKETS:
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    return f"{parts.scheme}: {parts.path.rstrip('/').rpartition('/')[2] or 'its root'}"


def _data_files(store: Store, manifest: Manifest) -> list[str]:
    """Return patterns that match the shards of a manifest and nothing else."""
    named = sum(entry.path is not None for entry in manifest.shards)
    if named == 0:
        return []
    listed = sum(1 for _ in store.list("shards"))
    if listed == named or named > MOST_FILES_NAMED:
        return ["shards/*.parquet"]
    return [entry.path for entry in manifest.shards if entry.path is not None]


def _lines(manifest: Manifest, columns: list[Column], data_files: list[str]) -> Iterator[str]:
    totals, spec = manifest.totals, manifest.spec
    images, views = int(totals.get("images_committed", 0)), manifest.views
    rows = images * views
    yield from _front_matter(manifest, rows, data_files)
    yield ""
    yield "# Images as discrete tokens"
    yield ""
    yield (
        f"{counted(images, 'image')} "
        "as ids of a tokenizer, written by tokenshards. The images are not included; a decoder restores them roughly."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| images | {images:,}{f', {views} views per image, one row each' if views > 1 else ''} |"
    if manifest.classes:
        yield f"| classes | {len(manifest.classes):,} |"
    if manifest.mask is not None:
        masks = manifest.mask
        size, last = f"{masks.format.width} x {masks.format.height} pixels", masks.classes - 1
        yield f"| masks | of {counted(masks.images, 'row')}, {size}, classes 0 to {last:,}, {masks.format.ignore:,} for none |"
    if failed := int(totals.get("images_quarantined", 0)):
        yield f"| left out | {counted(failed, 'input')} that could not be read |"
    untaken = manifest.untaken
    if untaken.lost:
        yield f"| lost | about {counted(untaken.lost, 'further image')} of damaged containers |"
    if untaken.absent:
        yield f"| absent | {counted(untaken.absent, 'input')} that the source lists without an image |"
    if untaken.left_out:
        kinds = ", ".join(f"{count:,} {_cell(kind)}" for kind, count in sorted(untaken.left_out.items(), key=lambda item: -item[1])[:8])
        yield f"| not taken from containers | {kinds} |"
    shards = sum(entry.path is not None for entry in manifest.shards)
    yield f"| shards | {counted(shards, 'Parquet file')}, {totals.get('bytes_shards', 0):,} bytes |"
    yield f"| tokenizer | {_tokenizer(spec)} |"
    yield f"| fingerprint | `{spec.fingerprint}` |"
    for name, value in sorted(manifest.card.items()):
        yield f"| {name} | {public_source(str(value)) if name == 'source' else _cell(str(value))} |"
    if "licence" not in manifest.card:
        yield "| licence | not stated; ask whoever made this data set |"
    if columns:
        yield from ("", "## Columns", "", "| column | type | meaning |", "|---|---|---|")
        yield from (f"| `{column.name}` | {column.type} | {column.meaning} |" for column in columns)
    yield from _classes(manifest)
    yield from _how_to_read(data_files, columns)


def _front_matter(manifest: Manifest, rows: int, data_files: list[str]) -> Iterator[str]:
    """Yield the lines of the YAML header; strings are quoted as in JSON, which is valid YAML."""
    licence = str(manifest.card.get("licence", "unknown"))
    known = licence.lower() in _LICENCES
    yield "---"
    yield f"license: {licence.lower() if known else 'other'}"
    if not known:
        yield f"license_name: {json.dumps(licence, ensure_ascii=False)}"
    yield "tags: [tokenshards, image-tokens]"
    tasks = [*(["image-classification"] if manifest.classes else []), *(["image-segmentation"] if manifest.mask is not None else [])]
    if tasks:
        yield f"task_categories: [{', '.join(tasks)}]"
    yield f"size_categories: [{_size_category(rows)}]"
    if data_files:
        yield from ("configs:", "- config_name: default", "  data_files:", "  - split: train")
        if len(data_files) == 1:
            yield f"    path: {json.dumps(data_files[0])}"
        else:
            yield "    path:"
            yield from (f"    - {json.dumps(name)}" for name in data_files)
    yield "---"


def _size_category(rows: int) -> str:
    below = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"), (10**8, "10M<n<100M"))
    return next((name for limit, name in below if rows < limit), "100M<n<1B")


def _tokenizer(spec: TokenizerSpec) -> str:
    layout = spec.layout
    shape = " x ".join(map(str, layout.grid)) or f"{layout.sites} sites"
    vocabulary = " + ".join(f"{size:,}" for size in spec.vocabulary)
    return f"{spec.family}, {spec.preprocess.size} px, {layout.kind} {shape}, {vocabulary} codes"


def _classes(manifest: Manifest) -> Iterator[str]:
    if not manifest.classes:
        return
    shown = list(zip(manifest.classes, manifest.class_counts, strict=True))[:CLASSES_NAMED]
    yield from (
        "",
        "## Classes",
        "",
        "In the order of their index.",
        "",
        "| index | label | rows |",
        "|---|---|---|",
    )
    yield from (f"| {index} | {_cell(str(label))} | {rows:,} |" for index, (label, rows) in enumerate(shown))
    if len(manifest.classes) > len(shown):
        yield f"| … | {len(manifest.classes) - len(shown):,} more, in `manifest.json` | |"


def _how_to_read(data_files: list[str], columns: list[Column]) -> Iterator[str]:
    if not data_files:
        return
    yield from ("", "## How to read it", "")
    if len(data_files) > 1:
        yield "`shards/` also holds files that are not part of the data set: instead of the glob, use the names in this card's header."
        yield ""
    names = ", ".join(name for name in ("sample_id", "label", "tokens") if name in {column.name for column in columns})
    yield from (
        "```sql",
        f"SELECT {names} FROM 'FOLDER/shards/*.parquet' LIMIT 5;  -- DuckDB; FOLDER holds this card",
        "```",
        "",
    )
    yield from ("```python", "import pyarrow.dataset")
    yield 'table = pyarrow.dataset.dataset("FOLDER/shards", format="parquet").to_table()'
    yield from ("", "from datasets import load_dataset", 'rows = load_dataset("FOLDER", split="train")', "")
    yield "import tokenshards"
    yield 'data = tokenshards.open_dataset("FOLDER")'
    yield "for batch in data.batches(256):"
    yield "    print(batch.ids_BLQ.shape, batch.labels_B[:5])  # ids [rows, sites, levels]; class index of each row, -1 without a label"
    yield from ("    break", "```", "")
    yield "`tokenshards verify FOLDER` checks every byte; `tokenshards preview FOLDER --to look.png` draws reconstructed images."
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
