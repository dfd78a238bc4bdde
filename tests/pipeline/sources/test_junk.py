"""What systems leave beside data."""

from __future__ import annotations

import pytest

from tokenshards.pipeline.sources.junk import APPLE_DOUBLE, HIDDEN, SYSTEM, junk_kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("cat/1.jpg", None),
        ("./cat/1.jpg", None),
        ("a.b/c..jpg", None),
        ("../../cat/1.jpg", None),
        ("cat/./../dog/1.jpg", None),
        ("../.cat/1.jpg", HIDDEN),
        ("cat/._1.jpg", APPLE_DOUBLE),
        ("._a.tar", APPLE_DOUBLE),
        (".Trash/2.jpg", HIDDEN),
        ("cat/.cache/2.jpg", HIDDEN),
        ("cat/.DS_Store", HIDDEN),
        ("__MACOSX/cat/._1.jpg", SYSTEM),
        ("d/@eaDir/1.jpg", SYSTEM),
        ("d/Thumbs.db", SYSTEM),
        ("DESKTOP.INI", SYSTEM),
        ("_delta_log/00000000000000000010.checkpoint.parquet", SYSTEM),
        ("$RECYCLE.BIN/x.png", SYSTEM),
    ],
)
def test_kinds_of_junk(path: str, kind: str | None) -> None:
    assert junk_kind(path) == kind
