"""Write the golden files of the current format version: python -m tests.make_golden

Golden files are made once per format version and then only read: `tests/pipeline/shards/test_golden.py` says what they must decode to. Run
this for a new major or for a codec that joins; existing files are left alone, because they stand for datasets that exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests import make_golden_runs
from tests.pipeline.shards.samples import LAYOUTS, codebook, make_rows, make_shard, make_spec, make_tokens
from tokenshards.pipeline.canonical import canonical_json, seal
from tokenshards.pipeline.planning.plan import Plan, PlanPart, plan_pointer
from tokenshards.pipeline.shards.codebook import pack_codebook
from tokenshards.pipeline.shards.commit import Commit, ObjectRef, pack_counts
from tokenshards.pipeline.shards.manifest import Manifest, ShardEntry, publish_manifest
from tokenshards.pipeline.shards.writer import encode_quarantine
from tokenshards.pipeline.storage.store import Store

FOLDER = Path(__file__).parent / "data" / "golden" / "v1"
ROWS = 4
CODECS = ("default", "publish")
VOCABULARY = 300
QUARANTINE: list[dict[str, Any]] = [
    {
        "sample_id": "ä/b.jpg",
        "uri": "s3://b/ä/b.jpg",
        "stage": "decode",
        "reason": "truncated",
        "detail": "9 of 10 bytes",
        "label": "ä",
        "data": b"\xff\xd8",
    },
    {"sample_id": "c.png", "uri": "c.png", "stage": "fetch", "reason": "missing", "detail": "", "label": None, "data": None},
]
LABELS = ["cat", None, "dög", "cat"]
META = {"caption": ["a", None, "c", ""], "score": [0.5, 1.5, None, -2.0]}
META_TYPES = {"caption": "string", "score": "float64"}


def shard(layout: str, codec: str) -> bytes:
    tables = codebook((VOCABULARY,) * LAYOUTS[layout].ids_per_site)
    spec = make_spec(layout, VOCABULARY, tables=tables)
    return make_shard(
        spec,
        make_tokens(spec, ROWS, seed=1),
        codec=codec,
        rows=make_rows(ROWS, labels=LABELS, meta=META),
        label_type="string",
        meta_types=META_TYPES,
        codebook=tables,
        extra_metadata={"shard": "3", "plan_id": "f" * 64},
    ).data


COMMIT = Commit(
    plan_id="f" * 64,
    shard=3,
    data=ObjectRef(path="shards/00000003-0123456789ab.parquet", sha256="0" * 64, size=1234),
    quarantine=None,
    rows=4,
    quarantined=0,
    reasons={},
    inputs_seen=4,
    bytes_in=4321,
    token_bytes=99,
    id_count=128,
    labels=[[1, 2], ["dög", 2]],
    histogram=[pack_counts(np.arange(4))],
    attempt=2,
    seconds={"decode": 0.5},
    made_by={"tokenshards": "0.1.0"},
)


def plan() -> Plan:
    """One of every field, so that a field that is renamed or lost shows."""
    spec = make_spec("grid", VOCABULARY)
    return Plan(
        plan_id="e" * 64,
        fingerprint=spec.fingerprint,
        shard_rows=1000,
        batch_rows=64,
        codec="default",
        order_seed=0,
        view_policy="one",
        source={"url": "s3://b/ä", "root": "s3://b/ä", "kind": "folder", "options": {"all_files": False}},
        tokenizer_objects={"tokenizer/tokenizer.json": "1" * 64},
        tokenizer_json=json.dumps({"spec": spec.to_json()}, sort_keys=True),
        label_type="string",
        meta_types={"caption": "string"},
        classes=("cat", "dög"),
        images_planned=1500,
        tars_planned=0,
        first_shard=0,
        shards=2,
        parts=(PlanPart(path="plan/e/part-00000.parquet", sha256="2" * 64, size=7, digest="3" * 64, first_shard=0, shards=2, rows=1500),),
        matched=("1500 images",),
        card={"created": "2026-11-22T00:00:00Z"},
        generation=1,
        earlier_plans=(),
    )


def manifest() -> Manifest:
    """A manifest of two shards, one of which lost all its inputs."""
    entry = ShardEntry(
        shard=0,
        path="shards/00000000-0123456789ab.parquet",
        sha256="0" * 64,
        size=1234,
        rows=4,
        quarantine_path=None,
        quarantine_sha256=None,
        quarantine_size=0,
        quarantined=0,
        inputs_seen=4,
        plan_id="e" * 64,
        commit_sha256="4" * 64,
    )
    lost = replace(
        entry, shard=1, path=None, sha256=None, size=0, rows=0, quarantine_path="quarantine/00000001-ab.parquet", quarantine_sha256="5" * 64
    )
    return Manifest(
        generation=1,
        parent=None,
        plan_ids=("e" * 64,),
        spec=make_spec("grid", VOCABULARY),
        classes=(7, "cat", "dög"),
        class_counts=(0, 2, 2),
        totals={"images_planned": 8, "images_committed": 4},
        statistics={"histogram": []},
        card={"licence": "CC0"},
        tokenizer_objects={"tokenizer/tokenizer.json": "1" * 64},
        label_type="string",
        shards=[entry, replace(lost, quarantine_size=99, quarantined=4)],
    )


def json_bytes() -> dict[str, bytes]:
    """Samples of everything whose bytes are ours alone."""
    values = {"text": 'ä"\\\n ', "numbers": [0, -1, 1 << 60, 0.5, 1e-9], "none": None, "nested": {"b": True, "a": []}}
    return {
        "canonical.json": canonical_json(values),
        "sealed.json": seal(values),
        "spec.json": canonical_json(make_spec("grid_residual", VOCABULARY, tables=codebook((VOCABULARY,) * 3)).to_json()),
        "counts.txt": pack_counts(np.arange(20, dtype=np.int64) ** 3).encode(),
        "commit.json": COMMIT.to_bytes(),
        "plan.json": plan().to_bytes(),
        "current.json": plan_pointer(plan()),
        "codebook.txt": (pack_codebook(codebook((5, 3))) or "").encode(),
    }


def expected_ids() -> bytes:
    """What the shards of each layout must decode to, so that no random generator has to stay the same."""
    found = {}
    for layout in LAYOUTS:
        tokens = make_tokens(make_spec(layout, VOCABULARY), ROWS, seed=1)
        lengths, shapes = (None if array is None else array.tolist() for array in (tokens.lengths_B, tokens.shapes_BD))
        found[layout] = {"ids": tokens.ids_BLQ.tolist(), "lengths": lengths, "shapes": shapes}
    return canonical_json(found)


def files() -> Iterator[tuple[str, bytes]]:
    for layout in LAYOUTS:
        for codec in CODECS:
            yield f"{layout}-{codec}.parquet", shard(layout, codec)
    yield "quarantine.parquet", encode_quarantine(QUARANTINE)
    yield "expected.json", expected_ids()
    yield from json_bytes().items()


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in files():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(data)
            print(f"{name}: {len(data)} bytes")
    if not (FOLDER / "dataset").exists():
        publish_manifest(Store(str(FOLDER / "dataset")), manifest())
    make_golden_runs.main()


if __name__ == "__main__":
    main()
