"""A look at a few images at planning: do 16-bit images use all their bits? So `--sixteen-bit auto` becomes one of its two values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tokenshards.pipeline.errors import BadInput, MissingObjectError, StoreAccessError, UnreadableObjectError
from tokenshards.pipeline.images.decode import sixteen_bits_used
from tokenshards.pipeline.images.formats import deep_extensions
from tokenshards.pipeline.images.headers import HEAD_BYTES, bits_in_header
from tokenshards.pipeline.images.sixteen_bit import DARK_BITS
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.sources.fetch import fetch_ahead
from tokenshards.pipeline.sources.hosts.uris import locate
from tokenshards.pipeline.sources.sample import look_at_sample
from tokenshards.pipeline.sources.summary import extension

__all__ = ["settle_sixteen_bit"]

LOOKED_AT, SLICES = 64, 4
"""Most images to look at, and most tars and slices of tables that they come from."""
HEADER_THREADS = 16


def settle_sixteen_bit(source: ImageSource, rows: Sequence[PlanRow]) -> None:
    """Set `sixteen_bit` of a listed source where it is `auto` and some of the `rows` are 16-bit images; note in the summary what they show.

    `scale` is taken if any 16-bit image leaves its highest bits unused, as those of a 12-bit camera do: their high byte is nearly black.
    `scale` changes no image that uses all bits. Of files that can hold 16 bits the header is read, none of those on the web. Only 16-bit
    images are read whole, up to the first that leaves bits unused.
    """
    config = source.config
    if config.rules < 3 or config.frozen or config.image_rules.sixteen_bit != "auto":
        return
    seen, dark = 0, None
    for sample_id, bits in _bits_used(source, rows):
        seen += 1
        if 0 < bits <= DARK_BITS:
            dark = sample_id, bits
            break
    if not seen:
        return  # `auto` in a plan is `high-byte`, and a plan that needs no rule for 16 bits stays one of format 1.0
    if dark is not None:
        source.summary.notes.append(
            f"the 16-bit image {dark[0]} uses {dark[1]} of its bits: each 16-bit image is scaled by the bits it uses "
            "(--sixteen-bit scale; high-byte keeps the high bytes, which are dark then)"
        )
    else:
        source.summary.notes.append(
            f"the {seen:,} sampled 16-bit images use all their bits: the high byte of each sample is kept (--sixteen-bit high-byte)"
        )
    rules = replace(config.image_rules, sixteen_bit="high-byte" if dark is None else "scale")
    source.config = replace(config, image_rules=rules)


def _bits_used(source: ImageSource, rows: Sequence[PlanRow]) -> Iterator[tuple[str, int]]:
    """Yield sample id and used bits of the 16-bit images among those looked at."""
    files = [row for row in rows if row.kind == "file" and extension(row.path) in deep_extensions() and not _on_the_web(source, row)]
    slices = [row for row in rows if row.kind in ("tar", "rows")]
    chosen = [*_deep_files(source, _spread(files, LOOKED_AT)), *_spread(slices, SLICES)]
    rules = source.config.image_rules
    for sample_id, found in look_at_sample(source, chosen, LOOKED_AT, lambda _, data: sixteen_bits_used(data, rules)):
        if not isinstance(found, BadInput) and found is not None:
            yield sample_id, found


def _deep_files(source: ImageSource, rows: list[PlanRow]) -> list[PlanRow]:
    """Return the files that have 16 bits by their header, and those whose header does not tell."""
    threads = 0 if source.store.is_local else HEADER_THREADS
    looked = fetch_ahead(rows, lambda row: _header_bits(source, row), threads=threads, ahead=LOOKED_AT)
    return [row for row, bits in looked if not isinstance(bits, int) or bits > 8]


def _header_bits(source: ImageSource, row: PlanRow) -> int | None:
    store, path = locate(source.store, row.path, source.config)
    try:
        info = store.info(path) if store.is_local else None
        if store.is_local and (info is None or not info.regular):  # a pipe, for example, would wait for its writer
            return None
        size = row.size if info is None else info.size

        def ranges(start: int, stop: int) -> bytes:
            # A store answers a range that begins behind the end with an error. Of an object of unknown size only its start is asked.
            known = size if size >= 0 else HEAD_BYTES
            return store.read(path, start, min(stop, known)) if start < known else b""

        return bits_in_header(ranges)
    except (MissingObjectError, StoreAccessError, UnreadableObjectError):  # the run says what it cannot read
        return None


def _on_the_web(source: ImageSource, row: PlanRow) -> bool:
    return row.path.startswith(("http://", "https://")) or source.store.is_web


def _spread(rows: list[PlanRow], most: int) -> list[PlanRow]:
    """Return up to `most` rows, evenly spread."""
    return [rows[place * len(rows) // most] for place in range(most)] if len(rows) > most else rows
