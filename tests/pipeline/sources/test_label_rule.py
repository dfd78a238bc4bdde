"""`--label-from`: what each rule takes from a path, and which values are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.sources.labels.rule import LabelRule

DEEP = "data/birds/owl/images/1.jpg"


@pytest.mark.parametrize(
    ("rule", "path", "label"),
    [
        (None, DEEP, "data"),
        ("first", DEEP, "data"),
        ("parent", DEEP, "images"),
        ("depth:1", DEEP, "data"),
        ("depth:3", DEEP, "owl"),
        ("depth:5", DEEP, None),
        ("none", DEEP, None),
        ("first", "1.jpg", None),
        ("parent", "1.jpg", None),
        (r"regex:^(n\d+)_", "n01440764_18.JPEG", "n01440764"),
        (r"regex:(x)?(?P<label>owl|crow)", DEEP, "owl"),
        (r"regex:/(\w+)/images/", DEEP, "owl"),
        (r"regex:^(n\d+)_", DEEP, None),
        (r"regex:^(x*)", DEEP, None),
        ("regex:birds:?/([^/]+)", DEEP, "owl"),
    ],
)
def test_what_a_rule_takes_from_a_path(rule: str | None, path: str, label: str | None) -> None:
    assert LabelRule.parse(rule).label_of(path) == label


@pytest.mark.parametrize(
    ("rule", "path", "place", "label"),
    [
        ("first", "train/owl/x/1.jpg", 0, "owl"),
        ("first", "Data/train/owl/1.jpg", 1, "owl"),
        ("first", "owl/train/1.jpg", 1, "owl"),
        ("first", "train/1.jpg", 0, None),
        ("parent", "train/owl/x/1.jpg", 0, "x"),
        ("depth:2", "train/owl/x/1.jpg", 0, "x"),
        ("regex:^([^/]+)", "train/owl/x/1.jpg", 0, "train"),
    ],
)
def test_folders_are_counted_below_the_split_or_else_above_it(rule: str, path: str, place: int, label: str | None) -> None:
    assert LabelRule.parse(rule).label_of(path, place) == label


@pytest.mark.parametrize("text", ["", "second", "depth", "depth:", "depth:0", "depth:-1", "depth:٣", "first:2", "regex:", "file:", "regex"])
def test_other_values_are_refused_with_all_that_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--label-from is .*expected first, parent, depth:N, tar, none, regex:PATTERN or file:TABLE"):
        LabelRule.parse(text)


def test_a_pattern_must_compile_and_have_a_group() -> None:
    with pytest.raises(ConfigError, match="is not a pattern of Python's re"):
        LabelRule.parse("regex:(")
    with pytest.raises(ConfigError, match="has no group; expected one around the label"):
        LabelRule.parse("regex:n[0-9]+")


def test_rules_that_need_more_than_a_path_say_so() -> None:
    for text in ("tar", "file:labels.csv"):
        rule = LabelRule.parse(text)
        assert not rule.of_path
        with pytest.raises(ValueError, match="does not take a label from a path"):
            rule.label_of(DEEP)
    assert LabelRule.parse("file:a/labels.csv").table == "a/labels.csv"
    assert LabelRule.parse("tar").label_of_tar("train/n01440764.tar.gz") == "n01440764"


NAMES = st.text(st.characters(blacklist_characters="/\n", blacklist_categories=("Cs",)), min_size=1, max_size=6)


@given(st.lists(NAMES, max_size=5), NAMES)
def test_first_parent_and_depth_agree(folders: list[str], name: str) -> None:
    path = "/".join([*folders, name])
    by_depth = [LabelRule.parse(f"depth:{place}").label_of(path) for place in range(1, len(folders) + 1)]
    assert by_depth == folders and LabelRule.parse(f"depth:{len(folders) + 1}").label_of(path) is None
    assert LabelRule.parse("first").label_of(path) == (folders[0] if folders else None)
    assert LabelRule.parse("parent").label_of(path) == (folders[-1] if folders else None)
