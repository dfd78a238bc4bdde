"""A property of any input: each image becomes a row, a quarantined input, or is counted with its rule; its label is the stated one.

TREE_SEED=7 runs one tree alone; the assertion names the seed, the form and the options.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fsspec
import pytest

from tests.datasets import content, convert, keep_result, quarantine_of, write_images
from tests.inline import InlineRunner
from tests.pipeline.sources.tree_folders import FOLDERS
from tests.pipeline.sources.tree_grammar import Maker, Tree, rule_of
from tests.pipeline.sources.tree_tables import TABLES
from tests.pipeline.sources.tree_tars import TARS
from tests.pipeline.sources.zoo import POLICY
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.understand import understand
from tokenshards.pipeline.errors import BadInput, SourceError
from tokenshards.pipeline.images.decode import decode_image
from tokenshards.pipeline.job.inputs import read_inputs
from tokenshards.pipeline.planning.partition import RowSpool, table_to_rows
from tokenshards.pipeline.planning.plan import Plan
from tokenshards.pipeline.records import FailedRecord, ImageRecord, Untaken
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.sources import open_source, source_root
from tokenshards.pipeline.storage.store import Store

TREES, SOAK_TREES = 60, 2000
FORMS: list[Maker] = [*FOLDERS, *TARS, *TABLES]
"""The form of a tree follows from its seed, so that a few dozen seeds meet each."""
WHOLE = ("splits", "samples", "linked", "bytes_in_columns")
"""Forms of the trees that are converted whole."""


@dataclass
class Outcome:
    """What planning printed, and what became of every input."""

    kind: str = ""
    lines: list[str] = field(default_factory=list)
    rows: Counter[tuple[str, bytes, str]] = field(default_factory=Counter)
    bad: Counter[tuple[str, str]] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    """How many inputs of each label planning counted."""
    untaken: Untaken = field(default_factory=Untaken)
    planned_left_out: Counter[str] = field(default_factory=Counter)
    planned_inputs: int = 0
    seen: int = 0


def made(seed: int, root: Path) -> Tree:
    """Return the tree of a seed, written below `root`."""
    tree = Tree(root, random.Random(seed))
    root.mkdir()
    maker = FORMS[seed % len(FORMS)]
    tree.form = f"{maker.__module__.rpartition('.')[2]}.{maker.__name__}"
    maker(tree)
    local = tree.local or any(path.is_symlink() for path in root.rglob("*"))
    if not local and tree.chance(0.25):
        tree.store = f"memory://trees/{seed}"
        memory = fsspec.filesystem("memory")
        for path in root.rglob("*"):
            if path.is_file():
                memory.pipe_file(f"{tree.store}/{path.relative_to(root)}", path.read_bytes())
    return tree


def converted(tree: Tree, options: dict[str, Any], scratch: Path) -> Outcome:
    """Plan as the driver does, and read as workers do, by what the plan records."""
    asked, outcome = SourceConfig(**options), Outcome()
    scratch.mkdir(parents=True)
    source = open_source(tree.url, asked)
    outcome.kind = source.kind
    spool = RowSpool(scratch, order_seed=0, keep_order=source.ordered)
    for row in source.list_rows():
        spool.add([row])
        outcome.planned_inputs += row.inputs
    understand(source, asked, outcome.lines.append)
    summary = source.summary
    outcome.classes = Counter({repr(label): count for label, count in summary.classes.items()})
    for kind, left_out in summary.left_out.items():
        outcome.planned_left_out[rule_of(kind)] += left_out.count
    config = asked.with_planned(json.loads(json.dumps(source.config.planned())))
    plan = cast(Plan, SimpleNamespace(label_type=summary.label_type, meta_types=summary.meta_types))
    for table in spool.shards(10_000):
        rows = table_to_rows(table, summary.label_type, summary.meta_types)
        for record in read_inputs(source_root(tree.url, config), config, plan, rows, frozenset()):
            outcome.seen += 1
            if isinstance(record, ImageRecord):
                try:
                    decode_image(record.data, POLICY, config.image_rules)
                except BadInput as error:
                    outcome.bad[record.sample_id, error.reason.value] += 1
                else:
                    outcome.rows[record.sample_id, record.data, repr(record.label)] += 1
            elif isinstance(record, FailedRecord):
                outcome.bad[re.sub(r"@\d+$", "@", record.sample_id), record.error.reason.value] += 1
            else:
                outcome.untaken.take(record)
    return outcome


def differences(found: Counter[Any], expected: Counter[Any]) -> str:
    """Return what is found and not expected, and the reverse, short enough to read."""

    def shown(items: Counter[Any]) -> list[Any]:
        return [tuple(f"{len(part)} bytes" if isinstance(part, bytes) else part for part in item) for item in list(items)[:5]]

    return f"not expected: {shown(found - expected)}; not found: {shown(expected - found)}"


def check(tree: Tree, scratch: Path) -> None:
    """Raise AssertionError if something of the tree is lost, twice, or labelled by another rule than the stated one."""
    if tree.stops:
        bare = {name: value for name, value in tree.options.items() if name not in tree.settles}
        try:
            converted(tree, bare, scratch / "bare")
        except SourceError as refused:
            assert tree.stops in str(refused), f"the refusal does not name {tree.stops}: {refused}"
        else:
            raise AssertionError(f"it was not refused without {tree.settles}")
        if tree.never:
            return
    found = converted(tree, tree.options, scratch / "settled")
    rows = tree.expected_rows()
    assert found.rows == rows, f"rows: {differences(found.rows, rows)}"
    assert found.bad == tree.bad, f"quarantine: {differences(found.bad, tree.bad)}"
    assert found.untaken.absent == tree.absent, "absent"
    if not (tree.bad or tree.absent):  # of those planning sees labels too
        labels = Counter(label for _, _, label in rows.elements() if label != "None")
        assert found.classes == labels, f"classes at planning: {found.classes}, expected {labels}"
    members = Counter({rule: count for rule, count in tree.members_left_out.items() if count})
    of_members: Counter[str] = Counter()
    for kind, count in found.untaken.left_out.items():
        of_members[rule_of(kind)] += count
    if found.kind == "table":  # rows of another split: a worker meets those of the slices that it reads
        assert of_members <= tree.left_out, f"left out at work: {of_members}, expected of {tree.left_out}"
    else:
        assert of_members == members, f"left out at work: {of_members}, expected {members}"
    planned = Counter({rule: count for rule, count in (tree.left_out + members).items() if rule != "further images"})
    assert found.planned_left_out == planned, f"left out at planning: {found.planned_left_out}, expected {planned}"
    assert all(any(words in line for line in found.lines) for words in tree.says), f"{tree.says} is not in {found.lines}"
    ignored = next((line for line in found.lines if line.startswith("ignored ")), "")
    assert all(f"{count} " in ignored for count in list(planned.values())[:8]), f"{planned} is not in {ignored!r}"
    inputs = sum(rows.values()) + sum(tree.bad.values()) + tree.absent
    if found.kind != "tar":  # the members of tars are counted when they are read
        assert found.planned_inputs == inputs, f"planned inputs {found.planned_inputs}, expected {inputs}"


def run(seed: int, folder: Path) -> str:
    """Make and check the tree of a seed; return its form."""
    root, scratch = folder / "src", folder / "scratch"
    tree = made(seed, root)
    try:
        check(tree, scratch)
        if tree.store:
            fsspec.filesystem("memory").rm(tree.store, recursive=True)
    except Exception as error:
        raise AssertionError(f"tree {seed} ({tree.form}, {tree.url!r}, {tree.options}): {type(error).__name__}: {error}") from error
    return tree.form


def test_every_image_of_random_trees_is_accounted_for(tmp_path: Path) -> None:
    first = os.environ.get("TREE_SEED")
    for seed in [int(first)] if first else range(TREES):
        run(seed, new(tmp_path / str(seed)))


def test_some_trees_are_accounted_for_in_whole_datasets(tmp_path: Path) -> None:
    write_images(tmp_path / "fit", 8)
    convert(tmp_path / "fit", tmp_path / "fitted", runner=InlineRunner())
    names = [maker.__name__ for maker in FORMS]
    for seed in (names.index(name) for name in WHOLE):
        tree = made(seed, new(tmp_path / str(seed)) / "src")
        options = {"tokenizer": str(tmp_path / "fitted" / "tokenizer"), "runner": InlineRunner(), "shard_rows": 5}
        out = tmp_path / str(seed) / "out"
        convert(tree.url, out, source=SourceConfig(**tree.options), **options)
        found = {sample_id: repr(label) for sample_id, (label, _) in content(out).items()}
        assert found == {sample_id: label for sample_id, _, label in tree.expected_rows()}, f"tree {seed}"
        assert Counter(quarantine_of(out).items()) == tree.bad, f"tree {seed}"
        shards = load_manifest(Store(str(out))).shards
        for entry in shards:
            assert entry.inputs_seen == entry.rows + entry.quarantined + entry.absent + entry.left_out
        counts = [sum(getattr(entry, part) for entry in shards) for part in ("rows", "quarantined", "absent", "left_out")]
        members = tree.members_left_out.total() if tree.form.startswith("tree_tar") else 0
        assert counts == [len(tree.rows), tree.bad.total(), tree.absent, members], f"tree {seed}"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_image_of_many_random_trees_is_accounted_for(tmp_path: Path) -> None:
    first, started = int(os.environ.get("SOAK_SEED", "1000")), time.process_time()
    forms: Counter[str] = Counter()
    for seed in range(first, first + SOAK_TREES):
        forms[run(seed, new(tmp_path / str(seed)))] += 1
        shutil.rmtree(tmp_path / str(seed))
    seconds = round(time.process_time() - started)
    keep_result("soak_random_trees", first_seed=first, trees=SOAK_TREES, forms=dict(forms), cpu_seconds=seconds, all_accounted_for=True)


def new(folder: Path) -> Path:
    """Make a folder and return it."""
    folder.mkdir()
    return folder
