"""What the end of a run says about the dataset beside its numbers: new classes, doubtful images, lost images, failing hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tokenshards.pipeline.errors import FormatError, MissingObjectError, Reason, TransientStorageError
from tokenshards.pipeline.images.remarks import remark_notes
from tokenshards.pipeline.ledger.failing_hosts import MOST_SHARDS, hosts_in_quarantine
from tokenshards.pipeline.planning.plan import Plan
from tokenshards.pipeline.planning.retry_plan import failed_entries
from tokenshards.pipeline.shards.manifest import Manifest
from tokenshards.pipeline.shards.quarantine_file import quarantine_rows
from tokenshards.pipeline.sources.tars.damage import CUT, note_on_cut_archives
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["closing_notes"]


def closing_notes(store: Store, plan: Plan, manifest: Manifest) -> Iterator[str]:
    """Yield what a person should know of a finished generation."""
    if plan.classes and (new := manifest.classes[len(plan.classes) :]):
        what = f"the class {new[0]!r} is" if len(new) == 1 else f"{len(new):,} classes, such as {new[0]!r}, are"
        yield f"{what} not in the given class table; added at its end"
    yield from _mask_notes(manifest)
    yield from remark_notes(manifest.totals.get("image_remarks", {}))
    if lost := manifest.untaken.lost:
        yield (
            f"about {counted(lost, 'further image is', 'further images are')} "
            f"lost with damaged tars, such as {manifest.untaken.lost_example}; "
            f"`tokenshards quarantine {store.url}` names each damage"
        )
    if plan.source["kind"] == "tar" and Reason.BAD_CONTAINER in manifest.totals["quarantine_reasons"]:
        with contextlib.suppress(FormatError, MissingObjectError, TransientStorageError):
            cut = [row["uri"] for row in _quarantined(store, manifest) if CUT in row["detail"]]
            if cut:
                yield f"{note_on_cut_archives(len(cut), cut[0])}, then run `tokenshards retry-failed {store.url}`"
    if plan.source["kind"] == "table":  # only a table names hosts of others
        with contextlib.suppress(FormatError, MissingObjectError, TransientStorageError):  # `verify` names damage; this is only a note
            if line := hosts_in_quarantine(store, manifest).describe():
                yield line


def _mask_notes(manifest: Manifest) -> Iterator[str]:
    if manifest.mask is None:
        return
    rows = int(manifest.totals["images_committed"]) * manifest.views
    if without := (rows - manifest.mask.images) // manifest.views:
        images = counted(rows // manifest.views, "image")
        yield f"{without:,} of {images} {'has' if without == 1 else 'have'} no mask: null in the column, read as pixels without a class"


def _quarantined(store: Store, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the containers that the last generation could not read to their end; of a very large quarantine those of its first files."""
    for entry in failed_entries(manifest)[:MOST_SHARDS]:
        if entry.quarantine is not None:
            yield from quarantine_rows(store, entry.quarantine, ("uri", "detail"))
