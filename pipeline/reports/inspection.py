"""`inspect`: spec, storage table, classes and code usage of a dataset, or the content of a tokenizer directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.ledger.survey import manifest_histograms
from tokenshards.pipeline.quality.fidelity import usage_rows
from tokenshards.pipeline.reports.codec_report import CodecReport, codec_report
from tokenshards.pipeline.reports.drawings import plot_usage, usage_text_histogram
from tokenshards.pipeline.reports.storage_table import StorageReport, dataset_report, fit_rows
from tokenshards.pipeline.shards.columns import Column, dataset_columns
from tokenshards.pipeline.shards.manifest import Manifest, load_manifest, load_pointer
from tokenshards.pipeline.shards.masks import MaskTotals
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.code_usage import code_usage
from tokenshards.pipeline.tokenizers.directory import load_spec, load_statistics, resolve_tokenizer
from tokenshards.pipeline.words import counted

__all__ = ["Inspection", "inspect_dataset"]

Rows = list[tuple[str, ...]]
CLASSES_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The facts about a dataset that are known without reading its token columns, but for some rows of the codec `compact`."""

    url: str
    spec: TokenizerSpec
    fitted: dict[str, Any]
    manifest: Manifest | None
    report: StorageReport | None
    histograms: list[npt.NDArray[np.int64]]
    columns: list[Column]
    codec: CodecReport | None

    @property
    def usage(self) -> list[dict[str, Any]]:
        """Code usage of each level."""
        return [code_usage(counts_K) for counts_K in self.histograms]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `inspect --json`."""
        classes = None if self.manifest is None else list(zip(self.manifest.classes, self.manifest.class_counts, strict=True))
        return {
            "fingerprint": self.spec.fingerprint,
            "spec": self.spec.to_json(),
            "fit": self.fitted,
            "card": {} if self.manifest is None else self.manifest.card,
            "classes": classes,
            **({} if self.manifest is None or self.manifest.mask is None else {"mask": self.manifest.mask.to_json()}),
            "columns": [{"name": column.name, "type": column.type} for column in self.columns],
            "code_usage": self.usage,
            **({} if self.codec is None else {"codec": self.codec.to_json()}),
            **({} if self.report is None else self.report.to_json()),
        }

    def tables(self) -> list[tuple[str, Rows]]:
        """Return (title, rows) of each table."""
        spec = self.spec
        preprocess = spec.preprocess
        layout = spec.layout
        about: Rows = [
            ("family", spec.family),
            ("fingerprint", spec.fingerprint),
            (
                "layout",
                f"{layout.kind} {'×'.join(map(str, layout.grid)) or layout.sites}, {layout.ids_per_site} ids per site ({layout.combine})",
            ),
            ("vocabulary", " + ".join(f"{size:,}" for size in spec.vocabulary)),
            (
                "preprocessing",
                f"{preprocess.size} px, {preprocess.resize}, {preprocess.filter}, {preprocess.decode_mode}, {preprocess.decoder}",
            ),
            *fit_rows(self.fitted),
        ]
        tables: list[tuple[str, Rows]] = [(f"{self.url}: tokenizer", about)]
        if self.report is not None:
            tables.append(("storage", list(self.report.rows())))
        if self.codec is not None:
            tables.append(("codec", self.codec.table()))
        if self.manifest is not None:
            tables.append(("card", [(name, str(value)) for name, value in self.manifest.card.items()]))
            if self.manifest.classes:
                each = list(zip(self.manifest.classes, self.manifest.class_counts, strict=True))
                rows: Rows = [(str(label), f"{count:,}") for label, count in each[:CLASSES_SHOWN]]
                if len(each) > CLASSES_SHOWN:
                    rows.append(("…", counted(len(each) - CLASSES_SHOWN, "more class")))
                counts = counted(len(each), "class") + (
                    f", rows of each ({self.manifest.views} per image)" if self.manifest.views > 1 else ""
                )
                tables.append((counts, rows))
        if self.manifest is not None and self.manifest.mask is not None:
            tables.append(_mask_table(self.manifest.mask))
        if self.columns:
            tables.append(("columns", [(column.name, column.type, column.meaning) for column in self.columns]))
        if self.histograms:
            tables.append(("code usage", list(usage_rows(self.usage))))
        tables.append(("fidelity of its images", [("PSNR and SSIM", f"tokenshards evaluate-tokenizer {self.url} IMAGES")]))
        return tables

    def usage_text(self) -> str:
        """Return a histogram of each level in block characters."""
        if not self.histograms:
            return "code usage was not counted"
        parts = [f"level {level}\n{usage_text_histogram(counts)}" for level, counts in enumerate(self.histograms)]
        return "\n\n".join(parts)

    def plot(self, path: str) -> None:
        """Write a plot of the code usage; raises ConfigError if no ids were counted."""
        if not self.histograms:
            raise ConfigError(f"{self.url}: no ids are counted yet, so there is nothing to plot in {path}")
        plot_usage(self.histograms, Path(path))


def _mask_table(mask: MaskTotals) -> tuple[str, Rows]:
    """Return the pixels of each class as a table."""
    total = max(1, sum(mask.pixels.values()))
    each = [("no class" if value == mask.format.ignore else str(value), count) for value, count in sorted(mask.pixels.items())]
    rows: Rows = [(name, f"{count:,}", f"{count / total:.2%}") for name, count in each[:CLASSES_SHOWN]]
    if len(each) > CLASSES_SHOWN:
        rows.append(("…", counted(len(each) - CLASSES_SHOWN, "more class"), ""))
    size = f"{mask.format.width}×{mask.format.height} {mask.format.dtype}"
    return f"masks of {counted(mask.images, 'row')}, {size}: pixels of each class", rows


def inspect_dataset(store: Store) -> Inspection:
    """Inspect a dataset or tokenizer directory; raises TokenizerError if `store` is neither."""
    place, prefix = resolve_tokenizer(store.location, store.storage_options)
    pointer = load_pointer(store)
    manifest = None if pointer is None else load_manifest(store, pointer)
    return Inspection(
        url=store.url,
        spec=manifest.spec if manifest is not None else load_spec(place, prefix),
        fitted=load_statistics(place, prefix),
        manifest=manifest,
        report=dataset_report(store) if prefix and (manifest is not None or store.info("plan/current.json") is not None) else None,
        histograms=(manifest_histograms(manifest) or []) if manifest is not None else [],
        columns=dataset_columns(store, manifest) if manifest is not None else [],
        codec=codec_report(store, manifest) if manifest is not None else None,
    )
