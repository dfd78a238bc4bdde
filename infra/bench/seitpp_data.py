"""The data of seitpp.py: tokens of the training and of the held-out images, and the TokenAdapt that is fitted to them."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from accuracy_per_byte import DATA, HELD_OUT
from byte_budgets import generate_images, prepare_images, split_files

import tokenshards

ADAPT_OPTIONS = ("--width", "128", "--heads", "1", "--epochs", "5", "--learning-rate", "0.002")
"""Those of token_adapt.py at 64 px."""


def prepared(data: Path | None, work: Path | None, quick: bool) -> tuple[Path, dict[str, Any]]:
    """Make the tokens that are missing; return the work folder and how they were made."""
    data = data or (DATA if DATA.is_dir() else None)
    name = hashlib.sha256(f"{data and data.resolve()} {quick}".encode()).hexdigest()[:8]
    work = work or Path(tempfile.gettempdir()) / f"tokenshards-seitpp-{name}"
    work.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = work / "generated"
        generate_images(data)
    split = split_files(data, HELD_OUT)
    if quick:
        split = replace(split, train=split.train[::10], held_out=split.held_out[::10])
    names = "\n".join(f"{path.parent.name}/{path.name}" for files in (split.train, split.held_out) for path in [*files, Path("/")])
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    card = work / "prepared.json"
    made: dict[str, Any] = json.loads(card.read_text()) if card.exists() else {}
    if made and made["images"] != digest:
        sys.exit(f"--work {work} holds other images; give another folder")
    if not made:
        prepare_images(work, split)
        for part in ("train", "held_out"):
            given = {"tokenizer": str(work / "train")} if part == "held_out" else {}
            tokenshards.tokenize(str(work / "images" / part), str(work / part), workers=1, **given)
        dataset = tokenshards.open_dataset(str(work / "train"))
        made = {
            "images": digest,
            "split": {"train": len(split.train), "held_out": len(split.held_out), "classes": len(dataset.classes)},
            "tokenizer": {"grid": dataset.spec.layout.grid, "vocabulary": dataset.spec.vocabulary, "fingerprint": dataset.spec.fingerprint},
        }
        card.write_text(json.dumps(made))
    return work, made


def fit_adapt(work: Path, quick: bool) -> dict[str, Any]:
    """Fit TokenAdapt to the training images by the command of the product, once; return its report and CPU seconds."""
    card = work / "adapt.json"
    if card.exists():
        found: dict[str, Any] = json.loads(card.read_text())
        return found
    command = [sys.executable, "-m", "tokenshards.cli", "fit-tokenadapt", str(work / "images" / "train"), "--quiet", "--json"]
    command += ["--tokenizer", str(work / "train"), "--out", str(work / "adapt"), *ADAPT_OPTIONS, *(["--epochs", "1"] if quick else [])]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout.splitlines()[-1])
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"cpu_seconds": round(cpu_seconds), "settings": report["settings"], "fidelity": report["fidelity"]}
    card.write_text(json.dumps(found))
    print(f"TokenAdapt is fitted, {found['cpu_seconds']} CPU seconds", flush=True)
    return found
