"""FolderSource and open_source on folders: what is an input, what is its label, what is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.sources.zoo import IGNORED, encoded, flat, make_zoo
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, SourceError
from tokenshards.pipeline.records import FailedRecord, ImageRecord, PlanRow
from tokenshards.pipeline.sources import ImageSource, SourceSummary, location, open_source, read_slice, source_root
from tokenshards.pipeline.storage.store import ObjectInfo, Store

PNG = encoded(flat(), "PNG")


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)


def listed(source: ImageSource) -> dict[str, PlanRow]:
    rows = list(source.list_rows())
    assert len({row.sample_id for row in rows}) == len(rows)
    return {row.sample_id: row for row in rows}


def test_sub_folders_give_labels_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "cat/images/2.JPG", "dog/3.webp", "loose.png")
    source = open_source(str(tmp_path), SourceConfig())
    rows = listed(source)
    assert {name: row.label for name, row in rows.items()} == {
        "cat/1.png": "cat",
        "cat/images/2.JPG": "cat",
        "dog/3.webp": "dog",
        "loose.png": None,
    }
    assert all(row.kind == "file" and row.inputs == 1 and row.size == len(PNG) and row.version for row in rows.values())
    assert (source.kind, source.ordered) == ("folder", False)
    assert source.summary.label_type == "string" and source.summary.labels == {"cat", "dog"}


def test_flat_folder_has_no_labels_and_says_how_to_get_them(tmp_path: Path) -> None:
    put(tmp_path, "a.jpeg", "b.JPEG", "c.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "Thumbs.db").write_text("x")
    (tmp_path / "README").write_text("x")
    source = open_source(str(tmp_path), SourceConfig())
    assert {row.label for row in listed(source).values()} == {None}
    assert source.summary.label_type is None
    text = "\n".join(source.summary.lines())
    assert text.startswith("3 images (2 .jpeg, 1 .png), ")
    assert "no labels (flat folder" in text and "sub-folder" in text
    for part in ("1 .txt such as notes.txt", "1 of the system (such as Thumbs.db", "1 without extension"):
        assert part in text.split("ignored: ")[1]
    assert "for example " in text


def test_all_files(tmp_path: Path) -> None:
    put(tmp_path, "a/1", "a/2.txt")
    put(tmp_path, "Thumbs.db", "a/desktop.ini")
    source = open_source(str(tmp_path), SourceConfig(all_files=True))
    assert set(listed(source)) == {"a/1", "a/2.txt"}
    assert [found.count for found in source.summary.left_out.values()] == [2], "files of the system are counted, as in tars"


def test_listing_twice_counts_once(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    source = open_source(str(tmp_path), SourceConfig())
    listed(source)
    listed(source)
    assert source.summary.files == 1 and source.summary.bytes == len(PNG)


def test_zoo_is_planned_as_its_cases_say(tmp_path: Path) -> None:
    cases = make_zoo(tmp_path / "zoo")
    rows = listed(open_source(str(tmp_path / "zoo"), SourceConfig()))
    assert set(rows) == {case.sample_id for case in cases if case.expected != IGNORED}
    for row in rows.values():
        row.sample_id.encode()  # valid UTF-8, whatever the file is called
    store = source_root(str(tmp_path / "zoo"), SourceConfig())
    for case in cases:
        if case.expected == IGNORED:
            continue
        (record,) = read_slice(store, rows[case.sample_id], SourceConfig(), None, {})
        if case.expected in (Reason.MISSING, Reason.NOT_A_FILE):
            assert isinstance(record, FailedRecord) and record.error.reason == case.expected
        else:
            assert isinstance(record, ImageRecord) and record.data == (tmp_path / "zoo" / case.name).read_bytes()
        record.uri.encode()


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    rows = listed(open_source(str(tmp_path), SourceConfig()))
    assert "cat/1.png" in rows and len(rows) <= 2


def test_a_folder_with_the_name_of_an_image_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "x.jpg/1.png")
    assert {row.label for row in listed(open_source(str(tmp_path), SourceConfig())).values()} == {"x.jpg"}


def test_nothing_matched_says_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    (tmp_path / "b.bin").touch()
    with pytest.raises(SourceError, match=r"looked for images .*tars .*tables.* found 2 \.bin; use --all-files"):
        open_source(str(tmp_path), SourceConfig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="an empty folder"):
        open_source(str(tmp_path / "empty"), SourceConfig())
    with pytest.raises(SourceError, match="nothing there"):
        open_source(str(tmp_path / "missing"), SourceConfig())
    put(tmp_path, "single.png")
    with pytest.raises(SourceError, match="a single file; give its folder"):
        open_source(str(tmp_path / "single.png"), SourceConfig())


def test_images_win_over_tars_beside_them(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "b.tar").touch()
    (tmp_path / "metadata.csv").touch()
    source = open_source(str(tmp_path), SourceConfig())
    assert set(listed(source)) == {"a.png"}
    text = "\n".join(source.summary.lines())
    assert "1 .tar" in text and "give a pattern such as FOLDER/*.tar" in text


def test_commands_are_refused() -> None:
    with pytest.raises(SourceError, match="never run"):
        open_source("pipe:touch x.tar", SourceConfig())


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_remote_and_local_urls_give_the_same_rows(kind: str, tmp_path: Path) -> None:
    url = "memory://folder-test/images" if kind == "memory" else f"file://{tmp_path}"
    store = Store(url)
    for name in ("cat/1.png", "dog/2.png", "note.txt"):
        store.write(name, PNG)
    source = open_source(url + "/", SourceConfig())
    rows = listed(source)
    assert {name: row.label for name, row in rows.items()} == {"cat/1.png": "cat", "dog/2.png": "dog"}
    for row in rows.values():
        (record,) = read_slice(source_root(url, SourceConfig()), row, SourceConfig(), "string", {})
        assert isinstance(record, ImageRecord) and record.data == PNG and record.label == row.label


def test_relative_path_gives_an_absolute_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "images/a.png")
    monkeypatch.chdir(tmp_path)
    source = open_source("images", SourceConfig())
    assert os.path.samefile(source.root, tmp_path / "images") and os.path.isabs(source.root)


def test_summary_counts_labels_up_to_a_bound() -> None:
    summary = SourceSummary()
    for number in range(100_005):
        summary.take_label(number)
    summary.take("a.png", 10)
    assert "100000+ labels" in summary.lines()[0]


def test_a_changed_file_fails_with_its_label(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png")
    source = open_source(str(tmp_path), SourceConfig())
    (row,) = source.list_rows()
    (tmp_path / "cat/1.png").write_bytes(b"other")
    (record,) = source.read(row)
    assert isinstance(record, FailedRecord) and isinstance(record.error, BadInput)
    assert (record.error.reason, record.label) == (Reason.CHANGED_SINCE_PLAN, "cat")


HIDDEN = ("cat/._1.jpg", ".thumbnails/cat.png", "cat/.cache/2.png", "._loose.png")


def test_hidden_files_are_left_out_and_counted(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", *HIDDEN)
    for config in (SourceConfig(), SourceConfig(all_files=True)):
        source = open_source(str(tmp_path), config)
        assert set(listed(source)) == {"cat/1.jpg"}
        ignored = "\n".join(source.summary.lines()).split("ignored: ")[1]
        assert "2 hidden" in ignored and "2 AppleDouble" in ignored
    planned_before = open_source(str(tmp_path), SourceConfig(rules=1))
    assert set(listed(planned_before)) == {"cat/1.jpg", *HIDDEN}


def test_a_hidden_root_is_no_hidden_file(tmp_path: Path) -> None:
    put(tmp_path, ".data/cat/1.jpg")
    assert set(listed(open_source(str(tmp_path / ".data"), SourceConfig()))) == {"cat/1.jpg"}


def test_no_labels_where_none_are_wanted(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/2.png")
    source = open_source(str(tmp_path), SourceConfig(no_labels=True))
    assert {row.label for row in listed(source).values()} == {None} and source.summary.label_type is None
    assert "no labels, as --no-labels asks" in source.summary.lines()


@pytest.mark.parametrize("option", [{"label": "species"}, {"meta": ("note",)}, {"id_column": "key"}, {"image_column": "image"}])
def test_options_that_a_folder_cannot_follow_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png")
    (name,) = option
    with pytest.raises(SourceError, match=f"is a folder of images, and --{name.replace('_', '-')} was given as .* Leave --"):
        open_source(str(tmp_path), SourceConfig(**option))


def test_a_folder_of_many_images_is_known_without_a_whole_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "PROBED_IMAGES", 3)
    put(tmp_path, *(f"{n}.png" for n in range(9)))
    taken = 0

    def counted(self: Store, prefix: str = "", **options: Any) -> Iterator[ObjectInfo]:
        nonlocal taken
        for info in original(self, prefix, **options):
            taken += 1
            yield info

    original = Store.list
    monkeypatch.setattr(Store, "list", counted)
    assert open_source(str(tmp_path), SourceConfig()).kind == "folder" and taken == 3
