"""Several datasets of one tokenizer as one: their shards one after the other, their classes joined by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tokenshards.pipeline.canonical import canonical_json, sha256_hex
from tokenshards.pipeline.errors import ConfigError, OtherTokenizerError
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.manifest import ShardEntry
from tokenshards.pipeline.shards.masks import MaskTotals
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import short_repr

__all__ = ["JoinedDataset"]


class JoinedDataset(TokenDataset):
    """Rows of all parts, in the order given. What one tokenizer defines (spec, codebook, statistics) is that of the first part.

    A class has one index in all parts; a number and its decimal text are one name. New names come after those of earlier parts.
    """

    def __init__(self, parts: Sequence[TokenDataset]) -> None:
        """Join datasets. OtherTokenizerError where two tokenizers made them, ConfigError where they cannot be one dataset."""
        if not parts:
            raise ConfigError("open_dataset got an empty list; expected at least one URL")
        first = parts[0]
        for part in parts[1:]:
            if part.spec.fingerprint != first.spec.fingerprint:
                raise OtherTokenizerError(
                    f"{part.store.url} was made by the tokenizer {part.spec.fingerprint[:12]}…, {first.store.url} by "
                    f"{first.spec.fingerprint[:12]}…. Ids of two tokenizers cannot be joined; tokenize both with one: "
                    f"tokenshards tokenize SRC OUT --tokenizer {first.store.url}"
                )
            if part.manifest.view_policy != first.manifest.view_policy:
                raise ConfigError(
                    f"{part.store.url} has the views {part.manifest.view_policy!r} of each image, {first.store.url} "
                    f"{first.manifest.view_policy!r}; expected the same views. Tokenize both with the same --views"
                )
            if part.mask != first.mask:
                raise ConfigError(
                    f"{part.store.url} has {_masks_of(part)}, {first.store.url} has {_masks_of(first)}; expected the same masks in all. "
                    "Tokenize both with --masks or --mask-column, and with the same --mask-bits"
                )
        digests = [part.digest for part in parts]
        if len(set(digests)) < len(digests):
            raise ConfigError(f"open_dataset got one dataset twice: {', '.join(part.store.url for part in parts)}; name each once")
        self.parts = tuple(parts)
        self._digest = sha256_hex(canonical_json(digests))
        self._owners = {entry.path: part for part in parts for entry in part.shards}
        counts = _joined_counts(parts)
        ids = [int(part.manifest.totals.get("id_count", -1)) for part in parts]
        manifest = replace(
            first.manifest,
            classes=tuple(counts),
            class_counts=tuple(counts.values()),
            mask=_joined_masks(parts),
            totals={} if -1 in ids else {"id_count": sum(ids)},
            name=f"manifest-{self._digest}.json",
            shards=[entry for part in parts for entry in part.shards],
        )
        super().__init__(first.store, manifest, verify=first.verify, open_tokenizer=first.open_tokenizer)

    def __repr__(self) -> str:
        places = [part.store.url for part in self.parts]
        return short_repr(self, places=places, rows=len(self), shards=len(self.shards), classes=len(self.classes))

    @property
    def digest(self) -> str:
        """SHA-256 over the manifests of all parts in their order."""
        return self._digest

    @property
    def is_local(self) -> bool:
        """Whether the shards of all parts are on a disk of this machine."""
        return all(part.is_local for part in self.parts)

    def store_of(self, entry: ShardEntry) -> Store:
        """Return the store of the part that the shard belongs to."""
        return self._owners[entry.path].store_of(entry)

    def open_shard(self, entry: ShardEntry) -> ShardReader:
        """Open a shard of any part."""
        return self._owners[entry.path].open_shard(entry)


def _masks_of(part: TokenDataset) -> str:
    mask = part.mask
    return "no masks" if mask is None else f"masks of {mask.width} x {mask.height} pixels in {mask.dtype}"


def _joined_masks(parts: Sequence[TokenDataset]) -> MaskTotals | None:
    found = [part.manifest.mask for part in parts if part.manifest.mask is not None]
    if not found:
        return None
    total = MaskTotals(format=found[0].format)
    for mask in found:
        total = total.with_counts(mask.images, mask.pixels.items())
    return total


def _joined_counts(parts: Sequence[TokenDataset]) -> dict[int | str, int]:
    """Return the rows of each class, in the order of the joined table. Numbers stay numbers where every name is one."""
    counts: Counter[str] = Counter()
    for part in parts:
        for name, count in zip(part.classes, part.manifest.class_counts, strict=True):
            counts[str(name)] += count
    numbers = all(isinstance(name, int) for part in parts for name in part.classes)
    return {(int(name) if numbers else name): count for name, count in counts.items()}
