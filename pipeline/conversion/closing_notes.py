"""What the end of a run says about the dataset beside its numbers: new classes, doubtful images, lost images, failing hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tokenshards.pipeline.errors import FormatError, MissingObjectError, TransientStorageError
from tokenshards.pipeline.images.remarks import remark_notes
from tokenshards.pipeline.ledger.failing_hosts import hosts_in_quarantine
from tokenshards.pipeline.planning.plan import Plan
from tokenshards.pipeline.shards.manifest import Manifest
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["closing_notes"]


def closing_notes(store: Store, plan: Plan, manifest: Manifest) -> Iterator[str]:
    """Yield what a person should know of a finished generation."""
    if plan.classes and (new := manifest.classes[len(plan.classes) :]):
        what = f"the class {new[0]!r} is" if len(new) == 1 else f"{len(new):,} classes, such as {new[0]!r}, are"
        yield f"{what} not in the given class table; added at its end"
    yield from remark_notes(manifest.totals.get("image_remarks", {}))
    if lost := manifest.untaken.lost:
        yield (
            f"about {counted(lost, 'further image is', 'further images are')} "
            f"lost with damaged tars, such as {manifest.untaken.lost_example}; "
            f"`tokenshards quarantine {store.url}` names each damage"
        )
    if plan.source["kind"] == "table":  # only a table names hosts of others
        with contextlib.suppress(FormatError, MissingObjectError, TransientStorageError):  # `verify` names damage; this is only a note
            if line := hosts_in_quarantine(store, manifest).describe():
                yield line
