"""The end of a job: if every planned input is committed, quarantined or absent, write the manifest, last of all."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tokenshards.pipeline.errors import IncompleteError
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.ledger.dataset_card import write_card
from tokenshards.pipeline.ledger.survey import Survey, manifest_histograms
from tokenshards.pipeline.planning.plan import Plan
from tokenshards.pipeline.shards.commit import pack_counts
from tokenshards.pipeline.shards.manifest import UNTAKEN_TOTALS, Manifest, publish_manifest
from tokenshards.pipeline.shards.shard_table import ShardTable
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["class_table", "close_generation", "max_bad_for"]


def class_table(inherited: tuple[int | str, ...], counts: dict[Any, int]) -> tuple[int | str, ...]:
    """Return the class table: inherited classes keep their index, new labels follow in sorted order."""
    known = set(inherited)
    new = sorted((label for label in counts if label not in known), key=lambda label: (isinstance(label, str), label))
    return (*inherited, *new)


def max_bad_for(bad: int, inputs: int) -> float:
    """Return the smallest --max-bad of two decimals that accepts `bad` failures of `inputs`."""
    return next((percent / 100 for percent in range(1, 100) if bad <= percent / 100 * inputs), 1.0)


def close_generation(store: Store, plan: Plan, survey: Survey, spec: TokenizerSpec, parent: Manifest | None) -> Manifest:
    """Write the manifest of a finished plan; raises IncompleteError with the numbers if they do not add up."""
    if not survey.balanced:
        gone = f", {survey.untaken.absent:,} absent" if survey.untaken.absent else ""
        raise IncompleteError(
            f"{store.url}: {counted(survey.planned, 'input is', 'inputs are')} "
            f"planned, {survey.images:,} committed and {survey.quarantined:,} quarantined{gone}"
            f"; {plan.shards - len(survey.done)} shards of {plan.shards} are not done. "
            "Run the same command again: it continues"
        )
    crash_point("after-last-commit")
    counts = dict(survey.labels)
    histograms = survey.histograms
    if parent is not None:
        for label, rows in zip(parent.classes, parent.class_counts, strict=True):
            counts[label] = counts.get(label, 0) + rows
        older = manifest_histograms(parent)
        if older is not None and histograms is not None:
            histograms = [left + right for left, right in zip(older, histograms, strict=True)] if histograms else older
    masks = survey.masks
    if masks is not None and parent is not None and parent.mask is not None:
        masks = masks.with_counts(parent.mask.images, parent.mask.pixels.items())
    classes = class_table(plan.classes, counts)
    manifest = Manifest(
        generation=plan.generation,
        parent=None if parent is None else parent.name,
        plan_ids=(*(parent.plan_ids if parent else ()), plan.plan_id),
        spec=spec,
        classes=classes,
        class_counts=tuple(counts.get(label, 0) for label in classes),
        label_type=plan.label_type,
        view_policy=plan.view_policy,
        mask=masks,
        totals=_totals(survey, parent),
        statistics={"histogram": [pack_counts(counts) for counts in histograms or ()]},
        card=plan.card,
        tokenizer_objects=plan.tokenizer_objects,
        shards=ShardTable(parent.shards if parent else ()) + survey.done,
    )

    def between() -> None:
        write_card(store, manifest)
        crash_point("between-manifest-and-pointer")

    return publish_manifest(store, manifest, between=between)


def _totals(survey: Survey, parent: Manifest | None) -> dict[str, Any]:
    totals: dict[str, Any] = {
        "images_planned": survey.planned,
        "images_committed": survey.images,
        "images_quarantined": survey.quarantined,
        "quarantine_reasons": survey.reasons,
        "shards": survey.plan.shards,
        "bytes_in": survey.bytes_in,
        "bytes_shards": survey.bytes_shards,
        "token_bytes": survey.token_bytes,
        "id_count": survey.id_count,
        "seconds": {stage: round(seconds, 3) for stage, seconds in survey.seconds.items()},
    }
    untaken, remarks = survey.untaken, Counter(survey.image_remarks)
    if parent is not None:  # the plan contains every input that earlier generations quarantined
        untaken = parent.untaken.before_retry()
        totals["images_planned"] += parent.totals["images_committed"] + untaken.absent
        untaken.add(survey.untaken)
        remarks.update(parent.totals.get("image_remarks", {}))
        for name in ("images_committed", "shards", "bytes_in", "bytes_shards", "token_bytes", "id_count"):
            totals[name] += parent.totals[name]
        for stage, seconds in parent.totals["seconds"].items():
            totals["seconds"][stage] = round(totals["seconds"].get(stage, 0.0) + seconds, 3)
    if remarks:
        totals["image_remarks"] = dict(sorted(remarks.items()))
    return {**totals, **{name: value for name, part in UNTAKEN_TOTALS.items() if (value := getattr(untaken, part))}}
