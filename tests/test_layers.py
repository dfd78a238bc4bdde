"""Who may import whom (the hourglass), read from the sources: imports inside functions count too."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Layer -> what it may import of our own packages, besides itself. A name stands for a module or a whole package.
FOUNDATION = {
    "tokenshards.pipeline.activity",
    "tokenshards.pipeline.errors",
    "tokenshards.pipeline.config",
    "tokenshards.pipeline.canonical",
    "tokenshards.pipeline.code_identity",
    "tokenshards.pipeline.fault_injection",
    "tokenshards.pipeline.malloc",
    "tokenshards.pipeline.view_policy",
    "pipeline",
}
STORES = FOUNDATION | {"tokenshards.pipeline.records", "tokenshards.pipeline.storage.store"}
SHARDS = STORES | {"tokenshards.pipeline.shards"}
INPUT = STORES | {
    "tokenshards.pipeline.images.decode",
    "tokenshards.pipeline.sources.fetch",
    "tokenshards.pipeline.sources",
    "tokenshards.pipeline.shards.spec",
}
WORK = SHARDS | INPUT | {"tokenshards.pipeline.tokenizers", "tokenshards.pipeline.planning.partition", "tokenshards.pipeline.planning.plan"}
ALLOWED: dict[str, set[str]] = {
    "tokenshards.pipeline.errors": set(),
    "tokenshards.pipeline.activity": set(),
    "tokenshards.pipeline.ledger.progress": set(),
    "tokenshards.pipeline.view_policy": {"tokenshards.pipeline.errors", "tokenshards.pipeline.canonical"},
    "tokenshards.pipeline.config": {"tokenshards.pipeline.errors", "tokenshards.pipeline.view_policy"},
    "tokenshards.pipeline.canonical": {"tokenshards.pipeline.errors"},
    "tokenshards.pipeline.fault_injection": set(),
    "tokenshards.pipeline.submit.job_entry": set(),
    "tokenshards.pipeline.submit.wheel": {"pipeline", "tokenshards.pipeline.errors", "tokenshards.pipeline.submit.job_entry"},
    "tokenshards.pipeline.runners.ray_token": {"tokenshards.pipeline.errors"},
    "tokenshards.pipeline.submit.ray_dashboard": {"tokenshards.pipeline.errors", "tokenshards.pipeline.runners.ray_token"},
    "tokenshards.pipeline.submit.forwarding": {"tokenshards.pipeline.errors", "tokenshards.pipeline.storage.redaction"},
    "tokenshards.pipeline.records": {"tokenshards.pipeline.errors"},
    "tokenshards.pipeline.storage.redaction": set(),
    "tokenshards.pipeline.storage.request_limit": set(),
    "tokenshards.pipeline.storage.listing": set(),
    "tokenshards.pipeline.storage.local": {"tokenshards.pipeline.errors"},
    "tokenshards.pipeline.storage.fsspec_requests": {
        "tokenshards.pipeline.errors",
        "tokenshards.pipeline.storage.listing",
        "tokenshards.pipeline.storage.request_limit",
    },
    "tokenshards.pipeline.storage.s3": {
        "tokenshards.pipeline.errors",
        "tokenshards.pipeline.storage.listing",
        "tokenshards.pipeline.storage.redaction",
        "tokenshards.pipeline.storage.fsspec_requests",
        "tokenshards.pipeline.storage.request_limit",
    },
    "tokenshards.pipeline.storage.store": FOUNDATION
    | {
        "tokenshards.pipeline.storage.redaction",
        "tokenshards.pipeline.storage.request_limit",
        "tokenshards.pipeline.storage.listing",
        "tokenshards.pipeline.storage.local",
        "tokenshards.pipeline.storage.fsspec_requests",
        "tokenshards.pipeline.storage.s3",
    },
    "tokenshards.pipeline.shards": STORES,
    "tokenshards.pipeline.images.resize": {"tokenshards.pipeline.shards.spec"},
    "tokenshards.pipeline.images.decode": FOUNDATION | {"tokenshards.pipeline.shards.spec", "tokenshards.pipeline.images.resize"},
    "tokenshards.pipeline.sources.fetch": STORES | {"tokenshards.pipeline.storage.redaction"},
    "tokenshards.pipeline.sources": INPUT,
    "tokenshards.pipeline.tokenizers": SHARDS,
    "tokenshards.pipeline.planning.partition": STORES,
    "tokenshards.pipeline.planning.plan": SHARDS | {"tokenshards.pipeline.planning.partition"},
    "tokenshards.pipeline.planning.planner": SHARDS | {"tokenshards.pipeline.planning.partition", "tokenshards.pipeline.planning.plan"},
    "tokenshards.pipeline.job.inputs": WORK,
    "tokenshards.pipeline.images.views": INPUT | {"tokenshards.pipeline.images.resize"},
    "tokenshards.pipeline.job.batches": INPUT | {"tokenshards.pipeline.images.views"},
    "tokenshards.pipeline.job.shard_job": WORK | {"tokenshards.pipeline.job.inputs", "tokenshards.pipeline.job.batches"},
    "tokenshards.pipeline.job.context": WORK | {"tokenshards.pipeline.job.shard_job", "tokenshards.pipeline.runners.base"},
    "tokenshards.pipeline.runners": FOUNDATION
    | {
        "tokenshards.pipeline.job.batches",
        "tokenshards.pipeline.job.context",
        "tokenshards.pipeline.job.shard_job",
        "tokenshards.pipeline.runners.ray_token",
        "tokenshards.pipeline.storage.jsonl_log",
        "tokenshards.pipeline.shards.commit",
    },
    "tokenshards.pipeline.storage.jsonl_log": STORES,
    "tokenshards.pipeline.malloc": set(),
    "tokenshards.pipeline.code_identity": {"pipeline"},
    "tokenshards.pipeline.interop": WORK
    | {
        "tokenshards.pipeline.job.context",
        "tokenshards.pipeline.conversion.tokenize",
        "tokenshards.pipeline.ledger.heartbeat",
        "tokenshards.pipeline.planning.planner",
        "tokenshards.pipeline.ledger.progress",
        "tokenshards.pipeline.conversion.request",
        "tokenshards.pipeline.runners.base",
    },
    "stem_adaptors": SHARDS,
    "tokenshards.stem_adaptors.cluster.ray_train": SHARDS | {"stem_adaptors", "tokenshards.pipeline.runners.ray_connection"},
}
TIMM_ALLOWED = {"tokenshards.stem_adaptors.models.timm_backbones", "tokenshards.pipeline.tokenizers.fitted.perceptual"}
RAY_ALLOWED = {
    "tokenshards.pipeline.runners.ray_nodes",
    "tokenshards.pipeline.runners.ray_driver",
    "tokenshards.pipeline.runners.ray_actor",
    "tokenshards.pipeline.runners.ray_connection",
    "tokenshards.pipeline.runners.ray_decode",
    "tokenshards.pipeline.runners.ray_errors",
    "tokenshards.pipeline.runners.ray_pool",
    "tokenshards.pipeline.submit.submission",
    "tokenshards.stem_adaptors.cluster.ray_train",
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
