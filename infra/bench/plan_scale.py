"""Is planning linear in time and flat in memory? 10^6 and 10^7 generated objects, each in a fresh process; 10^8 by hand.

    python infra/bench/plan_scale.py                                     # 1,000, 10^6 and 10^7 objects
    python infra/bench/plan_scale.py --sizes 1000000 10000000 100000000  # needs about 25 GB of free disk; once, by hand
    python infra/bench/plan_scale.py --against OLD_CHECKOUT              # did planning become slower? Folder, tables, tars

The objects belong to a bucket that does not exist: an fsspec file system answers `ls` with generated entries (60 characters of path, 1,000
classes, 1,000 objects a folder, sizes, etags). All further work is that of `tokenize`: Store.list, FolderSource, sample for the fit, spool,
partition, parts, and the plan published to a local folder. Bars for each tenfold step in size: at most 11 times the CPU seconds and 1.1
times the peak memory; from 1,000 to 10^6 objects memory grows by less than 50 MB. `ratio` is the worst of these over its bar and should be
at most 1. Planning is one thread, so wall seconds equal CPU seconds where nothing else runs; `wall_ratio` is shown without a bar.
Temporary files lie under --scratch and are removed.

With `--against` the CPU seconds of planning five forms of input (`plan_forms.py`) are compared with those of an older checkout, in
interleaved pairs. `ratio` is then the largest median of after over before, each with its 95 % interval; the bar is that no interval lies
wholly above 1.05. Tars have no bar: older versions read some of their headers, newer ones all of them, to lose no image. Beside it stands
the peak memory of planning one tar of 10^5 and one of 10^6 members; from the first to the second it grows by less than 50 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plan_forms import BAR, COUNTS, compare_forms, tar_memory, write_few_images

ROOT = Path(__file__).resolve().parents[2]
CHILD = "--child"
CLASSES = 1_000
FOLDER_OBJECTS = 1_000
SAMPLE = 20_000
SMALL = 100_000
"""Below this many objects start-up dominates a run, and only its memory is compared."""
GROWTH_LIMIT_BYTES = 50_000_000
TIME_BAR = 11.0
MEMORY_BAR = 1.1
POLL_SECONDS = 0.25


def generated_file_system() -> Any:
    """Return a file system class whose folder `COUNT` holds COUNT generated objects. The class stores no entries."""
    from hashlib import md5

    from fsspec.spec import AbstractFileSystem

    class GeneratedFileSystem(AbstractFileSystem):  # type: ignore[misc]
        protocol = "generated"
        seconds = 0.0
        """Time spent on making entries; a real store would spend it on its answers."""

        def ls(self, path: str, detail: bool = True, **options: Any) -> list[dict[str, Any]]:
            start = time.perf_counter()
            entries = self._entries(self._strip_protocol(path).split("/"), path)
            type(self).seconds += time.perf_counter() - start
            return entries

        def _entries(self, parts: list[str], path: str) -> list[dict[str, Any]]:
            folders = -(-int(parts[0]) // FOLDER_OBJECTS)  # folder f belongs to class f % CLASSES
            if len(parts) == 1:
                names = [f"n{number:08d}" for number in range(min(CLASSES, folders))]
            elif len(parts) == 2:
                names = [f"{number:06d}" for number in range(int(parts[1][1:]), folders, CLASSES)]
            else:
                start = int(parts[2]) * FOLDER_OBJECTS
                stop = min(int(parts[0]), start + FOLDER_OBJECTS)
                noises = [md5(index.to_bytes(8, "big"), usedforsecurity=False).hexdigest() for index in range(start, stop)]
                names = [f"{path}/{parts[1]}_{noise[:22]}.JPEG" for noise in noises]
                return [
                    {"name": name, "type": "file", "size": 40_000 + int(noise[:4], 16), "ETag": f'"{noise}"'}
                    for name, noise in zip(names, noises, strict=True)
                ]
            return [{"name": f"{path}/{name}", "type": "directory", "size": 0} for name in names]

    return GeneratedFileSystem


def plan_once(count: int, folder: Path) -> None:
    """Plan `count` generated objects in this process; print seconds, peak bytes and the bytes of the plan."""
    import fsspec

    from tokenshards.pipeline.config import PlanConfig, SourceConfig
    from tokenshards.pipeline.planning.plan import load_plan
    from tokenshards.pipeline.planning.planner import Listing, PlanRequest, write_plan
    from tokenshards.pipeline.sources.folder import FolderSource
    from tokenshards.pipeline.storage.store import Store

    objects = generated_file_system()
    fsspec.register_implementation("generated", objects)
    source, out = FolderSource(Store(f"generated://{count}"), SourceConfig()), Store(str(folder / "out"))
    start, start_cpu = time.perf_counter(), time.process_time()
    with Listing(source.list_rows(), order_seed=0, keep_order=False, sample=SAMPLE, sample_seed=0) as listing:
        listed = time.perf_counter()
        listed_cpu = time.process_time()
        request = PlanRequest(
            fingerprint="0" * 64, config=PlanConfig(), source={}, tokenizer_objects={}, tokenizer_json="{}", label_type="string"
        )
        write_plan(out, listing, request, 1)
    stop, stop_cpu = time.perf_counter(), time.process_time()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peak_children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    plan = load_plan(out)
    assert plan is not None and plan.images_planned == sum(part.rows for part in plan.parts) == source.summary.files == count, plan
    result = {
        "objects": count,
        "shards": plan.shards,
        "plan_id": plan.plan_id,
        "wall_seconds": round(stop - start, 3),
        "cpu_seconds": round(stop_cpu - start_cpu, 3),
        "list_seconds": round(listed - start, 3),
        "list_cpu_seconds": round(listed_cpu - start_cpu, 3),
        "generate_seconds": round(objects.seconds, 3),
        "seconds_per_million": round((stop - start) / count * 1e6, 3),
        "cpu_seconds_per_million": round((stop_cpu - start_cpu) / count * 1e6, 3),
        "peak_bytes": peak,
        "peak_bytes_children": peak_children,
        "plan_bytes": sum(info.size for info in out.list()),
    }
    print(json.dumps(result))


def bytes_below(folder: Path) -> int:
    """Return the bytes of all files below a folder; files that vanish meanwhile do not count."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    return total


def in_fresh_process(count: int, scratch: str | None) -> dict[str, Any]:
    """Plan `count` objects in a process of its own, and measure the temporary disk that it takes."""
    with tempfile.TemporaryDirectory(prefix="plan-scale-", dir=scratch) as name:
        folder = Path(name)
        (folder / "temporary").mkdir()
        environment = {**os.environ, "TMPDIR": str(folder / "temporary"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, CHILD, str(count), name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            temporary = 0
            while process.poll() is None:
                temporary = max(temporary, bytes_below(folder / "temporary"))
                time.sleep(POLL_SECONDS)
            output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"planning {count:,} objects ended with exit code {process.returncode}; expected 0. Its messages stand above")
    found: dict[str, Any] = {**json.loads(output), "temporary_bytes": temporary}
    print(
        f"{count:>11,} objects: {found['wall_seconds']:.1f} s ({found['seconds_per_million']:.2f} s per million), "
        f"peak {found['peak_bytes'] / 1e6:.0f} MB, temporary {temporary / 1e6:.0f} MB, plan {found['plan_bytes'] / 1e6:.0f} MB",
        flush=True,
    )
    return found


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratios of each size to the size before, with time scaled to a tenfold step, and the worst of all over its bar."""
    steps, worst = [], []
    for small, large in zip(runs, runs[1:], strict=False):
        if small["objects"] < SMALL:
            growth = large["peak_bytes"] - small["peak_bytes"]
            steps.append({"objects": [small["objects"], large["objects"]], "growth_bytes": growth, "limit_bytes": GROWTH_LIMIT_BYTES})
            worst.append(growth / GROWTH_LIMIT_BYTES)
            continue
        tenfold = large["objects"] / small["objects"] / 10
        wall_ratio = large["wall_seconds"] / small["wall_seconds"]
        cpu_ratio = large["cpu_seconds"] / small["cpu_seconds"]
        memory_ratio = large["peak_bytes"] / small["peak_bytes"]
        steps.append(
            {
                "objects": [small["objects"], large["objects"]],
                "wall_ratio": round(wall_ratio, 3),
                "cpu_ratio": round(cpu_ratio, 3),
                "cpu_bar": TIME_BAR * tenfold,
                "memory_ratio": round(memory_ratio, 3),
                "memory_bar": MEMORY_BAR,
            }
        )
        worst += [cpu_ratio / (TIME_BAR * tenfold), memory_ratio / MEMORY_BAR]
    return {"ratio": round(max(worst), 3) if worst else None, "limit": 1, "steps": steps}


def against(before: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the planning of this checkout with that of an older one."""
    with tempfile.TemporaryDirectory(prefix="plan-scale-", dir=options.scratch) as name:
        scratch = Path(name)
        fit = [
            str(ROOT / "cli.py"),
            "fit-tokenizer",
            str(scratch / "tokenizer-images"),
            str(scratch / "tokenizer"),
            "--size",
            "16",
            "--codes",
            "16",
        ]
        write_few_images(scratch / "tokenizer-images")
        subprocess.run([sys.executable, *fit], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
        counts = {form: max(1_000, round(COUNTS[form] * options.scale)) for form in options.forms}
        forms = compare_forms(before, ROOT, counts, scratch / "tokenizer", scratch, options.pairs)
        memory = tar_memory(ROOT, options.tar_members, scratch / "tokenizer", scratch) if options.tar_members else None
    barred = [found for form, found in forms.items() if form != "tar"]
    return {
        "name": "plan_scale_against",
        "ratio": max((found["ratio"] for found in barred), default=None),
        "bar": BAR,
        "within_bar": all(found["within_bar"] for found in barred) and (memory is None or memory["within_bar"]),
        "pairs": options.pairs,
        "forms": forms,
        "tar_memory": memory,
    }


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        plan_once(int(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 1_000_000, 10_000_000])
    parser.add_argument("--scratch", help="where temporary files and plans go; the system's temporary folder by default")
    parser.add_argument("--against", type=Path, help="older checkout with which to compare the planning of five forms of input")
    parser.add_argument("--forms", nargs="*", choices=COUNTS, default=list(COUNTS), help="with --against: forms to compare")
    parser.add_argument("--pairs", type=int, default=9, help="with --against")
    parser.add_argument("--scale", type=float, default=1.0, help="with --against: more or fewer images, such as 0.01 for a trial")
    parser.add_argument("--tar-members", type=int, nargs="*", default=[100_000, 1_000_000], help="with --against: sizes of one tar")
    options = parser.parse_args()
    if options.against is not None:
        print(json.dumps(against(options.against.resolve(), options)))
        return
    runs = [in_fresh_process(count, options.scratch) for count in sorted(options.sizes)]
    print(json.dumps({"name": "plan_scale", **compare(runs), "sample": SAMPLE, "runs": runs}))


if __name__ == "__main__":
    main()
