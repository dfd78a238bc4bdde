"""Who imports whom among the tokenizers: each group only those before it, function-level imports included."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "pipeline" / "tokenizers"
PREFIX = "tokenshards.pipeline.tokenizers."
GROUPS = [
    {"base", "registry", "directory", "code_usage", "psnr", "row_sample", "weight_files", "nearest_code"},
    {"patch_kmeans", "patch_fit", "patches", "kmeans", "beam"},
    {
        "network",
        "device",
        "network_tokenizer",
        "codebook_tokenizer",
        "checkpoint_file",
        "weights",
        "overlap",
        "square_grid",
        "probe",
        "vit_block",
    },
    {"vit_vqgan", "conv_vqgan", "maskgit", "open_magvit2", "vq_kd", "titok", "torchscript", "python_callable", "seit_tokens"},
    {
        "vq_autoencoder",
        "vq_training",
        "quantizers",
        "linear_start",
        "training_state",
        "perceptual",
        "latent_kmeans",
        "latent_fit",
        "taesd",
    },
]


def imports_of(path: Path) -> set[str]:
    found = {node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    return {name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX)}


def test_groups_import_one_way() -> None:
    modules = {path.stem: imports_of(path) for path in FOLDER.glob("*.py") if path.stem != "__init__"}
    place = {name: index for index, group in enumerate(GROUPS) for name in group}
    assert modules.keys() == place.keys()
    wrong = [f"{name} imports {other}" for name, others in modules.items() for other in others if place[other] > place[name]]
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    modules = {path.stem: imports_of(path) for path in FOLDER.glob("*.py")}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        if name not in done:
            for other in modules[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())
