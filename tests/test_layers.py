"""Who may import whom (the hourglass), read from the sources: imports inside functions count too."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Layer -> what it may import of our own packages, besides itself. A name stands for a module or a whole package.
FOUNDATION = {
    "pipeline.errors",
    "pipeline.config",
    "pipeline.canonical",
    "pipeline.code_identity",
    "pipeline.faults",
    "pipeline.memory",
    "pipeline.views",
    "pipeline",
}
STORES = FOUNDATION | {"pipeline.records", "pipeline.storage"}
SHARDS = STORES | {"pipeline.shards"}
INPUT = STORES | {"pipeline.decode", "pipeline.fetch", "pipeline.sources", "pipeline.shards.spec"}
WORK = SHARDS | INPUT | {"pipeline.tokenizers", "pipeline.partition", "pipeline.plan"}
ALLOWED: dict[str, set[str]] = {
    "pipeline.errors": set(),
    "pipeline.views": {"pipeline.errors", "pipeline.canonical"},
    "pipeline.config": {"pipeline.errors", "pipeline.views"},
    "pipeline.canonical": {"pipeline.errors"},
    "pipeline.faults": set(),
    "pipeline.job_entry": set(),
    "pipeline.wheel": {"pipeline", "pipeline.errors", "pipeline.job_entry"},
    "pipeline.ray_token": {"pipeline.errors"},
    "pipeline.ray_dashboard": {"pipeline.errors", "pipeline.ray_token"},
    "pipeline.forwarding": {"pipeline.errors", "pipeline.masking"},
    "pipeline.records": {"pipeline.errors"},
    "pipeline.masking": set(),
    "pipeline.throttle": set(),
    "pipeline.listing": set(),
    "pipeline.local_disk": {"pipeline.errors"},
    "pipeline.remote": {"pipeline.errors", "pipeline.listing", "pipeline.throttle"},
    "pipeline.s3": {"pipeline.errors", "pipeline.listing", "pipeline.masking", "pipeline.remote", "pipeline.throttle"},
    "pipeline.storage": FOUNDATION
    | {"pipeline.masking", "pipeline.throttle", "pipeline.listing", "pipeline.local_disk", "pipeline.remote", "pipeline.s3"},
    "pipeline.shards": STORES,
    "pipeline.picture": {"pipeline.shards.spec"},
    "pipeline.decode": FOUNDATION | {"pipeline.shards.spec", "pipeline.picture"},
    "pipeline.fetch": STORES | {"pipeline.masking"},
    "pipeline.sources": INPUT,
    "pipeline.tokenizers": SHARDS,
    "pipeline.partition": STORES,
    "pipeline.plan": SHARDS | {"pipeline.partition"},
    "pipeline.planning": SHARDS | {"pipeline.partition", "pipeline.plan"},
    "pipeline.inputs": WORK,
    "pipeline.view_pixels": INPUT | {"pipeline.picture"},
    "pipeline.batches": INPUT | {"pipeline.view_pixels"},
    "pipeline.job": WORK | {"pipeline.inputs", "pipeline.batches"},
    "pipeline.context": WORK | {"pipeline.job", "pipeline.runners.base"},
    "pipeline.runners": FOUNDATION
    | {"pipeline.batches", "pipeline.context", "pipeline.job", "pipeline.ray_token", "pipeline.run_log", "pipeline.shards.commit"},
    "pipeline.run_log": STORES,
    "pipeline.memory": set(),
    "pipeline.code_identity": {"pipeline"},
    "pipeline.interop": WORK
    | {"pipeline.context", "pipeline.conversion", "pipeline.heartbeat", "pipeline.planning", "pipeline.request", "pipeline.runners.base"},
    "stem_adaptors": SHARDS,
    "stem_adaptors.ray_train": SHARDS | {"stem_adaptors", "pipeline.runners.ray_cluster"},
}
TIMM_ALLOWED = {"stem_adaptors.timm_backbones", "pipeline.tokenizers.perceptual"}
RAY_ALLOWED = {
    "pipeline.runners.cluster_view",
    "pipeline.runners.ray_jobs",
    "pipeline.runners.ray_actor",
    "pipeline.runners.ray_cluster",
    "pipeline.submission",
    "stem_adaptors.ray_train",
}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("pipeline", "stem_adaptors"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def below(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def test_imports_point_one_way() -> None:
    checked = 0
    for name, path in modules().items():
        layers = [layer for layer in ALLOWED if below(name, layer)]
        if not layers:
            continue
        layer = max(layers, key=len)
        allowed = ALLOWED[layer] | {layer}
        for imported in imports_of(path):
            if imported.split(".")[0] in ("pipeline", "stem_adaptors", "cli", "infra", "tests"):
                checked += 1
                fits = any(imported == entry if entry == "pipeline" else below(imported, entry) for entry in allowed)
                assert fits, f"{name} imports {imported}; {layer} may import {sorted(allowed)}"
    assert checked > 100


def test_every_layer_exists() -> None:
    names = modules()
    assert [layer for layer in ALLOWED if layer not in names] == []


def test_nothing_imports_the_command_line_tests_infra_or_heavy_packages() -> None:
    for name, path in modules().items():
        heads = {imported.split(".")[0] for imported in imports_of(path)}
        assert not heads & {"cli", "tests", "infra", "typer"}, name
        assert "timm" not in heads or name in TIMM_ALLOWED, name
        assert "ray" not in heads or name in RAY_ALLOWED, name
        assert not heads & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, name
