"""Rooms import one way, read from the sources: imports inside functions count too. DESIGN.md has the order and the reasons."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# In import order: a room may import the rooms before it and itself. A name is a module or a folder.
PIPELINE = (
    "words",
    "errors",
    "optional_packages",
    "canonical",
    "view_policy",
    "mask_rules",
    "config",
    "records",
    "fault_injection",
    "malloc",
    "code_identity",
    "activity",
    "thread_map",
    "devices",
    "half_cosine",
    "named_code",
    "storage",
    "shards",
    "images",
    "sources",
    "planning",
    "tokenizers",
    "job",
    "runners",
    "ledger",
    "quality",
    "conversion",
    "reports",
    "submit",
    "interop",
    "commands",
)
SOURCES = (
    "splits",
    "witnesses",
    "source_store",
    "hosts",
    "labels",
    "summary",
    "fetch",
    "base",
    "sample",
    "junk",
    "mask_folder",
    "lfs",
    "nothing_found",
    "beside",
    "doubts",
    "pixel_depth",
    "tables",
    "label_lines",
    "label_files",
    "label_table",
    "tars",
    "containers",
    "folder",
    "location",
    "slices",
    "mask_values",
)
TOKENIZERS = (
    "config",
    "base",
    "registry",
    "directory",
    "image_tokenizer",
    "token_datasets",
    "code_usage",
    "psnr",
    "weight_files",
    "nearest_code",
    "kmeans",
    "layered",
    "pixels",
    "networks",
    "published",
    "custom",
    "fitted",
)
STEM_ADAPTORS = (
    "field_types",
    "mask_config",
    "segment_config",
    "config",
    "ranks",
    "precision",
    "settings",
    "recipes",
    "data",
    "augment",
    "models",
    "objectives",
    "reporting",
    "training",
    "cluster",
    "frameworks",
    "comparison",
    "curves",
    "continual",
    "commands",
)
ORDERS = (
    ("pipeline", PIPELINE),
    ("pipeline.sources", SOURCES),
    ("pipeline.tokenizers", TOKENIZERS),
    ("stem_adaptors", STEM_ADAPTORS),
)
# Training knows of the pipeline only what the shards are made of. These rooms begin with images, and use both sides.
BOTH_SIDES = tuple(f"tokenshards.stem_adaptors.{room}" for room in ("commands", "comparison", "curves", "continual"))
CONTRACT = (
    "words",
    "errors",
    "optional_packages",
    "config",
    "records",
    "canonical",
    "code_identity",
    "fault_injection",
    "malloc",
    "thread_map",
    "devices",
    "half_cosine",
    "named_code",
    "storage",
    "shards",
)
RAY_INTERNALS = "tokenshards.stem_adaptors.cluster.ray_internals"
RAY_CONNECTION = "tokenshards.pipeline.runners.ray_connection"

TIMM_ALLOWED = {
    "tokenshards.stem_adaptors.frameworks.timm_models",
    "tokenshards.stem_adaptors.frameworks.timm_weights",
    "tokenshards.stem_adaptors.models.timm_backbones",
    "tokenshards.pipeline.tokenizers.fitted.perceptual",
}
# Beside the modules named ray_*.
RAY_ALLOWED = {"tokenshards.pipeline.submit.job_client", "tokenshards.pipeline.submit.submission"}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("pipeline", "stem_adaptors"):
        for path in (ROOT / package).rglob("*.py"):
            parts = ("tokenshards", *path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> set[str]:
    """Return the modules that a file imports; `from package import module` names the module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            home = node.module or ""
            names |= {f"{home}.{alias.name}" if f"{home}.{alias.name}" in MODULES else home for alias in node.names}
    return names


def rank(name: str, package: str, rooms: tuple[str, ...]) -> int | None:
    """Return the place of a module's room in the order; None for what lies outside the package or is the package itself."""
    prefix = f"tokenshards.{package}."
    if not name.startswith(prefix):
        return None
    return rooms.index(name.removeprefix(prefix).split(".")[0])


@pytest.mark.parametrize(("package", "rooms"), ORDERS)
def test_rooms_import_one_way(package: str, rooms: tuple[str, ...]) -> None:
    checked, wrong = 0, []
    for name, path in MODULES.items():
        own = rank(name, package, rooms)
        for imported in imports_of(path) if own is not None else ():
            other = rank(imported, package, rooms)
            checked += other is not None
            if other is not None and own is not None and other > own:
                wrong.append(f"{name} imports {imported}")
    assert checked > 20 and wrong == []


def test_modules_make_no_cycle() -> None:
    graph = {name: {other for other in imports_of(path) if other in MODULES and other != name} for name, path in MODULES.items()}
    while True:
        imported = set().union(*graph.values())
        rest = {name: others & graph.keys() for name, others in graph.items() if others & graph.keys() and name in imported}
        if rest == graph:
            break
        graph = rest
    assert graph == {}, "these modules import each other"


def test_every_room_exists_and_every_module_is_in_one() -> None:
    for package, rooms in ORDERS:
        prefix = f"tokenshards.{package}."
        assert {name.removeprefix(prefix).split(".")[0] for name in MODULES if name.startswith(prefix)} == set(rooms)


def test_training_uses_only_the_contract_of_the_pipeline() -> None:
    for name, path in MODULES.items():
        if not name.startswith("tokenshards.stem_adaptors") or name.startswith(BOTH_SIDES):
            continue
        for imported in imports_of(path):
            if imported.startswith("tokenshards.pipeline."):
                allowed = imported.split(".")[2] in CONTRACT or (imported == RAY_CONNECTION and ".cluster." in name)
                assert allowed, f"{name} imports {imported}"


def test_nobody_imports_tests_or_infra_and_heavy_packages_stay_where_they_belong() -> None:
    for name, path in MODULES.items():
        imported = imports_of(path)
        heads = {one.split(".")[0] for one in imported}
        assert not heads & {"cli", "pipeline", "stem_adaptors", "tests", "infra"} and "tokenshards.cli" not in imported, name
        assert "typer" not in heads or ".commands" in name, name
        assert "timm" not in heads or name in TIMM_ALLOWED, name
        assert "ray" not in heads or name in RAY_ALLOWED or name.split(".")[-1].startswith("ray_"), name
        private = {one for one in imported if one.startswith("ray.") and any(part.startswith("_") for part in one.split("."))}
        assert not private or name == RAY_INTERNALS or not name.startswith("tokenshards.stem_adaptors"), name
        assert not heads & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, name


def test_no_module_is_too_long_to_read() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}
    assert len((ROOT / "cli.py").read_text().splitlines()) < 160
