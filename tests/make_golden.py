"""Write the golden files of the current format version: python -m tests.make_golden

Golden files are made once per format version and then only read: `tests/pipeline/shards/test_golden.py` says what they must decode to. Run
this for a new major or for a codec that joins; existing files are left alone, because they stand for datasets that exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.canonical import canonical_json, seal
from pipeline.shards.codebook import pack_codebook
from pipeline.shards.commit import pack_counts
from pipeline.shards.writer import encode_quarantine
from tests.pipeline.shards.samples import LAYOUTS, codebook, make_rows, make_shard, make_spec, make_tokens

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


def json_bytes() -> dict[str, bytes]:
    """Samples of everything whose bytes are ours alone."""
    values = {"text": 'ä"\\\n ', "numbers": [0, -1, 1 << 60, 0.5, 1e-9], "none": None, "nested": {"b": True, "a": []}}
    return {
        "canonical.json": canonical_json(values),
        "sealed.json": seal(values),
        "spec.json": canonical_json(make_spec("grid_residual", VOCABULARY, tables=codebook((VOCABULARY,) * 3)).to_json()),
        "counts.txt": pack_counts(np.arange(20, dtype=np.int64) ** 3).encode(),
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


if __name__ == "__main__":
    main()
