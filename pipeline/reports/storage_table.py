"""Counts and sizes of a dataset: the storage table of `tokenize`, `status` and `inspect`, and its JSON, which users rely on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import NotFoundError
from tokenshards.pipeline.images.remarks import REMARK_NAMES
from tokenshards.pipeline.ledger.closing import max_bad_for
from tokenshards.pipeline.ledger.heartbeat import RunRecord, run_records
from tokenshards.pipeline.ledger.survey import Survey, is_commit, manifest_histograms, survey_plan
from tokenshards.pipeline.planning.plan import Plan, load_chain
from tokenshards.pipeline.records import Untaken
from tokenshards.pipeline.shards.manifest import Manifest, load_manifest, load_pointer
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.code_usage import entropy_per_id
from tokenshards.pipeline.view_policy import ViewPolicy
from tokenshards.pipeline.words import counted

LEFT_OUT_SHOWN = 8

__all__ = ["StorageReport", "dataset_report", "fit_rows", "status_report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageReport:
    """Counts and sizes of a dataset, complete or not."""

    images_planned: int
    images_planned_exact: bool
    images_committed: int
    images_quarantined: int
    quarantine_reasons: dict[str, int]
    shards_planned: int
    shards_committed: int
    generation: int
    bytes_in: int
    """Encoded bytes of the committed images."""
    bytes_out: int
    """Bytes of all objects under OUT."""
    bytes_shards: int
    bits_per_token: float
    order0_bits_per_token: float | None
    """None if the vocabulary is too large to count."""
    images_per_second: float
    seconds: dict[str, float]
    """Worker seconds per stage."""
    complete: bool
    views: int = 1
    """Rows per image."""
    unlabelled: int = 0
    """Committed images without a label; 0 if the dataset has no labels at all."""
    images_absent: int = 0
    """Planned inputs that the source itself says are not there."""
    images_lost_about: int = 0
    """Further images of damaged containers, estimated by bytes."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rule -> files of containers that the rule left out."""
    examples: dict[str, str] = field(default_factory=dict)
    """One example of each rule, of `absent` and of `lost`."""
    image_remarks: dict[str, int] = field(default_factory=dict)
    """Remark of the decoder -> images that were taken all the same."""
    masked_rows: int | None = None
    """Rows with a mask; None without masks, and where `status` does not read commits."""
    estimated: bool = False
    """True if the images are estimated from the number of shards, because `status` does not read commits."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `tokenize --json` and `status --json`; fields with a default only if they differ from it."""
        usual: dict[str, Any] = {
            "views": 1,
            "unlabelled": 0,
            "images_absent": 0,
            "images_lost_about": 0,
            "left_out": {},
            "examples": {},
            "image_remarks": {},
            "masked_rows": None,
            "estimated": False,
        }
        return {name: getattr(self, name) for name in self.__slots__ if name not in usual or getattr(self, name) != usual[name]}

    def rows(self) -> list[tuple[str, str]]:
        """Return the table as (name, value) text."""
        images = max(1, self.images_committed)
        ratio = self.bytes_in / self.bytes_shards if self.bytes_shards else 0.0
        share = self.bytes_shards / self.bytes_in if self.bytes_in else 0.0
        entropy = "not counted" if self.order0_bits_per_token is None else f"{self.order0_bits_per_token:.2f}"
        stages = ", ".join(f"{name} {seconds / max(1e-9, sum(self.seconds.values())):.0%}" for name, seconds in self.seconds.items())
        about = "about " if self.estimated else ""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.quarantine_reasons.items())
        planned = f" of {self.images_planned:,} planned" + (
            "" if self.images_planned_exact else " so far (tars are counted when they are read)"
        )
        return [
            ("images", f"{about}{self.images_committed:,}{planned}"),
            *([("without a label", f"{self.unlabelled:,}")] if self.unlabelled else []),
            *([("views", f"{self.views} per image, one row each")] if self.views > 1 else []),
            *([] if self.masked_rows is None else [("rows with a mask", f"{self.masked_rows:,}")]),
            ("quarantined", f"{about}{self.images_quarantined:,}{f'  ({reasons})' if reasons else ''}"),
            *([("absent", f"{about}{self.images_absent:,}{self._example('absent')}")] if self.images_absent else []),
            *([("lost", f"about {self.images_lost_about:,} in damaged tars{self._example('lost')}")] if self.images_lost_about else []),
            *(("left out", f"{count:,} {kind}{self._example(kind)}") for kind, count in self._most_left_out()),
            *((name, f"{about}{count:,}") for remark, name in REMARK_NAMES.items() if (count := self.image_remarks.get(remark))),
            ("shards", f"{self.shards_committed:,} of {self.shards_planned:,}"),
            ("bytes in", f"{about}{self.bytes_in:,}  ({self.bytes_in / images:,.0f} per image)"),
            ("bytes in shards", f"{self.bytes_shards:,}  ({self.bytes_shards / images:,.0f} per image)"),
            ("bytes out in all", f"{self.bytes_out:,}"),
            ("ratio", f"{ratio:,.1f} times smaller ({share:.2%} of the source)" if ratio else "-"),
            *([] if self.estimated else [("bits per token", f"{self.bits_per_token:.2f}  (order-0 entropy {entropy})")]),
            ("images per second", f"{self.images_per_second:,.0f}"),
            *([("work by stage", stages)] if stages else []),
            ("complete", "yes" if self.complete else f"no: {self._why_open()}"),
        ]

    def _why_open(self) -> str:
        again = "run the same `tokenshards tokenize` again" if self.generation == 1 else "run `tokenshards retry-failed` again"
        if self.shards_committed < self.shards_planned:
            return f"{self.shards_planned - self.shards_committed:,} of {counted(self.shards_planned, 'shard')} still to do"
        bad = self.images_quarantined + self.images_lost_about
        if not bad or self.generation > 1:  # --max-bad does not limit a retry
            return f"every shard is committed, but the run stopped before its end; {again}"
        share = max_bad_for(bad, self.images_planned - self.images_absent + self.images_lost_about)
        return (
            f"every shard is committed, but {counted(bad, 'input')} failed, maybe more than --max-bad allowed; {again}, if need be "
            f"with --max-bad {share:g}"
        )

    def _example(self, kind: str) -> str:
        return f"  (such as {self.examples[kind]})" if self.examples.get(kind) else ""

    def _most_left_out(self) -> list[tuple[str, int]]:
        most = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(count for _, count in most[LEFT_OUT_SHOWN:])
        return [*most[:LEFT_OUT_SHOWN], *([("by other rules", rest)] if rest else [])]


def fit_rows(statistics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the statistics of a tokenizer's fit as (name, value) text."""
    rows: list[tuple[str, str]] = [(name, f"{statistics[name]:,}") for name in ("images", "patches", "latents") if name in statistics]
    if "published_codes" in statistics:
        codes, ids = statistics["levels"][0]["codes"], statistics["kept_share"]
        rows.append(("codes kept", f"{codes:,} of {statistics['published_codes']:,}; they cover {ids:.2%} of the ids of these images"))
    for level, measured in enumerate(statistics.get("levels", ())):
        usage = f"{measured['codes']} codes, {measured['dead_codes']} dead, perplexity {measured['perplexity']:.0f}"
        fidelity = f", PSNR {measured['psnr_db']:.2f} dB" if "psnr_db" in measured else ""
        rows.append((f"level {level}", usage + fidelity))
    return rows


def dataset_report(store: Store, images_per_second: float | None = None) -> StorageReport:
    """Survey a dataset. Without `images_per_second` the rate comes from its recorded runs. Raises MissingObjectError for no dataset."""
    chain, manifest = _read_chain(store)
    newest = chain[-1] if chain or manifest is None else manifest  # a published copy has no plan
    surveys = [survey_plan(store, plan, plan.spec) for plan in _open_plans(chain, manifest)]
    committed, bytes_shards, histograms = _sums(manifest, surveys)
    rate = _rate(run_records(store)) if images_per_second is None else images_per_second
    return StorageReport(
        **committed,
        images_planned_exact=all(survey.planned_is_exact for survey in surveys),
        shards_planned=sum(plan.shards for plan in chain) if chain else committed["shards_committed"],
        generation=newest.generation,
        bytes_out=sum(max(0, info.size) for info in store.list()),
        bytes_shards=bytes_shards,
        order0_bits_per_token=entropy_per_id(histograms),
        images_per_second=round(rate, 2),
        complete=not surveys,
        views=ViewPolicy.stored(newest.view_policy, store.url).count,
        unlabelled=_unlabelled(committed["images_committed"], newest, manifest, surveys),
    )


def status_report(store: Store) -> StorageReport:
    """Report the progress of a dataset from one listing, its manifest and its run records; commits are counted, never read.

    The images of an open generation are estimated from the share of its shards that have a commit. Raises MissingObjectError for no
    dataset.
    """
    chain, manifest = _read_chain(store)
    waiting = _open_plans(chain, manifest)
    if not waiting:
        return dataset_report(store)
    plan = waiting[-1]  # all earlier generations have a manifest
    commits = bytes_shards = bytes_out = 0
    for info in store.list():
        bytes_out += max(0, info.size)
        bytes_shards += max(0, info.size) if info.path.startswith("shards/") else 0
        commits += is_commit(info.path) and info.path.split("/")[1] == plan.plan_id
    closed, _, _ = _sums(manifest, [])
    records = run_records(store)
    counters = [record.counters for record in records if record.plan_id == plan.plan_id]
    names = ("images_seen", "bytes_in", "images_quarantined", "images_absent")
    seen, bytes_in, failed, absent = (sum(int(one.get(name, 0)) for one in counters) for name in names)
    if not plan.tars_planned:
        seen = round(plan.images_planned * commits / max(1, plan.shards))
    return StorageReport(
        images_planned=closed["images_committed"] + closed["images_absent"] + (seen if plan.tars_planned else plan.images_planned),
        images_planned_exact=not plan.tars_planned,
        images_committed=closed["images_committed"] + max(0, seen - failed - absent),
        images_quarantined=failed,
        quarantine_reasons={},
        shards_planned=sum(plan.shards for plan in chain),
        shards_committed=closed["shards_committed"] + commits,
        generation=plan.generation,
        bytes_in=closed["bytes_in"] + bytes_in,
        bytes_out=bytes_out,
        bytes_shards=bytes_shards,
        bits_per_token=0.0,
        order0_bits_per_token=None,
        images_per_second=round(_rate(records), 2),
        seconds=closed["seconds"],
        complete=False,
        views=plan.views.count,
        images_absent=closed["images_absent"] + absent,
        left_out=closed["left_out"],
        examples=closed["examples"],
        estimated=True,
    )


def _read_chain(store: Store) -> tuple[list[Plan], Manifest | None]:
    pointer = load_pointer(store)
    manifest = None if pointer is None else load_manifest(store, pointer)
    chain = [] if manifest is not None and manifest.published else load_chain(store)
    if not chain and manifest is None:
        raise NotFoundError(store.url, "no dataset is here; expected the OUT folder of `tokenshards tokenize`")
    return chain, manifest


def _open_plans(chain: list[Plan], manifest: Manifest | None) -> list[Plan]:
    return [plan for plan in chain if manifest is None or plan.generation > manifest.generation]


def _unlabelled(images: int, newest: Plan | Manifest, manifest: Manifest | None, surveys: list[Survey]) -> int:
    """Return the number of images without a label, 0 if the source has no labels at all."""
    if newest.label_type is None:
        return 0
    rows = (sum(manifest.class_counts) if manifest is not None else 0) + sum(sum(survey.labels.values()) for survey in surveys)
    return images - rows // ViewPolicy.stored(newest.view_policy, "").count


def _sums(manifest: Manifest | None, surveys: list[Survey]) -> tuple[dict[str, Any], int, list[npt.NDArray[np.int64]] | None]:
    totals = manifest.totals if manifest is not None else {}
    untaken = manifest.untaken if manifest is not None else Untaken()
    for survey in surveys:
        untaken = untaken.before_retry()
        untaken.add(survey.untaken)
    committed = totals.get("images_committed", 0) + sum(survey.images for survey in surveys)
    # A later generation plans the quarantined inputs of the previous one again, so they must not count twice.
    planned = totals.get("images_planned", 0)
    if surveys:
        planned = surveys[-1].planned + committed - surveys[-1].images + untaken.absent - surveys[-1].untaken.absent
    quarantined = totals.get("images_quarantined", 0) if not surveys else surveys[-1].quarantined
    token_bytes = totals.get("token_bytes", 0) + sum(survey.token_bytes for survey in surveys)
    id_count = totals.get("id_count", 0) + sum(survey.id_count for survey in surveys)
    seconds: dict[str, float] = dict(totals.get("seconds", {}))
    parts: list[list[npt.NDArray[np.int64]] | None] = [manifest_histograms(manifest)] if manifest is not None else []
    for survey in surveys:
        parts.append(survey.histograms)
        for stage, spent in survey.seconds.items():
            seconds[stage] = round(seconds.get(stage, 0.0) + spent, 3)
    counted = [part for part in parts if part]
    histograms = [np.sum(levels, axis=0) for levels in zip(*counted, strict=True)] if counted and None not in parts else None
    remarks = sum((survey.image_remarks for survey in surveys), Counter(totals.get("image_remarks", {})))
    masks = [one.mask for one in (manifest,) if one is not None and one.mask] + [survey.masks for survey in surveys if survey.masks]
    values = {
        "images_planned": planned,
        "images_committed": committed,
        "images_quarantined": quarantined,
        "quarantine_reasons": surveys[-1].reasons if surveys else totals.get("quarantine_reasons", {}),
        "images_absent": untaken.absent,
        "images_lost_about": untaken.lost,
        "left_out": untaken.left_out,
        "examples": untaken.examples,
        "image_remarks": dict(sorted(remarks.items())),
        "masked_rows": sum(mask.images for mask in masks) if masks else None,
        "shards_committed": totals.get("shards", 0) + sum(len(survey.done) for survey in surveys),
        "bytes_in": totals.get("bytes_in", 0) + sum(survey.bytes_in for survey in surveys),
        "bits_per_token": round(8 * token_bytes / id_count, 4) if id_count else 0.0,
        "seconds": seconds,
    }
    return values, totals.get("bytes_shards", 0) + sum(survey.bytes_shards for survey in surveys), histograms


def _rate(records: list[RunRecord]) -> float:
    records = [record for record in records if record.counters.get("images_seen")]
    seconds = sum(record.updated_seconds - record.started_seconds for record in records)
    return sum(float(record.counters["images_seen"]) for record in records) / seconds if seconds > 0 else 0.0
