"""Ids of an id column must be unique, because a dataset has one row for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.sources.tables.binary import is_binary, open_binary
from tokenshards.pipeline.sources.tables.columns import choose_columns, kind_of_type
from tokenshards.pipeline.sources.tables.files import id_text, parsing
from tokenshards.pipeline.sources.tables.scan import hash64, ids_of_columns
from tokenshards.pipeline.sources.tables.text import open_text
from tokenshards.pipeline.storage.store import ObjectInfo, Store
from tokenshards.pipeline.words import counted

__all__ = ["refuse_repeated_ids"]


def refuse_repeated_ids(store: Store, files: Sequence[ObjectInfo], config: SourceConfig, hashes: npt.NDArray[np.uint64]) -> None:
    """Raise SourceError if two rows of the tables have one id; the tables are read once more to name examples."""
    hashes = np.sort(hashes)
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    counts: Counter[str] = Counter()
    for info in files:
        with parsing(store.place(info.path)):
            counts.update(value for value in _ids(store, info, config) if hash64(value) in suspects)
    repeated = [f"{value!r} ({counted(count, 'row')})" for value, count in counts.most_common() if count > 1]
    if repeated:
        examples = ", ".join(repeated[:3])
        raise SourceError(
            f"--id-column {config.id_column}: {counted(len(repeated), 'value is', 'values are')} not unique, such as {examples}; "
            "name a column of unique ids, or leave the option out to number the rows"
        )


def _ids(store: Store, info: ObjectInfo, config: SourceConfig) -> Iterator[str]:
    where, name = store.place(info.path), str(config.id_column)
    if is_binary(info.path):
        table = open_binary(store, info)
        yield from ids_of_columns(
            table, choose_columns({part.name: kind_of_type(part.type) for part in table.schema}, config, where), where
        )
        return
    text = open_text(store, info)
    pick = text.picker((name,))
    for number, row in enumerate(text.rows()):
        yield id_text(pick(row)[0], name, number, where)
