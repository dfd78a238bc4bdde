"""Open the source at a path, URL, glob or brace pattern; the listing decides its kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from fsspec.core import split_protocol

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.images.decode import image_extensions
from tokenshards.pipeline.sources.base import ImageSource, readable_text
from tokenshards.pipeline.sources.beside import may_describe
from tokenshards.pipeline.sources.containers import open_containers
from tokenshards.pipeline.sources.doubts import GRAVE_IMAGES, images_not_taken
from tokenshards.pipeline.sources.folder import FolderSource
from tokenshards.pipeline.sources.junk import HIDDEN, is_hidden, junk_kind
from tokenshards.pipeline.sources.label_files import likely_tables
from tokenshards.pipeline.sources.label_table import names_table
from tokenshards.pipeline.sources.nothing_found import LOOKED_FOR, nothing_found
from tokenshards.pipeline.sources.source_store import SourceStore
from tokenshards.pipeline.sources.summary import Doubt, extension
from tokenshards.pipeline.sources.tables.earlier_rules import TablesBefore
from tokenshards.pipeline.sources.tables.source import TableSource
from tokenshards.pipeline.sources.tars.source import TarSource
from tokenshards.pipeline.storage.store import ObjectInfo, Store, display_url
from tokenshards.pipeline.words import counted

__all__ = ["expand_braces", "open_source", "source_root"]

TAR_EXTENSIONS = set(".tar .tgz .tar.gz .tar.bz2 .tbz2 .tbz .tar.xz .txz .tar.zst .tzst .zip".split())
_TABLES_BEFORE = frozenset(".parquet .csv .csv.gz .csv.zst .jsonl .jsonl.gz .jsonl.zst".split())
TABLE_EXTENSIONS = _TABLES_BEFORE | set(
    ".arrow .feather .tsv .tsv.gz .tsv.zst .txt.gz .txt.zst .json .json.gz .json.zst .ndjson .ndjson.gz .ndjson.zst".split()
)
_LISTS = {".txt", ".txt.gz", ".txt.zst"}
"""Tables only where they are named: in a folder most are notes or licences."""

_OWN_SHARD = re.compile(r"(^|/)shards-[0-9a-f]{12}[.]parquet$")

PROBED_IMAGES = 1000
"""After each so many images the probe of a folder ends with "image folder", unless tars or tables prevail so far."""
MOST_PROPOSED = 3
"""So many tables beside tars are looked into, whether they may be tables of labels."""
_MAGIC = re.compile(r"[*?\[{]")


def open_source(url: str, config: SourceConfig) -> ImageSource:
    """Return the source at a local path or URL: a folder, a file, a glob such as `s3://b/train/*.tar`, or braces such as `{000..123}.tar`.

    If a folder holds both images and tars or Parquet files, the more frequent kind is taken, and the summary says so. Raises SourceError,
    which names what was expected and what was found, and TransientStorageError if the store fails.
    """
    store, pattern = _split(url, config)
    if not pattern:
        return _open_folder(store, config)
    return _open_files(store, pattern, list(_matches(store, pattern, config)) if _is_pattern(store, pattern) else [pattern], config)


def source_root(url: str, config: SourceConfig) -> Store:
    """Return the store that the source's row paths are relative to; nothing needs to exist there."""
    return _split(url, config)[0]


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern such as `a-{000..012}.{tar,tgz}` stands for, in the order of bash and webdataset.

    Raises SourceError if a brace is not closed or not opened.
    """
    from braceexpand import braceexpand  # here, because the machine of a GPU check may lack it and needs no braces

    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:  # braceexpand's UnbalancedBracesError is a ValueError
        raise SourceError(f"{pattern}: a brace is not closed or not opened; expected a pattern such as train-{{000..123}}.tar") from None


def _split(url: str, config: SourceConfig) -> tuple[Store, str]:
    """Return the root of a source, and the file name or pattern below the root (empty for a folder)."""
    protocol, path = split_protocol(url)
    if protocol is None and url.startswith("pipe:"):
        raise SourceError(f"{url[:60]}: we never run a command as a source; expected a path or a URL of files")
    whole = SourceStore(url.rstrip("/") or "/", storage_options=config.storage_options)
    magic = _MAGIC.search(path)
    named = magic is not None or extension(path) in TAR_EXTENSIONS | _tables(config, named=True)
    if not named or (protocol not in ("http", "https") and _is_folder(whole)):  # a web server would send the whole tar as the "listing"
        return whole, ""
    cut = path.rfind("/", 0, magic.start() if magic else None)
    folder = path[: max(cut, 0)]
    root = f"{protocol}://{folder}" if protocol else folder or ("/" if cut == 0 else ".")
    return SourceStore(root, storage_options=config.storage_options), path[cut + 1 :]


def _is_pattern(store: Store, pattern: str) -> bool:
    """Return whether a name is a pattern for many files, not the name of an existing file."""
    if store.is_web:  # in a web address `?` begins the query, and a server may answer any status for a pattern
        return _MAGIC.search(pattern.partition("?")[0]) is not None
    return _MAGIC.search(pattern) is not None and store.info(pattern) is None


def _is_folder(store: Store) -> bool:
    if store.is_local:
        return Path(store.root).is_dir()
    return next(store.list(), None) is not None


def _open_folder(store: Store, config: SourceConfig) -> ImageSource:
    if config.all_files:
        return FolderSource(store, config)
    found = _Found()
    for info in store.list():
        if found.add(info, config):
            return FolderSource(store, config)
    kinds = found.kinds
    files = found.containers(config)
    if found.images and not (found.holds_most(files) if config.rules > 2 else found.containers_win()):
        return FolderSource(store, config)
    if not files:
        raise SourceError(nothing_found(store, kinds))
    if made := next((info.path for info in files if _OWN_SHARD.search(info.path)), None):
        raise SourceError(
            f"{store.url} is a dataset of tokens that tokenshards made ({made}); expected images: the SRC of the run that made it"
        )
    source = _open_containers(store, config, sorted(files, key=lambda info: info.path))
    taken = Counter(extension(readable_text(info.path)) for info in files)
    for kind, count in (kinds - taken).items():
        source.summary.leave_out(kind, found.examples[kind], count)
    noun = source.summary.noun
    if found.images:
        images = counted(found.images, "image")
        if found.images >= GRAVE_IMAGES:
            sentence = f"the {noun}s are taken, because they hold more bytes than the {images} beside them"
            source.summary.doubts.append(images_not_taken(sentence, "to take the images, put them into a folder of their own"))
        source.summary.beside = f"the {noun}s are taken, not the {images} beside them; put the images into their own folder to take them"
    beside = [name for info in found.tables if not _holds_images([info]) and may_describe(name := readable_text(info.path))]
    unasked = source.kind == "tar" and config.rules > 2 and not (config.label or config.label_from or config.no_labels)
    beside = likely_tables(store, beside[:MOST_PROPOSED], config) if unasked else []
    if beside:
        sentence = f"{beside[0]} lies beside the tars and may be a table of their labels; no labels are taken from there"
        source.summary.doubts.append(Doubt(sentence=sentence, option=f"--label-from file:{beside[0]}"))
    if found.delta_log:
        sentence = "this is a Delta table, whose log says which files are current; all files are taken, removed rows among them"
        source.summary.doubts.append(Doubt(sentence=sentence, option="export the current rows, or give a pattern of the current files"))
    if others := found.other_containers(files):
        kind = extension(readable_text(others[0].path))
        labels = f"; --label-from 'file:*{kind}' takes labels from them, and --label COLUMN" if source.kind == "tar" else ""
        source.summary.doubts.append(
            Doubt(
                sentence=f"the {noun}s are taken, not the {len(others)} {kind} files beside them",
                option=f"to take those, give a pattern such as FOLDER/*{kind}{labels}",
            )
        )
    return source


def _open_containers(store: Store, config: SourceConfig, files: list[ObjectInfo]) -> ImageSource:
    """Return the source of tars or tables, all of one kind."""
    tables = TablesBefore if config.rules < 3 else TableSource
    return open_containers(TarSource if extension(readable_text(files[0].path)) in TAR_EXTENSIONS else tables, store, config, files)


def _tables(config: SourceConfig, *, named: bool = False) -> Set[str]:
    """Return the extensions of tables; of lists only where a file is named."""
    if config.rules < 3:
        return _TABLES_BEFORE
    return TABLE_EXTENSIONS | _LISTS if named else TABLE_EXTENSIONS


@dataclass(slots=True)
class _Found:
    """Counts of a folder's files, until the kind of source is clear."""

    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    images: int = 0
    image_bytes: int = 0
    tar_bytes: int = 0
    parquet_bytes: int = 0
    tars: list[ObjectInfo] = field(default_factory=list)
    tables: list[ObjectInfo] = field(default_factory=list)
    delta_log: bool = False

    def add(self, info: ObjectInfo, config: SourceConfig) -> bool:
        """Count a file; return True once it is clear that the folder is an image folder."""
        name = readable_text(info.path)
        junk = junk_kind(name) if config.rules > 2 else HIDDEN if config.rules > 1 and is_hidden(name) else None
        if junk is not None:
            self.delta_log = self.delta_log or name.startswith("_delta_log/")
            self._count(junk, name)
            return False
        kind = extension(name)
        self._count(kind, name)
        if kind in TAR_EXTENSIONS:
            self.tars.append(info)
            self.tar_bytes += max(0, info.size)
        elif kind in _tables(config) and not names_table(config.label_from):
            self.tables.append(info)
            if _holds_images([info]):
                self.parquet_bytes += max(0, info.size)
        elif kind in image_extensions():
            self.images += 1
            self.image_bytes += max(0, info.size)
        if config.rules == 1:
            return bool(self.images)
        if kind not in image_extensions() or self.images % PROBED_IMAGES:
            return False
        return not self.containers_win() if config.rules < 3 else self.image_bytes >= max(self.tar_bytes, self.parquet_bytes)

    def containers(self, config: SourceConfig) -> list[ObjectInfo]:
        """Return the tars or the tables of one format, whichever hold more bytes; [] if there are none.

        CSV and JSONL files beside tars usually describe their samples.
        """
        tables = _of_one_format(self.tables)
        if not self.tars or not tables or config.rules < 3 or not _holds_images(tables):
            return self.tars or tables
        return max(self.tars, tables, key=_bytes_of)

    def other_containers(self, chosen: list[ObjectInfo]) -> list[ObjectInfo]:
        """Return the tars or Parquet files that were not chosen."""
        others = [self.tars, [info for info in _of_one_format(self.tables) if _holds_images([info])]]
        return next((files for files in others if files and files[0] not in chosen), [])

    def holds_most(self, files: list[ObjectInfo]) -> bool:
        """Return whether tars or tables hold more bytes than the images beside them. CSV and JSONL files usually describe the images."""
        return _holds_images(files) and (_bytes_of(files), len(files)) > (self.image_bytes, self.images)

    def _count(self, kind: str, name: str) -> None:
        self.kinds[kind] += 1
        self.examples.setdefault(kind, name)

    def containers_win(self) -> bool:
        """Return whether tars or Parquet files prevail: there are more of them than images, or as many but larger.

        CSV and JSONL files do not count, because beside images they usually describe those images.
        """
        containers = self.tars or [info for info in self.tables if extension(info.path) == ".parquet"]
        return (len(containers), sum(info.size for info in containers)) > (self.images, self.image_bytes)


def _of_one_format(tables: list[ObjectInfo]) -> list[ObjectInfo]:
    """Return the Parquet files, else those of the next simpler format; a simpler format beside another usually describes it."""
    for names in ((".parquet",), (".arrow", ".feather"), (".jsonl", ".ndjson"), (".csv", ".tsv"), (".json",)):
        chosen = [info for info in tables if extension(info.path).startswith(names)]
        if chosen:
            return chosen
    return tables


def _holds_images(files: list[ObjectInfo]) -> bool:
    return bool(files) and extension(readable_text(files[0].path)).startswith((".tar", ".tgz", ".parquet", ".arrow", ".feather"))


def _bytes_of(files: list[ObjectInfo]) -> int:
    return sum(max(0, info.size) for info in files)


def _matches(store: Store, pattern: str, config: SourceConfig) -> Iterator[str]:
    for part in expand_braces(pattern):
        if not _MAGIC.search(part):
            yield part
            continue
        hidden_too = config.rules == 1 or is_hidden(part)  # a pattern takes hidden files only if it names them, as in a shell
        yield from (path for path in store.glob(part) if hidden_too or not is_hidden(path))


def _open_files(store: Store, pattern: str, paths: list[str], config: SourceConfig) -> ImageSource:
    where = store.place(pattern)
    with ThreadPoolExecutor(16) as pool:
        infos = list(pool.map(store.info, paths))
    files = [info for info in infos if info is not None]
    # The query of a web address may contain a signature, which no message may show.
    missing = [path.partition("?")[0] if store.is_web else path for path, info in zip(paths, infos, strict=True) if info is None]
    if missing or not files:
        examples = f"; {len(missing)} of {len(paths)} are missing, such as {missing[0]!r}" if missing else ""
        raise SourceError(f"{where}: no such file{examples}; expected a folder of {LOOKED_FOR}, or a path or pattern of tars or tables")
    kinds = Counter(extension(readable_text(info.path)) for info in files)
    if kinds.keys() <= TAR_EXTENSIONS or kinds.keys() <= _tables(config, named=True):
        return _open_containers(store, config, files)
    found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
    raise SourceError(
        f"{where}: found {found}; expected only tars ({', '.join(sorted(TAR_EXTENSIONS))}) or only tables "
        f"({', '.join(sorted(_tables(config, named=True)))}). To take images, give their folder: {display_url(store.url)}"
    )
