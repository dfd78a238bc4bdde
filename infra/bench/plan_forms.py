"""Inputs of several forms for `plan_scale.py`, generated, and the planning of one of them in a process of its own.

    python infra/bench/plan_forms.py PLACE OUT TOKENIZER     # what `plan_scale.py` starts, with PYTHONPATH naming a checkout

The process runs older checkouts too: it plans through `open_source` and the step of `tokenize` that makes a plan, which all have.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from before_after import ONE_THREAD, compare

BAR = 1.05
COUNTS = {"folder": 300_000, "csv": 130_000, "parquet-paths": 130_000, "parquet-bytes": 4_000_000, "tar": 200_000}
"""Images of each form, so that planning takes some CPU seconds."""
TAR_GROWTH_BYTES = 50_000_000
"""Most growth of memory from the smallest to the largest tar."""
CLASSES = 1_000
GROUP_ROWS = 500
"""Rows of a row group, which is a slice of the plan."""
TABLES = 10
IMAGE_BYTES = 64
"""Of a cell: planning reads no images, so small ones will do."""
TAR_BLOCK = 512
NAME, CHECKSUM = slice(0, 9), slice(148, 156)
"""Of a tar's header."""
TARS = 20


def row(number: int) -> tuple[str, str, str]:
    """Return path, label and caption of a row, in a scattered order of classes."""
    name = number * 7_919 % CLASSES
    return f"n{name:08d}/{number:09d}_{number * 2_654_435_761 % 2**32:08x}.jpg", f"n{name:08d}", f"a photo of thing {number} on a table"


def write_csv(place: Path, count: int) -> None:
    """Write `count` rows as ten files of text."""
    for table in range(TABLES):
        with (place / f"part-{table:02d}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label", "caption"))
            writer.writerows(row(number) for number in range(table, count, TABLES))


def write_parquet(place: Path, count: int, images: bool) -> None:
    """Write `count` rows as ten Parquet files, with images as bytes or as paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for table in range(TABLES):
        paths, labels, captions = zip(*(row(number) for number in range(table, count, TABLES)), strict=True)
        first = [path.encode().ljust(IMAGE_BYTES, b"\0") for path in paths] if images else list(paths)
        columns = {"image" if images else "path": first, "label": list(labels), "caption": list(captions)}
        pq.write_table(pa.table(columns), place / f"part-{table:02d}.parquet", row_group_size=GROUP_ROWS)


def header_of() -> Callable[[int], bytes]:
    """Return what makes the header of the member of a number, ten times as fast as tarfile, which makes the first."""
    member = tarfile.TarInfo(f"{0:09d}.jpg")
    member.size = TAR_BLOCK
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[CHECKSUM] = b" " * 8
    others = sum(header) - sum(header[NAME])

    def of(number: int) -> bytes:
        name = b"%09d" % number
        header[NAME] = name
        header[CHECKSUM] = b"%06o\0 " % (others + sum(name))
        return bytes(header)

    return of


def write_tar(path: Path, numbers: range) -> None:
    """Write one tar with a member of 512 bytes for each number."""
    header, body = header_of(), bytes(TAR_BLOCK)
    with path.open("wb", buffering=1 << 20) as file:
        for number in numbers:
            file.write(header(number))
            file.write(body)
        file.write(bytes(2 * TAR_BLOCK))


def write_tars(place: Path, count: int) -> None:
    """Write `count` members in twenty tars."""
    for tar in range(TARS):
        write_tar(place / f"{tar:05d}.tar", range(count * tar // TARS, count * (tar + 1) // TARS))


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "csv": write_csv,
    "parquet-paths": lambda place, count: write_parquet(place, count, images=False),
    "parquet-bytes": lambda place, count: write_parquet(place, count, images=True),
    "tar": write_tars,
}
"""Form -> what writes it; the form `folder` is generated while it is listed."""


def write_few_images(place: Path) -> None:
    """Write images for the fit of a tokenizer, which every plan names."""
    import numpy as np
    from PIL import Image

    place.mkdir()
    random = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(place / f"{number}.png")


class Silent:
    """A reporter that says nothing."""

    def say(self, message: str) -> None:
        """Say nothing."""


def peak_bytes() -> int:
    """Return the peak memory of this process. On Linux `ru_maxrss` begins with the memory of the process that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes


def plan_here(place: str, out: str, tokenizer: str) -> dict[str, Any]:
    """Plan one input in this process; return CPU seconds without start-up, peak bytes and counts of the plan.

    The images of the tokenizer's fit lie in `TOKENIZER-images`.
    """
    import fsspec
    from plan_scale import generated_file_system

    import tokenshards
    from tokenshards.pipeline.config import RunConfig, SourceConfig
    from tokenshards.pipeline.conversion.tokenize import Conversion, TokenizeRequest
    from tokenshards.pipeline.sources.location import open_source

    fsspec.register_implementation("generated", generated_file_system())
    known = {field.name for field in dataclasses.fields(SourceConfig)}
    config = SourceConfig(**({"yes": True} if "yes" in known else {}))  # a newer version may doubt what was generated
    request = TokenizeRequest(source_url=place, out_url=out, tokenizer_url=tokenizer, source=config, run=RunConfig(workers=1))
    small = dataclasses.replace(request, source_url=f"{tokenizer}-images", out_url=f"{out}-of-few")
    Conversion(small, Silent())._make_plan(open_source(small.source_url, config))  # type: ignore[arg-type]  # imports what planning needs
    started, cpu = time.perf_counter(), time.process_time()
    plan = Conversion(request, Silent())._make_plan(open_source(place, config))  # type: ignore[arg-type]  # `run` would go on with the work
    return {
        "package": str(Path(tokenshards.__file__).resolve().parent),
        "cpu_seconds": round(time.process_time() - cpu, 4),
        "wall_seconds": round(time.perf_counter() - started, 4),
        "peak_bytes": peak_bytes(),
        "images": plan.images_planned,
        "tars": plan.tars_planned,
        "shards": plan.shards,
    }


def in_checkout(checkout: Path, place: str, tokenizer: Path, scratch: Path) -> dict[str, Any]:
    """Plan one input with the code of a checkout, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        words = [sys.executable, str(Path(__file__).resolve()), place, f"{name}/out", str(tokenizer)]
        env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(checkout), "TMPDIR": name}
        done = subprocess.run(words, cwd=checkout, env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"planning {place} in {checkout} ended with exit code {done.returncode}; expected 0. Its messages stand above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not Path(found["package"]).is_relative_to(checkout):
        raise SystemExit(f"the process planned with {found['package']}; expected the code of {checkout}")
    return found


def prepared(form: str, count: int, scratch: Path) -> str:
    """Return the place of an input of `count` images, written if it is not generated while it is listed."""
    if form == "folder":
        return f"generated://{count}"
    place = scratch / f"{form}-{count}"
    if not place.exists():
        place.mkdir()
        WRITERS[form](place, count)
    return str(place)


def compare_forms(before: Path, after: Path, counts: dict[str, int], tokenizer: Path, scratch: Path, pairs: int) -> dict[str, Any]:
    """Return, for each form, CPU seconds of planning after over before, in interleaved pairs, and the peaks of memory."""
    forms: dict[str, Any] = {}
    for form, count in counts.items():
        place = prepared(form, count, scratch)
        peaks: dict[Path, int] = {before: 0, after: 0}

        def work(checkout: Path, place: str = place, peaks: dict[Path, int] = peaks) -> float:
            found = in_checkout(checkout, place, tokenizer, scratch)
            peaks[checkout] = max(peaks[checkout], found["peak_bytes"])
            return float(found["cpu_seconds"])

        found = compare(work, before, after, pairs, bar=BAR)
        forms[form] = {**found, "images": count, "peak_bytes": {"before": peaks[before], "after": peaks[after]}}
        print(f"{form}: {forms[form]}", file=sys.stderr, flush=True)
    return forms


def tar_memory(checkout: Path, sizes: list[int], tokenizer: Path, scratch: Path) -> dict[str, Any]:
    """Return the peak memory of planning one tar of each size, and its growth over the limit."""
    runs = []
    for size in sorted(sizes):
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            write_tar(Path(name) / "one.tar", range(size))
            found = in_checkout(checkout, name, tokenizer, scratch)
        runs.append({"members": size, "peak_bytes": found["peak_bytes"], "cpu_seconds": found["cpu_seconds"]})
        print(f"a tar of {size:,} members: {found}", file=sys.stderr, flush=True)
    growth = runs[-1]["peak_bytes"] - runs[0]["peak_bytes"]
    return {"runs": runs, "growth_bytes": growth, "limit_bytes": TAR_GROWTH_BYTES, "within_bar": growth <= TAR_GROWTH_BYTES}


if __name__ == "__main__":
    print(json.dumps(plan_here(*sys.argv[1:])))
