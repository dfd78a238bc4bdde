"""Does a Ray cluster pay? Compares marginal images per second of the Ray runner with the local runner, two nodes with one, and both with a
plain Ray Data pipeline.

    python infra/bench/ray_scaling.py --data DIR

DIR holds images at any depth (default: the sample images beside the repository, or else generated JPEGs). They are hard-linked under
distinct names into two folders of N and 5 N files on the local disk. Every rate is (5 N - N) / (seconds for 5 N - seconds for N) of whole
commands, so that start-up cancels. The sides take turns and medians count:

- `local`: `cli.py tokenize --workers 2`;
- `ray`: `cli.py tokenize --runner ray` on one node of two CPUs, which makes two actors;
- `ray_data`: the pipeline below on the same node: read_binary_files, decoding tasks, actors with the tokenizer, write_parquet. It uses our
  decoding and tokenizer, in batches of the same size. The layouts in LAYOUTS are tried first, each as often as every side is timed; the
  layout with the fastest median counts;
- `fused_ray_data`: the same in one stage, the fastest form, which uses the object store for file names and ids alone;
- `one_node` and `two_nodes`: `cli.py tokenize --runner ray` on one and on two nodes of one CPU, separate `ray start` processes.

Bars: `ray_over_local` 0.9, `two_nodes_over_one` 1.7, `over_ray_data` 1.6; `ratio` is the smallest of the three over its bar. Of the two
sides with Ray only ours commits, verifies and resumes. `object_store` holds the peaks of the node's object store in runs of N and of 5 N,
sampled while nothing is timed; use is bounded where the second peak is no larger. `whole_seconds` are whole commands over N files, start-up
included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tokenize_overhead import ONE_THREAD, cli, find_images, replicate  # noqa: E402

from tests.ray_clusters import RayCluster  # noqa: E402

RAY_DATA, SAMPLER = "--ray-data", "--sampler"
BARS = {"ray_over_local": 0.9, "two_nodes_over_one": 1.7, "over_ray_data": 1.6}
BATCH_ROWS = 64
FILES_PER_BLOCK = 125
# Numbers of decoding tasks and of actors at once. All ask for fractions of a CPU, so that no stage waits for another's slot: the operating
# system shares two cores better. (With whole CPUs, actors on every core leave no core to the write, and the pipeline hangs.)
LAYOUTS = {
    "2 decoders, 1 actor": {"decoders": 2, "actors": 1},
    "2 decoders, 2 actors": {"decoders": 2, "actors": 2},
    "1 decoder, 1 actor": {"decoders": 1, "actors": 1},
}
FUSED = {"decoders": 0, "actors": 2}
READ_CPUS, DECODE_CPUS, ACTOR_CPUS, WRITE_CPUS = 0.25, 0.25, 0.25, 0.25
HANGS_SECONDS = 900
OBJECT_STORE_BYTES = 1 << 30  # of a node
TIMES = 5
"""Size of the long run over the size of the short run."""


def ray_data(folder: str, out: str, tokenizer_folder: str, address: str, layout: dict[str, int]) -> None:
    """The Ray Data side, in a process of its own."""
    import numpy as np
    import ray
    import ray.data

    from tokenshards.pipeline.images.decode import decode_image
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.pipeline.tokenizers.directory import load_tokenizer

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False

    preprocess = load_tokenizer(Store(tokenizer_folder), "").spec.preprocess

    def decode(batch: dict[str, Any]) -> dict[str, Any]:
        images = [decode_image(data, preprocess) for data in batch["bytes"]]
        return {
            "path": batch["path"],
            "pixels": np.stack([image.pixels_HWC for image in images]),  # uint8: the smallest dtype that can go through the object store
            "width": np.array([image.width for image in images], np.int32),
            "height": np.array([image.height for image in images], np.int32),
        }

    class Tokenize:
        def __init__(self) -> None:
            self._tokenizer = load_tokenizer(Store(tokenizer_folder), "")

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            ids_BLQ = self._tokenizer.encode(np.ascontiguousarray(batch.pop("pixels"))).ids_BLQ
            return {**batch, "ids": np.ascontiguousarray(ids_BLQ).reshape(len(ids_BLQ), -1)}

    class ReadDecodeTokenize(Tokenize):
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            data = [Path(path).read_bytes() for path in batch["path"]]
            return super().__call__(decode({"path": batch["path"], "bytes": data}))

    files = sorted(str(path) for path in Path(folder).iterdir())
    blocks = max(2, len(files) // FILES_PER_BLOCK)
    stage: type[Tokenize] = Tokenize
    if layout["decoders"]:
        read: dict[str, Any] = {"override_num_blocks": blocks, "ray_remote_args": {"num_cpus": READ_CPUS}, "concurrency": 2}
        data = ray.data.read_binary_files(files, include_paths=True, **read)
        tasks = ray.data.TaskPoolStrategy(size=layout["decoders"])
        data = data.map_batches(decode, batch_size=BATCH_ROWS, num_cpus=DECODE_CPUS, compute=tasks)
    else:
        data = ray.data.from_items([{"path": file} for file in files], override_num_blocks=blocks)
        stage = ReadDecodeTokenize
    actors = ray.data.ActorPoolStrategy(size=layout["actors"])
    tokens = data.map_batches(stage, batch_size=BATCH_ROWS, num_cpus=ACTOR_CPUS, compute=actors)
    tokens.write_parquet(out, compression="zstd", ray_remote_args={"num_cpus": WRITE_CPUS})
    ray.shutdown()


def sample_object_store(address: str) -> None:
    """Print the peak of the bytes in the object stores of all nodes, once stdin closes."""
    import select

    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    state = get_state_from_address(address)
    peak = spilled = 0
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.25)[0]:
        used = spilled_now = 0
        for node in ray.nodes():
            stats = get_memory_info_reply(state, node["NodeManagerAddress"], node["NodeManagerPort"]).store_stats
            used += stats.object_store_bytes_used
            spilled_now += stats.spilled_bytes_total
        peak, spilled = max(peak, used), max(spilled, spilled_now)
    print(json.dumps({"peak_bytes": peak, "spilled_bytes": spilled}), flush=True)


@contextlib.contextmanager
def sampled(cluster: RayCluster, found: dict[str, Any]) -> Iterator[None]:
    environment = {**os.environ, **cluster.client_env}
    command = [sys.executable, __file__, SAMPLER, cluster.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.stdin.close()
        found.update(json.loads(process.stdout.readline()))


class Bench:
    """The folders, the tokenizer, and one timed command per side."""

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.root, self.options = root, options
        found = find_images(options.data, root)
        self.bytes_per_image = round(sum(path.stat().st_size for path in found) / len(found))
        self.few, self.many, self.tokenizer = root / "few", root / "many", root / "tok"
        replicate(found, self.few, options.images)
        replicate(found, self.many, TIMES * options.images)
        cli("fit-tokenizer", str(self.few), str(self.tokenizer), "--sample", "500")

    def tokenize(self, folder: Path, *more: str, env: dict[str, str] | None = None) -> float:
        out = self._fresh_out()
        started = time.perf_counter()
        command = [sys.executable, str(ROOT / "cli.py"), "tokenize", str(folder), str(out), "--tokenizer", str(self.tokenizer)]
        command += ["--shard-rows", str(self.options.shard_rows), "--quiet", *more]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        return time.perf_counter() - started

    def local(self, folder: Path) -> float:
        return self.tokenize(folder, "--workers", "2")

    def on_ray(self, cluster: RayCluster, folder: Path) -> float:
        return self.tokenize(folder, "--runner", "ray", "--address", cluster.address, env=cluster.client_env)

    def on_ray_data(self, cluster: RayCluster, layout: dict[str, int], folder: Path) -> float:
        out = self._fresh_out()
        started = time.perf_counter()
        command = [sys.executable, __file__, RAY_DATA, str(folder), str(out), str(self.tokenizer), cluster.address, json.dumps(layout)]
        env = {**os.environ, **cluster.client_env}
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env, timeout=HANGS_SECONDS)
        assert done.returncode == 0, done.stderr[-3000:]
        seconds = time.perf_counter() - started
        import pyarrow.dataset as ds

        rows, wanted = ds.dataset(out, format="parquet").count_rows(), sum(1 for _ in folder.iterdir())
        assert rows == wanted, f"Ray Data wrote {rows} rows of {wanted}"
        return seconds

    def cluster(self, cpus: int) -> RayCluster:
        return RayCluster(cpus=cpus, object_store_bytes=OBJECT_STORE_BYTES, env=ONE_THREAD)

    def _fresh_out(self) -> Path:
        out = self.root / "out"
        shutil.rmtree(out, ignore_errors=True)
        return out


def measure(bench: Bench) -> dict[str, Any]:
    count, load = bench.options.images, os.getloadavg()
    stores: dict[str, dict[str, Any]] = {}
    tried: dict[str, float] = {}
    bench.local(bench.few)  # warms byte code and page cache
    with bench.cluster(2) as cluster:
        bench.on_ray_data(cluster, FUSED, bench.few)  # starts Ray Data's own actors
        trials: dict[str, dict[str, list[float]]] = {name: {"few": [], "many": []} for name in LAYOUTS}
        for _ in range(bench.options.repeat):  # in turns: a single trial of each picked a slow layout on a noisy machine
            for name, layout in LAYOUTS.items():
                trials[name]["few"].append(bench.on_ray_data(cluster, layout, bench.few))
                trials[name]["many"].append(bench.on_ray_data(cluster, layout, bench.many))
        for name in LAYOUTS:
            tried[name] = rate(trials[name], count)
            print(f"Ray Data with {name}: {tried[name]} images/s", flush=True)
        best = max(tried, key=lambda name: tried[name])
        sides: dict[str, Callable[[Path], float]] = {
            "ours": lambda folder: bench.on_ray(cluster, folder),
            "ray_data": lambda folder: bench.on_ray_data(cluster, LAYOUTS[best], folder),
        }
        for side, run in sides.items():
            stores[side] = {}
            for name, folder in (("few", bench.few), ("many", bench.many)):
                found: dict[str, Any] = {}
                with sampled(cluster, found):
                    run(folder)
                stores[side].update({f"{key}_{name}": value for key, value in found.items()})
    seconds_of: dict[str, dict[str, list[float]]] = {}

    def time_both(side: str, run: Callable[[Path], float]) -> None:
        for name, folder in (("few", bench.few), ("many", bench.many)):
            seconds_of.setdefault(side, {"few": [], "many": []})[name].append(round(run(folder), 3))
        last = {name: values[-1:] for name, values in seconds_of[side].items()}
        print(f"{side}: {rate(last, count)} images/s, {last['few'][0]:.1f} s for {count}", flush=True)

    for _ in range(bench.options.repeat):
        time_both("local", bench.local)
        with bench.cluster(2) as cluster:
            here = cluster
            time_both("ray", lambda folder, here=here: bench.on_ray(here, folder))
            time_both("ray_data", lambda folder, here=here: bench.on_ray_data(here, LAYOUTS[best], folder))
            time_both("fused_ray_data", lambda folder, here=here: bench.on_ray_data(here, FUSED, folder))
        with bench.cluster(1) as cluster:
            here = cluster
            time_both("one_node", lambda folder, here=here: bench.on_ray(here, folder))
            cluster.add_node()
            time_both("two_nodes", lambda folder, here=here: bench.on_ray(here, folder))
    rates = {side: rate(seconds, count) for side, seconds in seconds_of.items()}
    assert all(rates.values()), f"the runs are too short for this machine, so give more --images: {seconds_of}"
    ratios = {
        "ray_over_local": rates["ray"] / rates["local"],
        "two_nodes_over_one": rates["two_nodes"] / rates["one_node"],
        "over_ray_data": rates["ray"] / rates["ray_data"],
    }
    whole = {side: round(statistics.median(seconds["few"]), 2) for side, seconds in seconds_of.items()}
    return {
        "name": "ray_scaling",
        "ratio": round(min(ratios[name] / bar for name, bar in BARS.items()), 3),
        "limit": 1,
        **{name: round(value, 3) for name, value in ratios.items()},
        "bars": BARS,
        "over_fused_ray_data": round(rates["ray"] / rates["fused_ray_data"], 3),
        "images_per_second": rates,
        "whole_seconds": whole,
        "whole_over_ray_data": round(whole["ray_data"] / whole["ray"], 3),
        "object_store": stores,
        "ray_data_layout": {"name": best, **LAYOUTS[best]},
        "ray_data_layouts_tried": tried,
        "images": count,
        "bytes_per_image": bench.bytes_per_image,
        "shard_rows": bench.options.shard_rows,
        "repeats": bench.options.repeat,
        "cpu_count": os.cpu_count(),
        "load_average_before": [round(value, 2) for value in load],
        "seconds": seconds_of,
    }


def rate(seconds: dict[str, list[float]], count: int) -> float:
    """Return marginal images per second; 0 where the runs are too short for this machine: the long run took no longer than the short
    one."""
    more = statistics.median(seconds["many"]) - statistics.median(seconds["few"])
    return round((TIMES - 1) * count / more, 1) if more > 0 else 0.0


def main() -> None:
    if sys.argv[1:2] == [RAY_DATA]:
        folder, out, tokenizer, address, layout = sys.argv[2:]
        ray_data(folder, out, tokenizer, address, json.loads(layout))
        return
    if sys.argv[1:2] == [SAMPLER]:
        sample_object_store(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="folder with images; default: sample images beside the repository, else generated")
    parser.add_argument("--images", type=int, default=2000, help="N; the runs have N and 5 N images")
    parser.add_argument("--shard-rows", type=int, default=250)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ray-scaling-"))
    try:
        result = measure(Bench(options, root))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
