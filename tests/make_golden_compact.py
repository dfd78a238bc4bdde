"""Write the golden shards of format 1.2, which are coded by `compact`: python -m tests.make_golden_compact

One shard of each layout, with a copy of its model, and the ids. Nothing here makes again what exists.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.pipeline.shards.compact.models import random_model
from tests.pipeline.shards.samples import LAYOUTS, make_rows, make_spec, make_tokens
from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.model_file import model_sha256
from tokenshards.pipeline.shards.writer import encode_shard

FOLDER = Path(__file__).parent / "data" / "golden" / "v1_2"
ROWS, VOCABULARY = 5, 20


def main() -> None:
    """Make what is missing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    expected = {}
    for layout in LAYOUTS:
        spec = make_spec(layout, VOCABULARY)
        tokens = make_tokens(spec, ROWS, seed=1)
        sizes = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD
        expected[layout] = {"ids": tokens.ids_BLQ.tolist(), "sizes": None if sizes is None else sizes.tolist()}
        model = random_model(spec, seed=2, hidden=4)
        codec = CompactCodec(model, model_sha256(model))
        path = FOLDER / f"{layout}.parquet"
        if not path.exists():
            path.write_bytes(encode_shard(make_rows(ROWS), tokens, spec=spec, codec=codec, label_type=None, meta_types={}).data)
    if not (FOLDER / "expected.json").exists():
        (FOLDER / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
