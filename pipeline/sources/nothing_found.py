"""Why a place holds nothing to tokenize, in one sentence: what was looked for, what is there, what to do."""

from __future__ import annotations

from collections import Counter

from tokenshards.pipeline.images.decode import image_extensions
from tokenshards.pipeline.images.extras import missing_extras, needs_extra
from tokenshards.pipeline.optional_packages import install_hint
from tokenshards.pipeline.sources.summary import extension
from tokenshards.pipeline.storage.store import Store

__all__ = ["LOOKED_FOR", "nothing_found"]

LOOKED_FOR = "images (such as .jpg, .png, .webp), tars (.tar) or tables (.parquet, .arrow, .csv, .tsv, .jsonl, .json)"
_CONVERT = "such files are not read: write their images to tars, or to Parquet with a column of encoded images"
_OTHER_FORMATS = {
    "TFRecord": (".tfrecord", ".tfrecords"),
    "HDF5": (".h5", ".hdf5"),
    "NumPy": (".npy", ".npz"),
    "Matlab": (".mat",),
    "LMDB": (".mdb", ".lmdb"),
    "pickle": (".pkl", ".pickle", ".pt", ".pth"),
    "RecordIO": (".rec",),
    "FFCV": (".beton",),
    "spreadsheet": (".xls", ".xlsx", ".ods"),
    "database": (".db", ".sqlite", ".sqlite3"),
    "archive": (".7z", ".rar"),
    "video": (".mp4", ".avi", ".mov", ".mkv", ".webm"),
}
_FORMAT_OF = {ending: name for name, endings in _OTHER_FORMATS.items() for ending in endings}


def nothing_found(store: Store, kinds: Counter[str]) -> str:
    """Return the sentence; `kinds` counts the files of a listing by their extension."""
    if kinds:
        return _sentence(store, f"{', '.join(f'{count} {kind}' for kind, count in kinds.most_common(8))}; {_advice(kinds)}")
    itself = store.info("")
    if itself is None or not itself.regular:
        return _sentence(store, "an empty folder" if store.is_local and itself is not None else "nothing there; check the path")
    kind = extension(store.url)
    if kind in image_extensions():
        return _sentence(store, "a single file; give its folder instead")
    return _sentence(store, f"a single file, {kind or 'without extension'}; {_advice(Counter([kind]))}")


def _sentence(store: Store, found: str) -> str:
    return f"{store.url}: nothing to tokenize; looked for {LOOKED_FOR} and found {found}"


def _advice(kinds: Counter[str]) -> str:
    extras = [f"{needs_extra(extra, missing)}: {install_hint(extra)}" for extra, missing in missing_extras(kinds).items()]
    if extras:
        return "; ".join(extras)
    names = [_FORMAT_OF[kind] for kind, _ in kinds.most_common() if kind in _FORMAT_OF]
    if names:
        return f"{' and '.join(dict.fromkeys(names))}: {_CONVERT}"
    images = image_extensions()
    if any(kind.removesuffix(".gz") in images for kind in kinds if kind.endswith(".gz")):
        return "images that are compressed one by one are not read: unpack them, or pack them into a .tar.gz"
    return "use --all-files to take every file"
