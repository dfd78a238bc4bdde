"""Tars as people have them: what each form gives, and that every member is accounted for."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.sources.test_tar import PNG, images, labelled, reasons, said, tar_bytes
from tests.pipeline.sources.zoo import encoded, flat
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.split_runs import splits_of_source
from tokenshards.pipeline.conversion.understand import understand
from tokenshards.pipeline.errors import DoubtError, Reason, SourceError
from tokenshards.pipeline.records import FailedRecord, ImageRecord, LeftOutRecord, PlanRow, SourceRecord
from tokenshards.pipeline.sources import ImageSource, open_source, read_slice
from tokenshards.pipeline.sources.tars import bytes as archive_bytes
from tokenshards.pipeline.sources.tars import survey as tar_survey
from tokenshards.pipeline.sources.tars.bytes import StoredBytes, UnpackedBytes
from tokenshards.pipeline.sources.tars.headers import Damaged, walk
from tokenshards.pipeline.storage.store import Store

JPG = encoded(flat(size=(8, 8)), "JPEG")
Members = list[tuple[str, bytes]]


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def packed(*members: tuple[str, bytes] | tarfile.TarInfo, mark: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
        end = archive.offset  # type: ignore[attr-defined]
    return out.getvalue() if mark else out.getvalue()[:end]


def planned(path: Path, config: SourceConfig | None = None) -> tuple[ImageSource, list[SourceRecord]]:
    source = open_source(str(path), config or SourceConfig())
    rows = list(source.list_rows())
    return source, [record for row in rows for record in source.read(row)]


def ids(found: list[SourceRecord]) -> list[str]:
    return [record.sample_id.partition("#")[2] for record in images(found)]


def left_out(found: list[SourceRecord]) -> dict[str, int]:
    return {record.kind: record.count for record in found if isinstance(record, LeftOutRecord)}


# Keys


@pytest.mark.parametrize(
    ("names", "rule", "keys"),
    [
        ("cat.0.jpg cat.1.jpg cat.2.jpg dog.0.jpg dog.1.jpg", "last-dot", ["cat.0", "cat.1", "cat.2", "dog.0", "dog.1"]),
        ("a.x.jpg a.x.cls b.y.jpg b.y.cls", "last-dot", ["a.x", "b.y"]),
        ("1.jpg 1.label.txt", "first-dot", ["1"]),
        ("1.jpg 2.jpg", "first-dot", ["1", "2"]),
        ("v1.0/1.jpg v1.0/2.jpg", "first-dot", ["v1.0/1", "v1.0/2"]),
    ],
)
def test_the_key_rule_that_loses_nothing_is_taken(names: str, rule: str, keys: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(name, b"0" if name.endswith(("cls", "txt")) else JPG) for name in names.split()]))
    source, found = planned(tmp_path)
    assert source.config.tar_key == rule and ids(found) == keys and not source.summary.doubts
    assert source.config.planned()["tar_key"] == rule


def test_webdatasets_convention_wins_where_its_suffixes_recur(tmp_path: Path) -> None:
    names = [f"{n}.{side}.jpg" for n in range(8) for side in ("left", "right")]
    (tmp_path / "a.tar").write_bytes(tar_bytes([(name, JPG) for name in names]))
    source, found = planned(tmp_path)
    (doubt,) = source.summary.doubts
    assert source.config.tar_key == "first-dot" and doubt.grave
    assert "8 samples" in doubt.sentence and "8 of their images" in doubt.sentence
    assert "--image-member left.jpg" in doubt.option and "all" in doubt.option and "--key last-dot" in doubt.option
    assert len(images(found)) == 8 and left_out(found) == {"further images of a sample": 8}, "what --yes would give"
    assert ids(planned(tmp_path, SourceConfig(tar_key="last-dot"))[1]) == [name.removesuffix(".jpg") for name in names]


# Several images a sample


def test_several_images_of_a_sample(tmp_path: Path) -> None:
    members = [m for n in range(3) for m in ((f"{n}.left.jpg", JPG), (f"{n}.right.png", PNG), (f"{n}.cls", str(n).encode()))]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    source, found = planned(tmp_path, SourceConfig(image_member="right.png"))
    assert [(record.data, record.label) for record in images(found)] == [(PNG, n) for n in range(3)] and not source.summary.doubts
    assert left_out(found) == {"further images of a sample": 3}
    source, found = planned(tmp_path, SourceConfig(image_member="all"))
    assert ids(found) == [f"{n}#{side}" for n in range(3) for side in ("left.jpg", "right.png")] and left_out(found) == {}
    assert [record.label for record in images(found)] == [0, 0, 1, 1, 2, 2] and source.summary.images == 6
    assert [record.data for record in images(planned(tmp_path, SourceConfig(image_member="depth.png,left.jpg"))[1])] == [JPG] * 3
    with pytest.raises(
        SourceError, match=r"no sample has the member that --image-member depth.png names; they have cls, left.jpg, right.png"
    ):
        planned(tmp_path, SourceConfig(image_member="depth.png"))


def test_samples_that_lack_the_named_image_are_a_grave_doubt(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([("1.jpg", JPG), ("2.png", PNG)]))
    source, found = planned(tmp_path, SourceConfig(image_member="jpg"))
    assert [doubt.grave for doubt in source.summary.doubts] == [True] and reasons(found) == {"a.tar#2": Reason.NO_IMAGE}
    source, found = planned(tmp_path, SourceConfig(image_member="jpg,png"))
    assert not source.summary.doubts and ids(found) == ["1", "2"]


def test_images_without_a_known_extension_are_found_by_their_bytes(tmp_path: Path) -> None:
    members = [
        ("1.image", JPG),
        ("1.cls", b"0"),
        ("2.img", PNG),
        ("2.cls", b"1"),
        ("f/3", JPG),
        ("readme", b"text"),
        ("4.jpg", JPG),
        ("4.thumb", PNG),
    ]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    source, found = planned(tmp_path)
    assert {record.sample_id.partition("#")[2]: record.data for record in images(found)} == {"1": JPG, "2": PNG, "f/3": JPG, "4": JPG}
    assert left_out(found) == {"without extension": 1} and not source.summary.doubts
    assert ids(planned(tmp_path, SourceConfig(image_member="jpg,image,img"))[1]) == ["1", "2", "4"]


def test_a_later_tar_that_would_lose_images_is_not_committed(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([("1.jpg", JPG)]))
    source, _ = planned(tmp_path)
    (tmp_path / "b.tar").write_bytes(data := tar_bytes([("1.jpg", JPG), ("2.a.jpg", JPG), ("2.b.jpg", JPG)]))
    row = PlanRow(kind="tar", sample_id="b.tar", path="b.tar", size=len(data), version="", inputs=-1)
    with pytest.raises(SourceError, match=r"'2' holds several images, \.a\.jpg, \.b\.jpg.*--image-member NAME.*all.*--key last-dot"):
        list(read_slice(source.store, row, source.config, None, {}))


# Labels


@pytest.mark.parametrize("later", [b"A", b"1.5"])
def test_a_later_label_of_another_type_is_not_quarantined(later: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(data := tar_bytes([*labelled(3), ("z.png", PNG), ("z.cls", later)]))
    row = PlanRow(kind="tar", sample_id="b.tar", path="b.tar", size=len(data), version="", inputs=-1)
    store, config = Store(str(tmp_path)), SourceConfig(tar_key="first-dot")
    for label_type in ("int64", None):
        with pytest.raises(SourceError, match="--as-text"):
            list(read_slice(store, row, config, label_type, {}))  # type: ignore[arg-type]
    assert images(list(read_slice(store, row, config, "string", {})))[-1].label == later.decode()
    source, found = planned(tmp_path, SourceConfig(as_text=True))
    assert source.summary.label_type == "string"


def test_a_class_in_txt_is_known_by_its_recurrence(tmp_path: Path) -> None:
    texts = [("cat", "dog", "owl")[n % 3] for n in range(24)]
    (tmp_path / "a.tar").write_bytes(
        tar_bytes([m for n, text in enumerate(texts) for m in ((f"{n:02}.jpg", JPG), (f"{n:02}.txt", text.encode()))])
    )
    source, found = planned(tmp_path)
    assert source.config.label == "txt" and source.summary.classes == {"cat": 8, "dog": 8, "owl": 8}
    assert [record.label for record in images(found)] == texts
    assert "the .txt members are taken as labels" in said(tmp_path)
    source, found = planned(tmp_path, SourceConfig(no_labels=True))
    assert [record.meta["caption"] for record in images(found)] == texts and source.summary.unlabelled == 24


@pytest.mark.parametrize("suffix", ["target", "label", "label.txt", "class"])
def test_members_like_labels(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([m for n in range(4) for m in ((f"{n}.jpg", JPG), (f"{n}.{suffix}", str(n % 2).encode()))]))
    assert [record.label for record in images(planned(tmp_path)[1])] == [0, 1, 0, 1]
    assert f"the .{suffix} members are taken as labels" in said(tmp_path)
    assert [record.label for record in images(planned(tmp_path, SourceConfig(label_from="none"))[1])] == [None] * 4


def test_free_text_in_a_member_like_a_label_is_only_noted(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([m for n in range(9) for m in ((f"{n}.jpg", JPG), (f"{n}.target", f"thing {n}".encode()))]))
    assert planned(tmp_path)[0].summary.label_type is None and "members that are not used: .target (9)" in said(tmp_path)


def test_archives_that_are_not_read_are_a_doubt(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(packed(("1.jpg", JPG), ("more.zip", b"PK")))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("2.jpg", JPG)
        archive.writestr("in.tar.gz", gzip.compress(packed(("3.jpg", JPG))))
    source, found = planned(tmp_path)
    (doubt,) = source.summary.doubts
    assert doubt.sentence == "2 archives are not read, such as a.tar#more.zip, and may hold images" and not doubt.grave
    assert len(images(found)) == 2 and list(left_out(found)) == ["an archive inside that is not read (a zip, or one in a zip)"]


def test_splits_inside_a_tar(tmp_path: Path) -> None:
    names = [f"{split}/{name}/{n}.jpg" for split in ("train", "val2017") for name in ("cat", "dog") for n in range(3)]
    (tmp_path / "a.tar").write_bytes(tar_bytes([(name, JPG) for name in names]))
    source, _ = planned(tmp_path)
    with pytest.raises(DoubtError, match=r"inputs are of 2 splits, train \(6\), val \(6\), and would be mixed.*--split train takes one"):
        understand(source, SourceConfig(), lambda line: None)
    for rule in (None, "first"):
        source, found = planned(tmp_path, SourceConfig(split="val", label_from=rule))
        assert [record.label for record in images(found)] == ["cat"] * 3 + ["dog"] * 3, "folders are counted below the split"
        assert left_out(found) == {"of another split": 6} and source.summary.left_out["of another split"].count == 6
    assert len(images(planned(tmp_path, SourceConfig(split="all"))[1])) == 12
    with pytest.raises(SourceError, match=r"no image is of the split 'test'.*seen: train, val"):
        planned(tmp_path, SourceConfig(split="test"))
    assert tuple(splits_of_source(str(tmp_path), SourceConfig())) == ("train", "val")
    (tmp_path / "b.tar").write_bytes(tar_bytes([("1.jpg", JPG)]))
    with pytest.raises(DoubtError, match="1 image is of no split"):
        splits_of_source(str(tmp_path), SourceConfig())


def test_class_folders_inside_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(f"train/{name}/{n}.jpg", JPG) for name in ("cat", "dog") for n in range(3)]))
    source, found = planned(tmp_path)
    assert source.config.label_from == "parent" and source.summary.classes == {"cat": 3, "dog": 3}
    assert [record.label for record in images(found)] == ["cat"] * 3 + ["dog"] * 3
    for rule, label in (("first", "train"), ("depth:2", "cat"), ("regex:/(c|d)", "c"), ("none", None), ("tar", "a")):
        assert images(planned(tmp_path, SourceConfig(label_from=rule))[1])[0].label == label


@pytest.mark.parametrize("folders", [("images", "masks"), ("train", "val"), ("0001", "0002")])
def test_folders_that_are_no_classes(folders: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(f"{name}/{n}.jpg", JPG) for name in folders for n in range(3)]))
    assert planned(tmp_path)[0].config.label_from is None and "--label-from parent" in said(tmp_path)


def test_a_tar_for_each_class(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes([(f"{name}_{n}.JPEG", JPG) for n in range(2)]))
    source, found = planned(tmp_path)
    assert source.config.label_from == "tar" and [record.label for record in images(found)] == ["n01440764"] * 2 + ["n01443537"] * 2


def test_shards_are_no_classes(tmp_path: Path) -> None:
    for name in ("00000", "00001"):
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes([(f"{name}{n:04}.jpg", JPG) for n in range(2)]))
    (tmp_path / "00000_stats.json").write_text("{}")
    source, found = planned(tmp_path)
    assert source.config.label_from is None and len(images(found)) == 4 and source.summary.left_out[".json"].count == 1


def test_a_list_of_labels(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar_bytes([("1.jpg", JPG), ("1.json", b'{"label": [3, 1]}'), ("2.jpg", JPG), ("2.json", b'{"label": [4]}')])
    )
    with pytest.raises(SourceError, match=r"is a list such as \[3, 1\].*--label-first.*--meta"):
        planned(tmp_path)
    assert [record.label for record in images(planned(tmp_path, SourceConfig(label_first=True))[1])] == [3, 4]
    found = images(planned(tmp_path, SourceConfig(meta=("label",)))[1])
    assert [(record.label, record.meta) for record in found] == [(None, {"label": "[3, 1]"}), (None, {"label": "[4]"})]


def test_values_of_json_as_labels(tmp_path: Path) -> None:
    values = [1.0, 2, "3", None]
    members = [m for n, value in enumerate(values) for m in ((f"{n}.jpg", JPG), (f"{n}.json", json.dumps({"label": value}).encode()))]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    assert [record.label for record in images(planned(tmp_path)[1])] == [1, 2, 3, None]


def test_parallel_tars(tmp_path: Path) -> None:
    for n in range(2):
        for folder in ("rgb", "cls"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "rgb" / f"{n}.tar").write_bytes(tar_bytes([(f"{k}.jpg", JPG) for k in range(3)]))
        (tmp_path / "cls" / f"{n}.tar").write_bytes(tar_bytes([(f"{k}.cls", str(10 * n + k).encode()) for k in range(3)]))
    source, found = planned(tmp_path)
    assert source.config.label_from == "file:cls" and [record.label for record in images(found)] == [0, 1, 2, 10, 11, 12]
    assert source.summary.left_out["tars without images"].count == 2 and not reasons(found)
    again, _ = planned(tmp_path, SourceConfig(label_from="file:cls"))
    assert again.summary.classes == source.summary.classes and again.summary.label_type == "int64"
    with pytest.raises(SourceError, match="labels/0.tar: no such tar; --label-from file:labels takes the labels of .*rgb/0.tar from it"):
        planned(tmp_path, SourceConfig(label_from="file:labels"))
    with pytest.raises(SourceError, match="no image in 2 tars, whose members are .cls"):
        planned(tmp_path / "cls")


# Order, links, containers


def test_members_that_lie_apart_are_refused_with_the_way_to_sort(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(data := tar_bytes([("1.jpg", JPG), ("2.jpg", JPG), ("1.cls", b"0"), ("2.cls", b"1")]))
    with pytest.raises(SourceError, match=r"lie apart \(a.tar, key 1\); expected them as neighbours.*tar --sort=name"):
        planned(tmp_path)
    row = PlanRow(kind="tar", sample_id="a.tar", path="a.tar", size=len(data), version="", inputs=-1)
    with pytest.raises(SourceError, match="lie apart"):
        list(read_slice(Store(str(tmp_path)), row, SourceConfig(tar_key="first-dot"), None, {}))


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_links_stand_for_files_of_the_same_tar(ending: str, tmp_path: Path) -> None:
    data = packed(
        ("a/1.jpg", JPG),
        ("a/9.png", PNG),
        link("b/2.jpg", "a/1.jpg", tarfile.LNKTYPE),
        link("b/3.png", "../a/9.png"),
        link("b/4.jpg", "2.jpg"),
        link("b/5.png", "../z/last.png"),
        link("b/6.jpg", "../../etc/passwd"),
        link("b/7.jpg", "/etc/passwd", tarfile.LNKTYPE),
        link("b/8.jpg", "8.jpg"),
        link("folder", "a"),
        ("z/last.png", PNG),
    )
    (tmp_path / f"x.{ending}").write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    _, found = planned(tmp_path, SourceConfig(label_from="none"))
    assert {record.sample_id.partition("#")[2]: record.data for record in images(found)} == {
        "a/1": JPG, "a/9": PNG, "b/2": JPG, "b/3": PNG, "b/4": JPG, "b/5": PNG, "z/last": PNG,
    }  # fmt: skip
    assert {name.partition("#")[2]: reason for name, reason in reasons(found).items()} == dict.fromkeys(
        ("b/6", "b/7", "b/8"), Reason.MISSING
    )
    assert left_out(found) == {"links to folders or out of the tar": 1}


def test_a_tar_of_tars_is_read_one_level_deep(tmp_path: Path) -> None:
    inner = {name: tar_bytes([(f"{name}_{n}.JPEG", JPG) for n in range(2)]) for name in ("n01", "n02")}
    deep = tar_bytes([("x.tar", inner["n01"]), ("ok.jpg", JPG)])
    cut = inner["n01"][: 512 * 4 + 100]
    (tmp_path / "big.tar").write_bytes(
        tar_bytes(
            [("n01.tar", inner["n01"]), ("n02.tar.gz", gzip.compress(inner["n02"])), ("deep.tar", deep), ("cut.tar", cut), ("z.jpg", JPG)]
        )
    )
    source, found = planned(tmp_path, SourceConfig(label_from="tar"))
    assert [(record.sample_id, record.label) for record in images(found)] == [
        ("big.tar#n01.tar/n01_0", "n01"), ("big.tar#n01.tar/n01_1", "n01"), ("big.tar#n02.tar.gz/n02_0", "n02"),
        ("big.tar#n02.tar.gz/n02_1", "n02"), ("big.tar#deep.tar/ok", "deep"), ("big.tar#z", "big"),
    ]  # fmt: skip
    assert left_out(found) == {"an archive inside an archive inside the tar": 1}
    (failed,) = [record for record in found if isinstance(record, FailedRecord)]
    assert failed.sample_id.startswith("big.tar#cut.tar@") and "ends at byte" in failed.error.detail


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.xz"])
def test_compression_is_known_by_its_bytes(pack: object, name: str, tmp_path: Path) -> None:
    data = tar_bytes(labelled(40))
    (tmp_path / name).write_bytes(whole := pack(data[:20480]) + pack(data[20480:]))  # type: ignore[operator]
    source, found = planned(tmp_path)
    assert len(images(found)) == 40 and not reasons(found) and source.summary.images == 40
    (tmp_path / name).write_bytes(whole[:-30])
    _, found = planned(tmp_path)
    assert list(reasons(found).values()) == [Reason.BAD_CONTAINER] and len(images(found)) < 40


def test_a_zip_with_the_separator_of_windows(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("cat/1.jpg", "dog/2.jpg"):
            info = zipfile.ZipInfo(name)
            info.filename = name.replace("/", "\\")  # the constructor of ZipInfo would replace none of them on this system
            archive.writestr(info, JPG)
    _, found = planned(tmp_path / "a.zip")
    assert [(record.sample_id, record.label) for record in images(found)] == [("a.zip#cat/1", "cat"), ("a.zip#dog/2", "dog")]


def test_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [
            ("dog/2.jpg", JPG),
            ("cat/1.jpg", JPG),
            ("cat/", b""),
            ("__MACOSX/cat/._1.jpg", b"x"),
            ("dog/3.jpg", JPG),
            ("cat/0.png", PNG),
        ]:
            archive.writestr(name, data)
    source, found = planned(tmp_path / "a.zip")
    assert [(record.sample_id, record.label) for record in images(found)] == [
        ("a.zip#cat/0", "cat"), ("a.zip#cat/1", "cat"), ("a.zip#dog/2", "dog"), ("a.zip#dog/3", "dog")
    ]  # fmt: skip
    assert left_out(found) == {"of the system (such as Thumbs.db, @eaDir, __MACOSX)": 1}
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"dog/2.jpg") + 30] ^= 255
    (tmp_path / "a.zip").write_bytes(data)
    _, found = planned(tmp_path)
    assert reasons(found) == {"a.zip#dog/2": Reason.BAD_CONTAINER} and len(images(found)) == 3
    (tmp_path / "a.zip").write_bytes(data[:-40])
    with pytest.raises(SourceError, match="nothing can be read; a.zip: the index at the end of the zip cannot be read"):
        planned(tmp_path)
    (tmp_path / "b.tar").write_bytes(tar_bytes(labelled(1)))
    assert reasons(planned(tmp_path)[1]) == {"a.zip": Reason.BAD_CONTAINER}


def test_concatenated_tars_and_tars_without_an_end_mark(tmp_path: Path) -> None:
    one, two = ([(f"{n}.jpg", JPG), (f"{n}.cls", n.encode())] for n in ("1", "2"))
    (tmp_path / "a.tar").write_bytes(packed(*one) + packed(*two, mark=False))
    _, found = planned(tmp_path)
    assert [(record.sample_id, record.label) for record in images(found)] == [("a.tar#1", 1), ("a.tar#2", 2)] and len(found) == 2
    (tmp_path / "a.tar").write_bytes(packed(*one) + b"garbage" * 100)
    _, found = planned(tmp_path)
    assert ids(found) == ["1"] and list(reasons(found).values()) == [Reason.BAD_CONTAINER]


@pytest.mark.parametrize("kept", [1024 - 100, 1024])
def test_a_tar_that_was_cut_before_the_member_of_a_pax_header(tmp_path: Path, kept: int) -> None:
    """It counted as whole: behind the header with the values of the next member, its padding or that member was missing."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("1.jpg", "2.jpg", "3.jpg"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(JPG), 0.5  # such a time needs a pax header  # type: ignore[assignment]
            archive.addfile(info, io.BytesIO(JPG))
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as archive:
        third = archive.getmembers()[2].offset
    (tmp_path / "x.tar").write_bytes(buffer.getvalue()[: third + kept])
    one, cut = planned(tmp_path / "x.tar")[1]  # the second sample may lack a part, so the failure begins there
    assert isinstance(one, ImageRecord) and isinstance(cut, FailedRecord) and "the tar was cut" in cut.error.detail


def test_damage_counts_by_its_bytes(tmp_path: Path) -> None:
    noise = random.Random(1)
    data = bytearray(tar_bytes([(f"{n:04}.png", PNG + noise.randbytes(20_000)) for n in range(100)]))
    data[data.index(b"0025.png")] ^= 1
    for name, body in (("a.tar", bytes(data)), ("a.tar.gz", gzip.compress(bytes(data)))):
        (tmp_path / name).write_bytes(body)
        (failed,) = [record for record in planned(tmp_path / name)[1] if isinstance(record, FailedRecord)]
        assert 60 <= failed.stands_for <= 90 and f"about {failed.stands_for} samples are lost" in failed.error.detail
    (tmp_path / "a.tar").write_bytes(bytes(data)[: data.index(b"0010.png") + 520])
    (failed,) = [record for record in planned(tmp_path / "a.tar")[1] if isinstance(record, FailedRecord)]
    assert "ends at byte" in failed.error.detail and "inside 0010.png" in failed.error.detail and failed.stands_for == 1


def test_decompression_bombs_end_at_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_bytes, "FREE_BYTES", 1 << 20)
    (tmp_path / "b.tar").write_bytes(tar_bytes([]))
    (tmp_path / "c.tar").write_bytes(tar_bytes([("3.jpg", JPG)]))
    for pack in (gzip.compress, bz2.compress, lzma.compress, zstandard.compress):
        (tmp_path / "a.tar").write_bytes(pack(packed(("1.jpg", JPG), ("big.npy", bytes(64 << 20)), ("2.jpg", JPG))))
        _, found = planned(tmp_path)
        assert {"3"} <= set(ids(found)) <= {"1", "3"} and list(reasons(found).values()) == [Reason.DECOMPRESSION_BOMB]


def test_what_no_sample_needs_is_left_out_and_counted(tmp_path: Path) -> None:
    fifo = tarfile.TarInfo("pipe.jpg")
    fifo.type = tarfile.FIFOTYPE
    (tmp_path / "a.tar").write_bytes(
        packed(("./1.JPG", JPG), ("./1.cls", b"0"), (".DS_Store", b"x"), ("README.md", b"x"), ("list.csv", b"x"), fifo, ("Thumbs.db", b"x"))
    )
    (tmp_path / "empty.tar").write_bytes(tar_bytes([]))
    source, found = planned(tmp_path)
    assert ids(found) == ["1"] and not reasons(found)
    assert sum(left_out(found).values()) == 5 and left_out(found).keys() <= source.summary.left_out.keys()
    assert left_out(found)[".md without an image"] == 1 and "ignored: " in said(tmp_path)


def test_a_remote_store_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_survey, "SAMPLED_MEMBERS", 10)
    store = Store("memory://sampled")
    for n in range(40):
        store.write(f"{n:02}.tar", tar_bytes(labelled(30)))
    source = open_source("memory://sampled", SourceConfig())
    rows = list(source.list_rows())
    assert len(rows) == 40 and source.summary.images == -1 and source.summary.label_type == "int64"
    assert sum(source.summary.classes.values()) == 14 * 5, "every third tar, and of each the first ten members"
    assert len(images(list(source.read(rows[-1])))) == 30


def test_headers_are_read_in_bounded_memory_and_without_the_data(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([(f"{n}.jpg", bytes(200_000)) for n in range(50)]))
    read = 0

    class Counting(StoredBytes):
        def _fetch(self, start: int, stop: int) -> bytes:
            nonlocal read
            read += stop - start
            return super()._fetch(start, stop)

    with Counting(Store(str(tmp_path)), "a.tar", (tmp_path / "a.tar").stat().st_size, least=2048, most=1 << 20) as raw:
        assert sum(1 for _ in walk(raw)) == 50
    assert read < 50 * 8192


# Properties

bodies = st.sampled_from(["jpg", "png", "cls", "json", "txt", "seg.png", "npy"])
keys = st.sampled_from(["a", "b", "x/c", "x/.h", "__MACOSX/d", "e.0", "e.1"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(keys, bodies), max_size=14, unique=True), st.sampled_from([None, "first", "all"]), st.booleans())
def test_every_image_is_a_row_a_failure_or_left_out(names: list[tuple[str, str]], member: str | None, zipped: bool) -> None:
    content = {"jpg": JPG, "png": PNG, "seg.png": PNG, "cls": b"1", "json": b"{}", "txt": b"text", "npy": b"x"}
    members = [(f"{key}.{suffix}", content[suffix]) for key, suffix in sorted(names)]
    data = tar_bytes(members)
    if zipped:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, body in members:
                archive.writestr(name, body)
        data = out.getvalue()
    store = Store("memory://accounts")
    store.write("a.tar", data)
    source = open_source("memory://accounts/a.tar", SourceConfig(image_member=member))
    junk = [name for name, _ in members if "/.h" in name or "__MACOSX" in name]
    there = sum(body in (JPG, PNG) for name, body in members if name not in junk)
    try:
        rows = list(source.list_rows())
    except SourceError as error:
        assert "no image in 1 tar" in str(error) and not there
        return
    found = [record for row in rows for record in source.read(row)]
    counts = left_out(found)
    assert sum(count for kind, count in counts.items() if "hidden" in kind or "system" in kind) == len(junk)
    assert len(images(found)) + counts.get("further images of a sample", 0) == there
    assert {record.error.reason for record in found if isinstance(record, FailedRecord)} <= {Reason.NO_IMAGE}
    ids_found = [record.sample_id for record in found if isinstance(record, (ImageRecord, FailedRecord))]
    assert len(set(ids_found)) == len(ids_found)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 4000), st.sampled_from(["", "gz", "zip"]))
def test_no_bytes_raise_another_error_than_damage(noise: bytes, at: int, pack: str) -> None:
    data = bytearray(tar_bytes(labelled(3)))
    data[at : at + len(noise)] = noise
    packed_data = gzip.compress(bytes(data)) if pack == "gz" else b"PK\3\4" + bytes(data) if pack == "zip" else bytes(data)
    store = Store("memory://noise")
    store.write("a.tar", packed_data)
    row = PlanRow(kind="tar", sample_id="a.tar", path="a.tar", size=len(packed_data), version="", inputs=-1)
    try:
        found = list(read_slice(store, row, SourceConfig(tar_key="first-dot", image_member="all"), "string", {}))
    except SourceError:
        return
    assert Counter(type(record) for record in found)[ImageRecord] <= 3 + len(noise)


def test_a_compressed_archive_is_read_forward_only(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(data := gzip.compress(bytes(3 << 20)))
    with StoredBytes(Store(str(tmp_path)), "a.gz", len(data), least=4096, most=4096) as raw:
        unpacked = UnpackedBytes(raw, 0, raw.end, "gz")
        assert len(unpacked.read(2 << 20, 100)) == 100
        with pytest.raises(ValueError, match="forward only"):
            unpacked.read(0, 100)
        assert len(unpacked.read((3 << 20) - 10, 100)) == 10 and unpacked.end == 3 << 20
    with pytest.raises(Damaged, match="ends at byte 3, within the header"):
        (tmp_path / "b").write_bytes(b"abc")
        list(walk(StoredBytes(Store(str(tmp_path)), "b", 3, least=512, most=512)))


def test_a_tar_without_images_decides_no_rule_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "img_val.tar").write_bytes(packed(*((f"val_{n:08}.jpg", JPG) for n in range(3))))
    (tmp_path / "devkit.tar").write_bytes(packed(("d/readme.txt", b"read me"), ("d/demo.val.pred.txt", b"1 2 3"), ("d/meta.mat", b"x" * 9)))
    text = said(tmp_path)
    assert "3 images" in text and "ends at the first dot" in text and "1 tar holds no image and is left out, such as devkit.tar" in text
    assert not any(word in text for word in ("caption", "last-dot", "not used")) and "metadata: none" in text
    (tmp_path / "00000_stats.json").write_text('{"count": 3}')
    assert "may be a table" not in said(tmp_path)
