"""A dataset of format 1.9 that this version can do without: every object and footer has something that we do not know."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import content, convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.canonical import canonical_json, seal, sha256_hex
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import FormatVersionError, PlanError, TokenizerError
from tokenshards.pipeline.ledger.heartbeat import live_runs, run_records
from tokenshards.pipeline.ledger.repair import repair_dataset
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_chain
from tokenshards.pipeline.planning.relisting import Relisting
from tokenshards.pipeline.planning.retry_plan import plan_retry
from tokenshards.pipeline.reports.inspection import inspect_dataset
from tokenshards.pipeline.shards import TokenizerSpec, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_spec, load_tokenizer

MORE = {"of_1_9": {"x": [1]}}


def spec_json(spec: TokenizerSpec) -> dict[str, Any]:
    """The fields that this version knows."""
    return dataclasses.replace(spec).to_json()


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    del value["self_sha256"]
    return value


def newer(value: dict[str, Any]) -> bytes:
    return seal({**value, "format_version": "1.9", **MORE})


def newer_spec(spec: dict[str, Any]) -> dict[str, Any]:
    parts = {name: {**spec[name], **MORE} for name in ("layout", "preprocess", "codebook")}
    return {**spec, **parts, **MORE}


def newer_parquet(path: Path, footer: dict[str, str]) -> bytes:
    """The same rows with one more column, one more footer key, and `footer`."""
    file = pq.ParquetFile(path)
    sink = pa.BufferOutputStream()
    old = {key: value for key, value in (file.metadata.metadata or {}).items() if key != b"ARROW:schema"}
    schema = file.schema_arrow.append(pa.field("of_1_9", pa.int8())).with_metadata(None)
    with pq.ParquetWriter(sink, schema) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group).replace_schema_metadata(None)
            writer.write_table(table.append_column("of_1_9", pa.array([1] * len(table), pa.int8())))
        named = {f"tokenshards.{key}": value for key, value in {**footer, "of_1_9": "x", "format_version": "1.9"}.items()}
        writer.add_key_value_metadata({**{key.decode(): value.decode() for key, value in old.items()}, **named})
    return bytes(sink.getvalue())


def replace_object(out: Path, reference: dict[str, Any], footer: dict[str, str]) -> dict[str, Any]:
    """Put a content-named object of 1.9 in the place of an old one; return the reference to it."""
    old = out / reference["path"]
    data = newer_parquet(old, footer)
    digest = sha256_hex(data)
    path = f"{old.parent.name}/{old.name.split('-')[0]}-{digest[:12]}.parquet"
    old.unlink()
    (out / path).write_bytes(data)
    return {"path": path, "sha256": digest, "size": len(data), **MORE}


def make_newer(out: Path) -> None:
    """Rewrite every object as a writer of 1.9 might have written it."""
    tokenizer = read(out / "tokenizer" / "tokenizer.json")
    spec = newer_spec(tokenizer["spec"])
    fingerprint = sha256_hex(canonical_json(spec))
    about = {"spec": canonical_json(spec).decode().strip(), "fingerprint": fingerprint}
    tokenizer_json = newer({**tokenizer, "spec": spec, "fingerprint": fingerprint})
    (out / "tokenizer" / "tokenizer.json").write_bytes(tokenizer_json)
    objects = {f"tokenizer/{path.name}": sha256_hex(path.read_bytes()) for path in (out / "tokenizer").iterdir()}

    current = read(out / "plan" / "current.json")
    folder = out / "plan" / current["plan_id"]
    plan = read(folder / "plan.json")
    for part in plan["parts"]:
        data = newer_parquet(out / part["path"], {})
        (out / part["path"]).write_bytes(data)
        part.update(sha256=sha256_hex(data), size=len(data), **MORE)
    plan_json = newer({**plan, "fingerprint": fingerprint, "tokenizer_objects": objects, "tokenizer_json": tokenizer_json.decode()})
    (folder / "plan.json").write_bytes(plan_json)
    (folder / "plan.copy.json").write_bytes(plan_json)
    (out / "plan" / "current.json").write_bytes(newer({**current, "sha256": sha256_hex(plan_json)}))

    entries = []
    for path in sorted(out.glob("commits/*/*.json")):
        commit = read(path)
        for name in ("data", "quarantine"):
            if commit[name] is not None:
                commit[name] = replace_object(out, commit[name], about if name == "data" else {})
        path.write_bytes(newer(commit))
        entries.append((commit, sha256_hex(path.read_bytes())))

    pointer = read(out / "manifest.json")
    manifest = read(out / pointer["manifest"])
    table = pq.read_table(out / manifest["table"]["path"]).to_pylist()
    for row, (commit, digest) in zip(table, entries, strict=True):
        row.update(commit_sha256=digest, of_1_9=1)
        for name, prefix in (("data", ""), ("quarantine", "quarantine_")):
            for key in ("path", "sha256", "size") if commit[name] is not None else ():
                row[prefix + key] = commit[name][key]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table), sink)
    data = bytes(sink.getvalue())
    reference = {"path": f"shards-{sha256_hex(data)[:12]}.parquet", "sha256": sha256_hex(data), "size": len(data), **MORE}
    (out / reference["path"]).write_bytes(data)
    data = newer({**manifest, "spec": spec, "fingerprint": fingerprint, "tokenizer_objects": objects, "table": reference})
    name = f"manifest-{sha256_hex(data)[:12]}.json"
    (out / name).write_bytes(data)
    (out / "manifest.json").write_bytes(newer({**pointer, "manifest": name, "sha256": sha256_hex(data)}))
    for path in out.glob("runs/*.json"):
        path.write_bytes(newer({**read(path), "state": "running", "updated_seconds": time.time(), "host": "elsewhere"}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A dataset of 1.9, and what it held as 1.0."""
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "src", 12, bad=2)
    convert(folder / "src", folder / "out", shard_rows=5, runner=InlineRunner())
    before = content(folder / "out")
    make_newer(folder / "out")
    return folder / "out", before


def test_it_is_read_and_verified_as_any_other(made: tuple[Path, dict[str, Any]]) -> None:
    out, before = made
    store = Store(str(out))
    assert content(out) == before
    found = verify_dataset(store)
    assert found.problems == [] and found.ok and found.rows_checked == 12
    assert repair_dataset(store, apply=False).steps == []
    assert inspect_dataset(store).report is not None
    assert open_dataset(str(out)).spec == load_spec(store, "tokenizer")


def test_columns_and_spec_fields_of_a_newer_minor_are_left_aside_and_kept(made: tuple[Path, dict[str, Any]]) -> None:
    dataset = open_dataset(str(made[0]))
    reader = dataset.open_shard(dataset.shards[0])
    assert "of_1_9" in reader.schema.names and "of_1_9" not in reader.row_columns
    value = {**spec_json(dataset.spec), **MORE}  # new fields only at the top, not in layout, preprocess or codebook
    assert TokenizerSpec.from_json(value).to_json() == value


def test_its_plan_and_its_runs_are_seen(made: tuple[Path, dict[str, Any]]) -> None:
    store = Store(str(made[0]))
    (plan,) = load_chain(store)
    assert plan.to_bytes() == (made[0] / plan.path).read_bytes(), "`repair` would restore another plan than the one that was lost"
    assert len(run_records(store)) > 0 and {record.host for record in live_runs(store)} == {"elsewhere"}


def test_who_would_make_other_tokens_refuses(made: tuple[Path, dict[str, Any]]) -> None:
    """Reading can do without what it does not know; making more of the same cannot."""
    store = Store(str(made[0]))
    with pytest.raises(PlanError, match=r"made in format 1\.9; .*Use the version of tokenshards that made the plan"):
        convert(made[0].parent / "src", made[0], runner=InlineRunner(), join=True)
    with pytest.raises(PlanError, match=r"made in format 1\.9"):
        plan_retry(store, Store(str(made[0].parent / "src")), SourceConfig())
    chain = load_chain(store)
    relisting = Relisting(store, chain, None, {})
    with pytest.raises(PlanError, match=r"made in format 1\.9"):
        relisting.parts(chain[0], list(chain[0].parts))
    assert "made in format 1.9" in str(relisting.lost_if_redone(chain[0], 0))
    with pytest.raises(TokenizerError, match="has fields that this version does not know"):
        load_tokenizer(store, "tokenizer")


def test_a_newer_major_is_refused_everywhere(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    value = read(made[0] / "tokenizer" / "tokenizer.json")
    store.write("tokenizer.json", seal({**value, "format_version": "2.0"}))
    with pytest.raises(FormatVersionError, match=r"tokenizer.json: written in format 2\.0; this version reads up to 1\.x"):
        load_tokenizer(store)
