"""Files of released format versions decode to the same values for ever; the bytes of our own JSON never change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests import make_golden_inputs
from tests.make_golden import CODECS, COMMIT, FOLDER, LABELS, META, QUARANTINE, ROWS, VOCABULARY, json_bytes, manifest, plan
from tests.pipeline.shards.samples import LAYOUTS, codebook, make_rows
from tokenshards.pipeline.canonical import unseal
from tokenshards.pipeline.planning.plan import parse_plan, plan_pointer
from tokenshards.pipeline.records import Untaken
from tokenshards.pipeline.shards.codebook import codebook_sha256, unpack_codebook
from tokenshards.pipeline.shards.commit import Commit, unpack_counts
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.storage.store import Store

EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_bytes())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_of_version_1_decode(layout: str, codec: str) -> None:
    reader = ShardReader.open(Store(str(FOLDER)), f"{layout}-{codec}.parquet")
    assert reader.metadata["format_version"] == "1.0" and reader.metadata["shard"] == "3" and reader.metadata["codec"] == codec
    assert reader.spec.layout == LAYOUTS[layout] and set(reader.spec.vocabulary) == {VOCABULARY}
    data = reader.read()
    assert data.tokens.ids_BLQ.dtype == np.uint16
    assert data.tokens.ids_BLQ.tolist() == EXPECTED[layout]["ids"]
    for name, array in (("lengths", data.tokens.lengths_B), ("shapes", data.tokens.shapes_BD)):
        assert (None if array is None else array.tolist()) == EXPECTED[layout][name]
    columns = data.table.to_pydict()
    assert columns["label"] == LABELS and columns["sample_id"] == make_rows(ROWS).sample_id and columns["view"] == [0] * ROWS
    assert columns["meta.caption"] == META["caption"] and columns["meta.score"] == META["score"]
    assert (columns["orig_width"], columns["orig_bytes"]) == ([100, 101, 102, 103], [1000, 1010, 1020, 1030])
    tables = reader.codebook()
    assert tables is not None and codebook_sha256(tables) == codebook_sha256(codebook((VOCABULARY,) * LAYOUTS[layout].ids_per_site))


def test_quarantine_of_version_1_decodes() -> None:
    assert read_quarantine((FOLDER / "quarantine.parquet").read_bytes()) == QUARANTINE


@pytest.mark.parametrize("name", ["canonical.json", "sealed.json", "spec.json"])
def test_our_json_keeps_its_bytes(name: str) -> None:
    assert json_bytes()[name] == (FOLDER / name).read_bytes()


def test_spelled_out_bytes() -> None:
    text = '{"nested":{"a":[],"b":true},"none":null,"numbers":[0,-1,1152921504606846976,0.5,1e-09],"text":"ä\\"\\\\\\n "}\n'
    assert (FOLDER / "canonical.json").read_bytes() == text.encode()
    assert unseal((FOLDER / "sealed.json").read_bytes(), "sealed.json") == json.loads(text)


def test_fingerprint_and_codebook_digest_are_pinned() -> None:
    spec = TokenizerSpec.from_json(json.loads((FOLDER / "spec.json").read_bytes()))
    assert spec.fingerprint == "36a6c66c4b3dee51df7dce5ba1d32a09c5f145c0d671a1796eb044c9c63134cc"
    assert codebook_sha256(codebook((5, 3))) == "9e33726a4d20f224930167abde00c4a1065600c5fbc286d18e0c360c068e9660"


def test_packed_values_decode() -> None:
    np.testing.assert_array_equal(unpack_counts((FOLDER / "counts.txt").read_text(), 20), np.arange(20) ** 3)
    tables = unpack_codebook((FOLDER / "codebook.txt").read_text(), codebook_sha256(codebook((5, 3))), "codebook.txt")
    np.testing.assert_array_equal(tables["level_1"], codebook((5, 3))["level_1"])


def test_state_objects_of_version_1_parse_and_keep_their_bytes() -> None:
    data = (FOLDER / "commit.json").read_bytes()
    commit = Commit.from_bytes(data, "commit.json")
    # Packed counts may be compressed to other bytes by another zstd, so they are compared by value.
    assert replace(commit, histogram=COMMIT.histogram) == COMMIT
    assert unpack_counts(commit.histogram[0], 4).tolist() == [0, 1, 2, 3]
    assert commit.to_bytes() == data
    assert parse_plan((FOLDER / "plan.json").read_bytes(), "plan.json") == plan()
    assert plan().to_bytes() == (FOLDER / "plan.json").read_bytes()
    assert plan_pointer(plan()) == (FOLDER / "current.json").read_bytes()


def test_a_manifest_of_version_1_loads() -> None:
    loaded = load_manifest(Store(str(FOLDER / "dataset")))
    assert replace(loaded, name="", table=None) == manifest()


def test_state_objects_of_version_1_1_parse_and_keep_their_bytes() -> None:
    folder = make_golden_inputs.FOLDER
    data = (folder / "commit.json").read_bytes()
    commit = Commit.from_bytes(data, "commit.json")
    assert replace(commit, histogram=COMMIT.histogram) == make_golden_inputs.newer_commit() and commit.to_bytes() == data
    assert (commit.absent, commit.left_out_count, unseal(data, "commit.json")["format_version"]) == (2, 4, "1.1")
    parsed = parse_plan((folder / "plan.json").read_bytes(), "plan.json")
    assert parsed == replace(plan(), format_version="1.1") and plan_pointer(parsed) == (folder / "current.json").read_bytes()
    assert parsed.to_bytes() == (folder / "plan.json").read_bytes() != plan().to_bytes()


def test_a_manifest_of_version_1_1_loads() -> None:
    loaded = load_manifest(Store(str(make_golden_inputs.FOLDER / "dataset")))
    assert replace(loaded, name="", table=None) == make_golden_inputs.newer_manifest()
    assert loaded.untaken == Untaken(
        absent=2, absent_example="t.parquet#7", left_out={".json": 3}, left_out_examples={".json": "a.tar#1.json"}
    )
    assert [(entry.absent, entry.left_out) for entry in loaded.shards] == [(2, 3), (0, 0)]


def test_every_golden_file_is_read_by_a_test() -> None:
    newer = {"commit.json", "plan.json", "current.json", "dataset", "images.parquet", "half_done", "tokens"}
    assert {path.name for path in make_golden_inputs.FOLDER.iterdir()} == newer  # the last three by test_golden_runs
    shards = {f"{layout}-{codec}.parquet" for layout in LAYOUTS for codec in CODECS}
    assert {path.name for path in FOLDER.iterdir()} == shards | {"quarantine.parquet", "expected.json", "dataset", *json_bytes()}
