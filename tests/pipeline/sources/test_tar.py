"""Tars: webdataset's grouping, labels, and damage that costs only what lies behind it."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.sources.zoo import encoded, flat
from tokenshards.pipeline.config import RetryConfig, SourceConfig
from tokenshards.pipeline.errors import Reason, SourceError, TransientStorageError
from tokenshards.pipeline.records import FailedRecord, ImageRecord, LeftOutRecord, PlanRow, SourceRecord
from tokenshards.pipeline.sources import expand_braces, open_source, read_slice, source_root
from tokenshards.pipeline.storage.store import Store

PNG = encoded(flat(size=(8, 8)), "PNG")
CONFIG = SourceConfig()


def tar_bytes(members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def labelled(count: int, image: bytes = PNG) -> list[tuple[str, bytes]]:
    return [member for n in range(count) for member in ((f"{n:04d}.png", image), (f"{n:04d}.cls", str(n % 3).encode()))]


def records(path: Path, config: SourceConfig = CONFIG) -> list[SourceRecord]:
    source = open_source(str(path), config)
    return [record for row in source.list_rows() for record in source.read(row)]


def reasons(found: list[SourceRecord]) -> dict[str, Reason]:
    return {record.sample_id: record.error.reason for record in found if isinstance(record, FailedRecord)}


def images(found: list[SourceRecord]) -> list[ImageRecord]:
    return [record for record in found if isinstance(record, ImageRecord)]


def test_samples_keep_their_order_keys_and_labels(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(labelled(5)))
    source = open_source(str(tmp_path / "a.tar"), CONFIG)
    (row,) = source.list_rows()
    assert (row.kind, row.inputs, row.sample_id, source.ordered, source.kind) == ("tar", -1, "a.tar", True, "tar")
    assert source.summary.label_type == "int64"
    found = list(source.read(row))
    assert [(record.sample_id, record.label) for record in found] == [(f"a.tar#{n:04d}", n % 3) for n in range(5)]
    assert all(isinstance(record, ImageRecord) and record.data == PNG for record in found)


def test_workers_read_without_listing(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(labelled(3)))
    source = open_source(str(tmp_path), CONFIG)
    (row,) = source.list_rows()
    store = source_root(str(tmp_path), CONFIG)
    assert list(read_slice(store, row, CONFIG, "int64", {})) == list(source.read(row))


def test_where_labels_come_from(tmp_path: Path) -> None:
    members = [
        ("a.png", PNG), ("a.cls", b"7\n"), ("a.json", b'{"label": 1}'), ("a.txt", b"text"),
        ("b.json", b'{"class_id": 8, "score": 0.5}'), ("b.png", PNG), ("b.txt", b"text"),
        ("c.PNG", PNG), ("c.txt", b"9"),
        ("d.png", PNG),
    ]  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    assert [record.label for record in records(tmp_path)] == [7, 8, None, None]
    assert [record.label for record in records(tmp_path, SourceConfig(rules=1))] == [7, 8, 9, None]  # plans of before
    assert [record.label for record in records(tmp_path, SourceConfig(no_labels=True))] == [None] * 4


def said(path: Path, config: SourceConfig = CONFIG) -> str:
    source = open_source(str(path), config)
    list(source.list_rows())
    return "\n".join([*source.summary.lines(), *(f"{name}: {text}" for name, text in source.summary.table())])


def test_captions_are_no_classes_unless_an_option_says_so(tmp_path: Path) -> None:
    members = [
        member for n in range(5) for member in ((f"{n}.png", PNG), (f"{n}.txt", f" a cat, {n}\n".encode()), (f"{n}.json", b'{"w": 1}'))
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    assert [record.label for record in records(tmp_path)] == [None] * 5
    text = said(tmp_path)
    assert "no labels (no .cls and no label in .json in all 5 samples)\nthe .txt members are kept as meta.caption; --label txt" in text
    assert [record.meta for record in images(records(tmp_path))] == [{"caption": f"a cat, {n}"} for n in range(5)]
    assert "the .txt of 5 of 5 samples is not used; --meta txt" in said(tmp_path, SourceConfig(rules=2))
    kept = images(records(tmp_path, SourceConfig(meta=("txt", "w"))))
    assert [(record.label, record.meta) for record in kept] == [(None, {"txt": f"a cat, {n}", "w": 1}) for n in range(5)]
    assert "caption" not in said(tmp_path, SourceConfig(meta=("txt",)))
    assert [record.label for record in records(tmp_path, SourceConfig(label="txt"))] == [f"a cat, {n}" for n in range(5)]
    assert "label: .txt, text" in said(tmp_path, SourceConfig(label="txt"))
    assert "no labels, as --no-labels asks" in said(tmp_path, SourceConfig(no_labels=True))


def test_a_key_of_json_wins_over_a_member_of_that_name(tmp_path: Path) -> None:
    members = [
        ("a.png", PNG),
        ("a.json", b'{"txt": "of json"}'),
        ("a.txt", b"of txt"),
        ("b.png", PNG),
        ("b.json", b"{}"),
        ("b.txt", b"of b"),
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    assert [record.label for record in records(tmp_path, SourceConfig(label="txt"))] == ["of json", "of b"]


@pytest.mark.parametrize("config", [SourceConfig(label="speces"), SourceConfig(meta=("species", "speces"))])
def test_a_name_that_no_sample_has_is_refused(config: SourceConfig, tmp_path: Path) -> None:
    members = [("a.png", PNG), ("a.json", b'{"species": "owl", "w": 1}'), ("a.txt", b"text")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    with pytest.raises(
        SourceError, match=r"first 1 samples has the value that --(label|meta) speces names; .*\(they have species, w\).*json, png, txt"
    ):
        said(tmp_path, config)
    (tmp_path / "b.tar").write_bytes(tar_bytes([("b.png", PNG), ("b.json", b'{"speces": "elk"}')]))
    assert len(images(records(tmp_path, config))) == 2, "the second tar has it"


def test_a_caption_that_is_a_number_is_text(tmp_path: Path) -> None:
    captions = [b"7"] * 70 + [b"a cat"]
    members = [member for n, text in enumerate(captions) for member in ((f"{n:03d}.png", PNG), (f"{n:03d}.txt", text))]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    kept = images(records(tmp_path, SourceConfig(meta=("txt",))))
    assert len(kept) == 71 and kept[0].meta == {"txt": "7"} and kept[-1].meta == {"txt": "a cat"}


def test_an_image_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(labelled(3)))
    for config in (SourceConfig(label="png"), SourceConfig(meta=("png",))):
        with pytest.raises(SourceError, match=r"--(label|meta) png names images; expected a key of the .json members, or a text member"):
            said(tmp_path, config)


def test_a_malformed_json_first_costs_its_own_sample_and_no_label(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.png", PNG), ("a.json", b"{"), *labelled(5)]))
    found = records(tmp_path)
    assert reasons(found) == {"a.tar#a": Reason.BAD_LABEL}
    assert [record.label for record in images(found)] == [n % 3 for n in range(5)]
    assert "label: .cls, whole numbers" in said(tmp_path)


@pytest.mark.parametrize("config", [SourceConfig(id_column="key"), SourceConfig(image_column="jpg")])
def test_options_of_tables_are_refused(config: SourceConfig, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(labelled(1)))
    with pytest.raises(SourceError, match="is a set of tars, and --(id|image)-column was given as .*: tars have no columns"):
        said(tmp_path, config)


def test_named_key_and_meta(tmp_path: Path) -> None:
    texts = [
        {"species": "owl", "label": 3, "score": 1, "note": "x", "tags": ["a"], "ok": True},
        {"species": "42", "score": 0.5, "note": None, "tags": None, "ok": False},
    ]
    members = [member for n, text in enumerate(texts) for member in ((f"{n}.png", PNG), (f"{n}.json", json.dumps(text).encode()))]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    config = SourceConfig(label="species", meta=("score", "note", "tags", "ok"))
    source = open_source(str(tmp_path), config)
    (row,) = source.list_rows()
    assert source.summary.label_type == "string"
    assert source.summary.meta_types == {"score": "float64", "note": "string", "tags": "string", "ok": "bool"}
    first, second = source.read(row)
    assert isinstance(first, ImageRecord) and isinstance(second, ImageRecord)
    assert (first.label, second.label) == ("owl", "42")
    assert first.meta == {"score": 1.0, "note": "x", "tags": '["a"]', "ok": True}
    assert second.meta == {"score": 0.5, "note": None, "tags": None, "ok": False}


def test_bad_members_cost_their_own_sample(tmp_path: Path) -> None:
    members = [
        *labelled(2),
        ("no-image.json", b"{}"),
        ("bad-label.png", PNG), ("bad-label.cls", b"owl"),
        ("huge-label.png", PNG), ("huge-label.cls", str(1 << 63).encode()),
        ("float-label.png", PNG), ("float-label.json", b'{"label": 1.5}'),
        ("bad-json.png", PNG), ("bad-json.json", b"{"),
        ("bad-text.png", PNG), ("bad-text.cls", b"\xff\xfe"),
        ("0001.png", PNG),
        ("fine.png", PNG), ("fine.cls", b"1"),
    ]  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar_bytes([*labelled(70), *[(f"x/{name}", data) for name, data in members]]))
    found = records(tmp_path)
    failed = {sample_id.partition("#")[2].partition("@")[0]: reason for sample_id, reason in reasons(found).items()}
    assert failed == {
        "x/no-image": Reason.NO_IMAGE,
        "x/bad-json": Reason.BAD_LABEL,
        "x/bad-text": Reason.BAD_LABEL,
        "x/0001": Reason.DUPLICATE_ID,
    }
    assert len({record.sample_id for record in found}) == len(found)
    labels = {record.sample_id: record.label for record in images(found)}
    assert len(labels) == 76 and labels["a.tar#0001"] == "1", "one label that is no number makes all of them text"
    assert [labels[f"a.tar#x/{name}-label"] for name in ("bad", "huge", "float")] == ["owl", str(1 << 63), "1.5"]
    bad = next(record for record in found if isinstance(record, FailedRecord) and record.sample_id == "a.tar#x/bad-text")
    assert bad.data == PNG
    (tmp_path / "a.tar").write_bytes(tar_bytes([*labelled(70), ("x.png", PNG), ("x.cls", b"owl")]))
    assert reasons(records(tmp_path, SourceConfig(rules=2))) == {"a.tar#x": Reason.BAD_LABEL}


def test_unlabelled_tars_do_not_lose_labels_silently(tmp_path: Path) -> None:
    members = [*[(f"{n:04d}.png", PNG) for n in range(70)], ("z.png", PNG), ("z.cls", b"1")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    assert [record.label for record in images(records(tmp_path))] == [*[None] * 70, 1]
    assert reasons(records(tmp_path, SourceConfig(rules=2))) == {"a.tar#z": Reason.BAD_LABEL}


def test_members_that_are_no_part_of_a_sample(tmp_path: Path) -> None:
    members = [
        ("__meta__/info.png", PNG), ("noextension", b"x"), (".hidden.png", PNG), ("a/._1.png", b"resource fork"),
        ("a.b/1.seg.png", b"mask"), ("a.b/1.png", PNG), ("a.b/1.seg.json", b"{}"),
    ]  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    record, *left_out = records(tmp_path, SourceConfig(image_member="png"))
    assert isinstance(record, ImageRecord) and (record.sample_id, record.data) == ("a.tar#a.b/1", PNG)
    assert {(found.kind, found.count, found.example) for found in left_out if isinstance(found, LeftOutRecord)} == {
        ("webdataset's own (__NAME__)", 1, "a.tar#__meta__/info.png"),
        ("hidden (a name begins with a dot)", 1, "a.tar#.hidden.png"),
        ("AppleDouble (._ files that macOS writes)", 1, "a.tar#a/._1.png"),
        ("without extension", 1, "a.tar#noextension"),
        ("further images of a sample", 1, "a.tar#a.b/1.seg.png"),
    }
    assert len(left_out) == 5
    (record,) = records(tmp_path, SourceConfig(rules=2))
    assert record.sample_id == "a.tar#a.b/1"


names = st.from_regex(r"([a-c]{1,2}/)?[a-c]{1,2}\.(png|cls|json|seg\.png)", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(names, max_size=12))
def test_grouping_is_that_of_webdataset(found: list[str]) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    bodies = {"png": PNG, "cls": b"1", "json": b"{}"}
    members = [(name, bodies[name.rpartition(".")[2]]) for name in found]
    archive = tar_bytes(members)
    streams = [{"url": "a.tar", "stream": io.BytesIO(archive)}]
    try:
        expected = [
            (str(sample["__key__"]), sorted(set(sample) - {"__key__", "__url__"})) for sample in group_by_keys(tar_file_expander(streams))
        ]
    except ValueError:  # one suffix twice in a sample: ours is a failure of its own
        return
    store = Store("memory://grouping")
    store.write("a.tar", archive)
    row = PlanRow(kind="tar", sample_id="a.tar", path="a.tar", size=len(archive), version="", inputs=-1)
    keys = [key for key, _ in expected]
    for config in (SourceConfig(tar_key="first-dot", image_member="first"), SourceConfig(rules=2)):
        try:
            found = list(read_slice(store, row, config, "int64", {}))
        except SourceError as error:
            assert "lie apart" in str(error) and len(set(keys)) < len(keys)
            continue
        ours = [record.sample_id.partition("#")[2].partition("@")[0] for record in found if not isinstance(record, LeftOutRecord)]
        assert ours == keys


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_unusual_names(tar_format: int, tmp_path: Path) -> None:
    long = "ünï-" + "n" * (60 if tar_format == tarfile.USTAR_FORMAT else 180)
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.png", PNG), (f"{long}.png", PNG)], tar_format))
    assert [record.sample_id for record in records(tmp_path)] == ["a.tar#a", f"a.tar#{long}"]


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".tar.zst"])
def test_compressed_tars(ending: str, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(tar_bytes(labelled(1)))
    plain = tar_bytes(labelled(4))
    packed = zstandard.compress(plain) if ending.endswith("zst") else gzip.compress(plain)
    (tmp_path / f"a{ending}").write_bytes(packed)
    assert len(images(records(tmp_path))) == 5
    (tmp_path / f"a{ending}").write_bytes(packed[:-20])
    found = records(tmp_path)
    assert Reason.BAD_CONTAINER in reasons(found).values()


def test_truncation_costs_only_what_lies_behind_it(tmp_path: Path) -> None:
    whole = tar_bytes(labelled(6))
    offsets = [whole.index(b"%04d.png" % n) for n in range(6)]
    for cut in (offsets[3] + 540, offsets[3] + 700, offsets[3] + 100):  # in the data, in its padding, in the header
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        found = records(tmp_path)
        complete = images(found)
        assert [record.sample_id for record in complete] == [f"a.tar#{n:04d}" for n in range(len(complete))]
        assert all(record.label == n % 3 for n, record in enumerate(complete))
        assert 2 <= len(complete) <= 3
        assert reasons(found) == {f"a.tar#@{offsets[len(complete)]}": Reason.BAD_CONTAINER}
        assert isinstance(found[-1], FailedRecord)


def test_a_damaged_header_in_the_middle_does_not_end_the_tar_silently(tmp_path: Path) -> None:
    damaged = bytearray(tar_bytes(labelled(6)))
    at = damaged.index(b"0003.png")
    damaged[at] ^= 1
    (tmp_path / "a.tar").write_bytes(damaged)
    found = records(tmp_path)
    assert len(images(found)) == 2
    assert list(reasons(found).values()) == [Reason.BAD_CONTAINER]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_yields_true_samples_and_then_at_most_one_container_failure(data: st.DataObject) -> None:
    damaged = bytearray(tar_bytes(labelled(4)))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    store = Store("memory://damage", retry=RetryConfig(attempts=1))
    store.write("a.tar", bytes(damaged))
    row = PlanRow(kind="tar", sample_id="a.tar", path="a.tar", size=len(damaged), version="", inputs=-1)
    # With labels planned as text every damaged label fits. An int64 plan stops the shard at a label that is no number.
    found = list(read_slice(store, row, CONFIG, "string", {}))
    broken = [index for index, reason in enumerate(reasons(found).values()) if reason == Reason.BAD_CONTAINER]
    assert len(broken) <= 1
    assert len({record.sample_id for record in found}) == len(found)


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100, bytes(100)])
def test_an_unreadable_tar_is_one_failure(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(labelled(2)))
    (tmp_path / "b.tar").write_bytes(content)
    found = records(tmp_path)
    assert len(images(found)) == 2
    assert reasons(found) == {"b.tar": Reason.BAD_CONTAINER}


def test_an_empty_archive_has_no_samples(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([]))
    assert records(tmp_path) == []


def test_missing_and_changed_tars(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(labelled(2)))
    source = open_source(str(path), CONFIG)
    (row,) = source.list_rows()
    path.write_bytes(tar_bytes(labelled(20)))
    assert reasons(list(source.read(row))) == {"a.tar": Reason.CHANGED_SINCE_PLAN}
    path.unlink()
    with pytest.raises(TransientStorageError, match="this folder is empty"):
        list(source.read(row))
    (tmp_path / "b.tar").touch()
    assert reasons(list(source.read(row))) == {"a.tar": Reason.MISSING}
    path.mkdir()
    assert reasons(list(source.read(row))) == {"a.tar": Reason.NOT_A_FILE}


def test_a_key_that_occurs_again_fails_under_an_id_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([*labelled(4), ("0000.png", PNG)]))
    *found, again = records(tmp_path)
    assert [record.sample_id for record in found] == [f"a.tar#{n:04d}" for n in range(4)]
    assert isinstance(again, FailedRecord) and again.error.reason == Reason.DUPLICATE_ID
    assert again.sample_id.startswith("a.tar#0000@")


def test_an_outage_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://outage")
    store.write("a.tar", tar_bytes(labelled(4, image=PNG + bytes(5 << 20))))
    source = open_source("memory://outage/a.tar", CONFIG)
    (row,) = source.list_rows()
    reads = iter(range(100))

    def failing(self: Store, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if next(reads) == 1:
            raise TransientStorageError("an outage")
        return original(self, path, start, end)

    original = Store.read
    monkeypatch.setattr(Store, "read", failing)
    with pytest.raises(TransientStorageError):
        list(source.read(row))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "pwned"
    evil = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.png", PNG), ("a.pyd", evil), ("a.pickle", evil)]))
    assert len(images(records(tmp_path))) == 1
    assert not marker.exists()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    for n in range(12):
        (tmp_path / f"part-{n:03d}.tar").write_bytes(tar_bytes([(f"{n}.png", PNG)]))
    (tmp_path / "other.tar").write_bytes(tar_bytes([("other.png", PNG)]))
    (tmp_path / "stats.json").write_text("{}")
    return tmp_path


def rows_of(url: str) -> Iterator[str]:
    return (row.sample_id for row in open_source(url, CONFIG).list_rows())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("part-{000..003}.tar", ["part-000.tar", "part-001.tar", "part-002.tar", "part-003.tar"]),
        ("part-{011,002}.tar", ["part-011.tar", "part-002.tar"]),
        ("part-00[0-2].tar", ["part-000.tar", "part-001.tar", "part-002.tar"]),
        ("o*.tar", ["other.tar"]),
        ("other.tar", ["other.tar"]),
    ],
)
def test_patterns(many: Path, pattern: str, expected: list[str]) -> None:
    assert list(rows_of(f"{many}/{pattern}")) == expected
    store = Store("memory://patterns")
    for path in many.iterdir():
        store.write(path.name, path.read_bytes())
    assert list(rows_of(f"memory://patterns/{pattern}")) == expected


def test_patterns_over_folders_keep_paths_apart(many: Path) -> None:
    for name in ("x", "y"):
        (many / name).mkdir()
        (many / name / "0.tar").write_bytes(tar_bytes([("0.png", PNG)]))
    assert list(rows_of(f"{many}/{{x,y}}/*.tar")) == ["x/0.tar", "y/0.tar"]
    source = open_source(f"{many}/{{x,y}}/*.tar", CONFIG)
    assert source.root == str(many)
    assert source_root(f"{many}/{{x,y}}/*.tar", CONFIG).root == str(many)


def test_a_folder_of_tars(many: Path) -> None:
    source = open_source(str(many), CONFIG)
    assert len(list(source.list_rows())) == 13
    text = "\n".join(source.summary.lines())
    assert text.startswith("13 tars (13 .tar), ") and "ignored: 1 .json" in text and "no labels" in text


def test_patterns_that_match_nothing(many: Path) -> None:
    with pytest.raises(SourceError, match=r"3 of 15 are missing, such as 'part-012.tar'"):
        open_source(f"{many}/part-{{000..014}}.tar", CONFIG)
    with pytest.raises(SourceError, match="no such file"):
        open_source(f"{many}/nothing-*.tar", CONFIG)
    with pytest.raises(SourceError, match="no such file"):
        open_source(f"{many}/gone.tar", CONFIG)
    with pytest.raises(SourceError, match=r"found .*\.json; expected only tars"):
        open_source(f"{many}/[os]t*", CONFIG)


def test_braces() -> None:
    assert expand_braces("a{8..11}b") == ["a8b", "a9b", "a10b", "a11b"]
    assert expand_braces("{008..010}") == ["008", "009", "010"]
    assert expand_braces("{2..0}") == ["2", "1", "0"]
    assert expand_braces("{a,b}-{1..2}") == ["a-1", "a-2", "b-1", "b-2"]
    assert expand_braces("plain") == ["plain"]
    assert expand_braces("x{a,b{1,2}}") == ["xa", "xb1", "xb2"]
    assert expand_braces("{000..123}") == [f"{n:03d}" for n in range(124)]
    assert expand_braces("{098..1001}")[:3] == ["0098", "0099", "0100"]  # as bash and webdataset do
    assert expand_braces(r"a\{1,2}") == [r"a\1", r"a\2"]
    with pytest.raises(SourceError, match="a brace is not closed"):
        expand_braces("train-{000..123.tar")


def test_hidden_tars_are_left_out(many: Path) -> None:
    (many / "._part-000.tar").write_bytes(b"resource fork")
    (many / ".cache").mkdir()
    (many / ".cache" / "old.tar").write_bytes(tar_bytes([("x.png", PNG)]))
    assert (
        len(list(rows_of(str(many)))) == 13 and len(list(rows_of(f"{many}/**/*.tar"))) == 13 and len(list(rows_of(f"{many}/*.tar"))) == 13
    )
    assert list(rows_of(f"{many}/.cache/*.tar")) == ["old.tar"]
    assert "1 hidden" in said(many) and "1 AppleDouble" in said(many)


@pytest.mark.parametrize(("tar_bytes_more", "kind"), [(0, "folder"), (1, "tar")])
def test_as_many_images_as_tars_are_decided_by_their_bytes(tar_bytes_more: int, kind: str, tmp_path: Path) -> None:
    tar = tar_bytes(labelled(1))
    (tmp_path / "a.tar").write_bytes(tar)
    (tmp_path / "a.png").write_bytes(PNG.ljust(len(tar) - tar_bytes_more, b"x"))
    assert open_source(str(tmp_path), CONFIG).kind == kind


@pytest.mark.parametrize("larger", ["tar", "table"])
def test_tars_and_tables_in_one_folder_are_decided_by_their_bytes(larger: str, tmp_path: Path) -> None:
    image = PNG + random.Random(0).randbytes(20_000)
    (tmp_path / "a.tar").write_bytes(tar_bytes([("x.png", image if larger == "tar" else PNG)]))
    pq.write_table(pa.table({"image": [image if larger == "table" else PNG]}), tmp_path / "t.parquet")
    source = open_source(str(tmp_path), CONFIG)
    assert source.kind == larger
    (doubt,) = (doubt for doubt in source.summary.doubts if "beside them" in doubt.sentence)
    kind = ".parquet" if larger == "tar" else ".tar"
    assert doubt.sentence == f"the {larger}s are taken, not the 1 {kind} files beside them" and f"FOLDER/*{kind}" in doubt.option
    assert open_source(str(tmp_path), SourceConfig(rules=2)).kind == "tar"


@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_an_image_among_containers_does_not_make_an_image_folder(ending: str, tmp_path: Path) -> None:
    for n in range(2):
        body = {"image": [PNG], "label": [n]}
        if ending == ".tar":
            (tmp_path / f"{n}.tar").write_bytes(tar_bytes(labelled(1)))
        else:
            pq.write_table(pa.table(body), tmp_path / f"{n}.parquet")
    (tmp_path / "preview.png").write_bytes(PNG)
    source = open_source(str(tmp_path), CONFIG)
    assert [row.path for row in source.list_rows()] == [f"0{ending}", f"1{ending}"]
    text = "\n".join(source.summary.lines())
    assert f"the {'tar' if ending == '.tar' else 'table'}s are taken, not the 1 image beside them" in text and "ignored: 1 .png" in text
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(PNG + bytes(20_000))  # now the images hold more bytes than the containers
    source = open_source(str(tmp_path), CONFIG)
    assert [row.path for row in source.list_rows()] != [] and source.kind == "folder"
    beside = "\n".join([*source.summary.lines(), *source.summary.tables_beside])
    assert ("2 tar or Parquet files beside the images are ignored" if ending == ".tar" else "0.parquet\n1.parquet") in beside
    assert open_source(str(tmp_path), SourceConfig(rules=1)).kind == "folder"
