"""The datasets of a side: its tokens of all images, through the usual conversion, which continues where a killed one stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.request import TokenizeRequest
from tokenshards.pipeline.conversion.tokenize import Conversion
from tokenshards.pipeline.errors import LiveRunError
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.runners.base import Runner
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store, display_url
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.directory import load_tokenizer
from tokenshards.stem_adaptors.comparison.compare_config import ImageSources

__all__ = ["Counted", "SideData", "digest_of", "tokenized"]


class Counted:
    """Rows that pass through, and a digest of all of them in any order: the listing's fingerprint."""

    def __init__(self, rows: Iterator[PlanRow]) -> None:
        self._rows, self._sum = rows, 0
        self.inputs = 0

    def __iter__(self) -> Iterator[PlanRow]:
        for row in self._rows:
            text = f"{row.kind}\0{row.sample_id}\0{row.path}\0{row.size}\0{row.version}\0{row.label}\0{row.row_start}\0{row.row_stop}"
            self._sum = (self._sum + int(sha256_hex(text.encode()), 16)) % (1 << 256)
            self.inputs += max(0, row.inputs)
            yield row

    @property
    def digest(self) -> str:
        """Of the rows so far."""
        return f"{self._sum:064x}"


class _Bar:
    """The reporter of a conversion that shows its bar alone: the input is the same for every side, and was told at the start."""

    def __init__(self, shown: TerminalReporter, what: str) -> None:
        self._shown, self._what = shown, what
        self.advance, self.end = shown.advance, shown.end

    def say(self, message: str) -> None:
        """Print nothing."""

    def begin(self, planned: int | None, done: int) -> None:
        """Show whose images these are."""
        self._shown.begin(planned, done, self._what)


@dataclass(frozen=True, slots=True)
class SideData:
    """The opened datasets of a side and its tokenizer."""

    train: TokenDataset
    val: TokenDataset
    tokenizer: Tokenizer

    @property
    def digest(self) -> str:
        """Of both manifests, which name every object: where a conversion is made anew, results of the old one are not taken."""
        return digest_of(self.train, self.val)


def digest_of(train: TokenDataset, val: TokenDataset) -> str:
    """Return the digest of both manifests."""
    return sha256_hex(f"{train.digest} {val.digest}".encode())[:16]


def tokenized(
    sources: ImageSources, store: Store, place: str, name: str, open_runner: Callable[[], Runner], reporter: TerminalReporter
) -> SideData:
    """Make or finish both datasets of a side whose tokenizer lies in `place`/tokenizer, and open them. Labels of both are one table.

    Raises the errors of a conversion.
    """
    root, options = f"{store.location}/{place}", store.storage_options

    def converted(part: str, url: str, source: SourceConfig, tokenizer: str) -> TokenDataset:
        conversion = TokenizeRequest(
            source_url=url,
            out_url=f"{root}/{part}",
            tokenizer_url=f"{root}/{tokenizer}",
            source=replace(source, yes=True),  # doubts were settled before any work
            run=sources.run,
            out_options=options,
            tokenizer_options=options,
        )
        try:
            Conversion(conversion, _Bar(reporter, f"{name}, {part}"), open_runner()).run()
        except LiveRunError:
            raise LiveRunError(
                f"{display_url(sources.out_url)}: another comparison works on {name} there. Wait for it, stop it, or give another --out"
            ) from None
        return open_dataset(f"{root}/{part}", storage_options=options)

    train = converted("train", sources.images_url, sources.images, "tokenizer")
    val = converted("val", sources.val_url, sources.val, "train")  # with the class table of the training images
    return SideData(train, val, load_tokenizer(Store(f"{root}/tokenizer", storage_options=options), ""))
