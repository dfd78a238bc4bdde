"""What does an actor cost beside the network of its tokenizer? Compares the images per second of an actor on pre-decoded images with those
of a bare forward loop, and shows the bottleneck that the report names for real JPEGs.

    python infra/bench/actor_overhead.py --data DIR

The tokenizer has the encoder of ViT-VQGAN small, randomly initialised: 8 layers, 512 wide, 8 heads, 8 x 8 patches, 8,192 codes of 32
values, 256 x 256 pixels; bf16 on a CUDA device, where the next batch is copied from pinned memory while this one is encoded. Without a CUDA
device (`device` in the result names the device) the same network runs on smaller images (--size), sized for a CPU.

The bare loop is a Ray actor of the same size. It holds its batches on the device and only computes the network and the ids. Our side is
the real actor, driver, plan, shards and commits, with synthetic decoded batches in place of decoding. The actor measures its rate from the
end of the --warm-up batches to the end of its last shard, publishing included. The sides take turns and medians count. `ratio` is our rate
over the loop's rate and should be at least 0.95. `cpu_ratio` compares CPU per image, which other work on the machine disturbs least. Then
real JPEGs (DIR, or else generated ones) go through the same actor with --decode-threads: `jpeg` holds the bottleneck that the run reports,
and how many times as many images the bare loop would take. On a CPU the network is the limit by far, so there the default tokenizer is
measured the same way too.

Shapes: B images, H and W pixels, C = 3 channels, L sites, K codes, D values of a code.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
from tokenize_overhead import find_images, replicate  # noqa: E402

from tokenshards.pipeline.config import PlanConfig, RayConfig, RunConfig  # noqa: E402
from tokenshards.pipeline.conversion.request import TokenizeRequest  # noqa: E402
from tokenshards.pipeline.conversion.tokenize import Conversion  # noqa: E402
from tokenshards.pipeline.job.batches import DecodedBatch  # noqa: E402
from tokenshards.pipeline.job.decoded_rows import DecodedRow  # noqa: E402
from tokenshards.pipeline.job.job_spec import JobSpec  # noqa: E402
from tokenshards.pipeline.planning.plan import read_shard_rows  # noqa: E402
from tokenshards.pipeline.records import TokenBatch  # noqa: E402
from tokenshards.pipeline.reports.terminal import TerminalReporter  # noqa: E402
from tokenshards.pipeline.runners.ray_actor import ShardActor  # noqa: E402
from tokenshards.pipeline.runners.shard_server import ShardServer  # noqa: E402
from tokenshards.pipeline.storage.store import Store  # noqa: E402
from tokenshards.pipeline.tokenizers.base import (  # noqa: E402
    CodebookInfo,
    DecodeNotSupported,
    Images,
    Layout,
    Preprocess,
    Tables,
    TokenizerSpec,
    check_images,
    codebook_sha256,
)
from tokenshards.pipeline.tokenizers.config import FitConfig  # noqa: E402
from tokenshards.pipeline.tokenizers.directory import save_tokenizer  # noqa: E402
from tokenshards.pipeline.tokenizers.registry import families, register_family  # noqa: E402

FAMILY = "bench-vit-vqgan-small"
WIDTH, LAYERS, HEADS, MLP, PATCH, CODES, CODE_WIDTH = 512, 8, 8, 2048, 8, 8192, 32
BATCH_ROWS = PlanConfig().batch_rows
MARKS = "ACTOR_OVERHEAD_MARKS"
BAR = 0.95


def build_encoder(size: int, codebook_KD: np.ndarray) -> Any:
    """Return the module: uint8 [B, size, size, 3] in, ids [B, L] out."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.to_qkv, self.to_out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(nn.Linear(WIDTH, MLP), nn.Tanh(), nn.Linear(MLP, WIDTH))

        def forward(self, sites_BLD: Any) -> Any:
            qkv = self.to_qkv(self.norm_1(sites_BLD)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
            sites_BLD = sites_BLD + self.to_out(attended)
            return sites_BLD + self.mlp(self.norm_2(sites_BLD))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.position = nn.Parameter(0.02 * torch.randn(1, (size // PATCH) ** 2, WIDTH))
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.norm, self.pre_quant = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CODE_WIDTH)
            self.register_buffer("codes_DK", functional.normalize(torch.from_numpy(codebook_KD), dim=1).T.contiguous())

        def forward(self, images_BHWC: Any) -> Any:
            dtype = self.position.dtype
            pixels = images_BHWC.permute(0, 3, 1, 2).to(dtype) / 255  # stays channels_last in memory
            sites_BLD = self.patches(pixels).flatten(2).transpose(1, 2) + self.position
            vectors = functional.normalize(self.pre_quant(self.norm(self.blocks(sites_BLD))), dim=-1)
            return (vectors @ self.codes_DK).argmax(-1)

    torch.manual_seed(0)
    return Encoder().eval().requires_grad_(False)


class VitVqgan:
    """The network as a tokenizer. The first batch builds the network, so that a driver never has it."""

    def __init__(self, codebook_KD: np.ndarray, size: int, compiled: bool) -> None:
        self._codebook_KD, self._size, self._compiled = codebook_KD, size, compiled
        side = size // PATCH
        self.spec = TokenizerSpec(
            family=FAMILY,
            layout=Layout(kind="grid", grid=(side, side), sites=side * side),
            vocabulary=(len(codebook_KD),),
            preprocess=Preprocess(size=size),
            codebook=CodebookInfo(sha256=codebook_sha256(self.codebook()), dims=(CODE_WIDTH,), metric="cosine"),
            config={"compiled": compiled},
        )
        self._marks = os.environ.get(MARKS)

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        kind: type[Any] = OverlappedVitVqgan if device_name() == "cuda" else VitVqgan
        tokenizer: Self = kind(tables["level_0"], spec.preprocess.size, spec.config["compiled"])
        return tokenizer

    def codebook(self) -> dict[str, Any]:
        return {"level_0": self._codebook_KD}

    def decode(self, tokens: TokenBatch) -> Images:
        raise DecodeNotSupported("this network is random and has no decoder")

    @cached_property
    def network(self) -> Callable[[Any], Any]:
        """Pixels on the device in, ids on the device out."""
        import torch

        module = build_encoder(self._size, self._codebook_KD)
        if device_name() == "cuda":
            module = module.to("cuda", torch.bfloat16, memory_format=torch.channels_last)
        forward = torch.compile(module) if self._compiled else module

        def run(images_BHWC: Any) -> Any:
            with torch.inference_mode():
                return forward(images_BHWC)

        return run

    def encode(self, images_BHWC: Images) -> TokenBatch:
        import torch

        check_images(images_BHWC, self.spec)
        return self._tokens(self.network(torch.from_numpy(images_BHWC).to(device_name())).cpu().numpy())

    def _tokens(self, ids_BL: np.ndarray) -> TokenBatch:
        mark(self._marks, len(ids_BL))
        return TokenBatch(ids_BL.astype(self.spec.id_dtype)[:, :, None])


class OverlappedVitVqgan(VitVqgan):
    """On CUDA: while a batch is encoded, a second stream copies the next batch to pinned memory and to the device."""

    def __init__(self, codebook_KD: np.ndarray, size: int, compiled: bool) -> None:
        super().__init__(codebook_KD, size, compiled)
        self._pinned: list[Any] = []

    @cached_property
    def _copies(self) -> Any:
        import torch

        return torch.cuda.Stream()

    def begin(self, images_BHWC: Images) -> Callable[[], tuple[TokenBatch, float]]:
        import torch

        check_images(images_BHWC, self.spec)
        network, compute = self.network, torch.cuda.default_stream()
        fits = [held for held in self._pinned if held.shape == images_BHWC.shape]
        staged = fits[0] if fits else torch.empty(images_BHWC.shape, dtype=torch.uint8, pin_memory=True)
        self._pinned = [held for held in self._pinned if held is not staged]
        staged.numpy()[...] = images_BHWC
        started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self._copies):
            on_device = staged.to("cuda", non_blocking=True)
        with torch.cuda.stream(compute):
            compute.wait_stream(self._copies)
            on_device.record_stream(compute)
            started.record()
            ids = network(on_device)
            ids_here = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
            ids_here.copy_(ids, non_blocking=True)
            ended.record()

        def finish() -> tuple[TokenBatch, float]:
            ended.synchronize()
            self._pinned.append(staged)  # an append is atomic
            return self._tokens(ids_here.numpy()), started.elapsed_time(ended) / 1e3

        return finish


def device_name() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def mark(file: str | None, images: int) -> None:
    """Write to a file that this process has finished so many images: 0 at the end of a shard."""
    if file:
        with open(file, "a") as marks:
            marks.write(f"{time.perf_counter()} {time.process_time()} {images}\n")


def register() -> None:
    if FAMILY not in families():
        register_family(FAMILY, "actor_overhead:VitVqgan")


class NetworkActor(ShardActor):
    """The real actor with one more family of tokenizers. It warms the network up and marks the end of each shard."""

    def _open_server(self, job: JobSpec) -> ShardServer:
        from actor_overhead import register

        register()
        return self._warm(super()._open_server(job))

    def _warm(self, server: ShardServer) -> ShardServer:
        from actor_overhead import predecoded

        tokenizer = server.context.tokenizer  # building and compiling at the first batch would not matter in a run of hours
        tokenizer.encode(predecoded(tokenizer.spec.preprocess.size)[0])
        return server

    def serve(self, text: str, decode_cpus: int = 0) -> str:
        from actor_overhead import MARKS, mark

        reply = super().serve(text, decode_cpus)
        mark(os.environ.get(MARKS), 0)
        return reply


class PredecodedServer(ShardServer):
    """A server without decoding: every batch has the same pixels, under the names of the plan."""

    def serve(self, command: dict[str, Any], on_progress: Callable[[Any], None], batches: Any = None) -> dict[str, Any]:
        return super().serve(command, on_progress, self._predecoded)

    @cached_property
    def _pixels(self) -> list[Images]:
        size = self.context.plan.spec.preprocess.size
        return predecoded(size)

    def _predecoded(self, shard: int, killers: frozenset[str]) -> Generator[DecodedBatch]:
        rows = list(read_shard_rows(self.context.out, self.context.plan, shard))
        for number, first in enumerate(range(0, len(rows), BATCH_ROWS)):
            taken = rows[first : first + BATCH_ROWS]
            made = [DecodedRow(row.sample_id, row.label, row.meta, 500, 375, row.size) for row in taken]
            size = sum(row.size for row in taken)
            yield DecodedBatch(self._pixels[number % 2], list(range(len(made))), made, inputs=len(made), bytes_in=size)


class PredecodedActor(NetworkActor):
    def _open_server(self, job: JobSpec) -> ShardServer:
        from actor_overhead import PredecodedServer, register

        register()
        return self._warm(PredecodedServer(job, decode_threads=self._decode_threads))


class BareLoop:
    """The other side: batches that are already on the device, the network, and one copy of the ids back at the end."""

    def run(self, tokenizer_folder: str, batches: int, warm_up: int) -> tuple[float, float]:
        """Return images per second, and CPU milliseconds per image."""
        import torch
        from actor_overhead import BATCH_ROWS, device_name, predecoded, register

        from tokenshards.pipeline.storage.store import Store
        from tokenshards.pipeline.tokenizers.directory import load_tokenizer

        register()
        tokenizer: Any = load_tokenizer(Store(tokenizer_folder), "")
        pixels = [torch.from_numpy(batch).to(device_name()) for batch in predecoded(tokenizer.spec.preprocess.size)]

        def loop(count: int) -> None:
            ids = [tokenizer.network(pixels[number % 2]) for number in range(count)]
            ids[-1].cpu()

        loop(warm_up)
        started, cpu = time.perf_counter(), time.process_time()
        loop(batches)
        images = batches * BATCH_ROWS
        return round(images / (time.perf_counter() - started), 2), round(1e3 * (time.process_time() - cpu) / images, 3)


def predecoded(size: int) -> list[Images]:
    return [np.random.default_rng(seed).integers(0, 256, (BATCH_ROWS, size, size, 3), np.uint8) for seed in range(2)]


def marked_rate(marks: Path, warm_up: int) -> tuple[float, float]:
    """Return images per second, and CPU milliseconds per image, from the end of the warm-up batches to the end of the last shard."""
    lines = [tuple(map(float, line.split())) for line in marks.read_text().splitlines()]
    batches = [line for line in lines if line[2]][1:]  # without the batch that warmed the network up
    first, last = batches[warm_up - 1], lines[-1]
    images = sum(images for _, _, images in batches[warm_up:])
    return round(images / (last[0] - first[0]), 2), round(1e3 * (last[1] - first[1]) / images, 3)


class Bench:
    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.options, self.root, self.runs = options, root, 0
        self.cuda = device_name() == "cuda"
        self.marks = root / "marks"
        found = find_images(options.data, root)
        replicate(found, root / "predecoded", options.images)
        replicate(found, root / "jpegs", options.jpegs)
        register()
        codebook_KD = np.random.default_rng(0).standard_normal((CODES, CODE_WIDTH), np.float32)
        save_tokenizer(VitVqgan(codebook_KD, options.size, options.compile), Store(str(root / "network")))

    def actor(self, threads: int) -> dict[str, Any]:
        return {"num_cpus": threads, "num_gpus": 1 if self.cuda else 0}

    def convert(self, folder: str, actor_class: type[ShardActor], threads: int, tokenizer: str | None) -> Any:
        """Run a whole conversion with one actor; return its usage. The actor notes its marks."""
        from tokenshards.pipeline.runners.ray_driver import RayRunner

        self.marks.unlink(missing_ok=True)
        self.runs += 1
        run = RunConfig(workers=1)
        request = TokenizeRequest(
            source_url=str(self.root / folder),
            out_url=str(self.root / f"out{self.runs}"),
            tokenizer_url=tokenizer,
            fit=FitConfig(sample=500),
            plan=PlanConfig(shard_rows=self.options.shard_rows),
            run=run,
        )
        cluster = RayConfig(max_actors=1, cpus_per_actor=threads, gpus_per_actor=1 if self.cuda else 0, decode="local")
        runner = RayRunner(run, cluster, actor_class=actor_class)
        outcome = Conversion(request, TerminalReporter(quiet=True), runner).run()
        assert outcome.images == len(list((self.root / folder).iterdir())), outcome.images
        shutil.rmtree(self.root / f"out{self.runs}")
        return outcome.usage

    def bare(self) -> tuple[float, float]:
        import ray

        actor = ray.remote(**self.actor(self.options.cpus))(BareLoop).remote()
        batches = max(1, self.options.images // BATCH_ROWS - self.options.warm_up)
        found: tuple[float, float] = ray.get(actor.run.remote(str(self.root / "network"), batches, self.options.warm_up))
        ray.kill(actor)
        return found

    def predecoded(self) -> tuple[float, float]:
        self.convert("predecoded", PredecodedActor, self.options.cpus, str(self.root / "network"))
        return marked_rate(self.marks, self.options.warm_up)

    def jpegs(self, tokenizer: str | None) -> dict[str, Any]:
        usage = self.convert("jpegs", NetworkActor, self.options.decode_threads, tokenizer)
        busy = {stage: round(share, 4) for stage, share in usage.busy_shares().items()}
        return {
            "bottleneck": usage.bottleneck(),
            "busy_shares": busy,
            "images_per_second": round(self.options.jpegs / usage.worker_seconds, 1),
        }


def measure(bench: Bench) -> dict[str, Any]:
    import ray

    options, load = bench.options, os.getloadavg()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).resolve().parent)])
    os.environ.update({MARKS: str(bench.marks), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"})
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(
        num_cpus=max(options.cpus, options.decode_threads),
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=str(bench.root / "r"),
    )
    try:
        bare, ours = [], []
        for repeat in range(options.repeat):
            bare.append(bench.bare())
            ours.append(bench.predecoded())
            print(f"repeat {repeat}: images/s and CPU ms per image of the bare loop {bare[-1]}, of the actor {ours[-1]}", flush=True)
        bare_rate, bare_cpu = map(statistics.median, zip(*bare, strict=True))
        our_rate, our_cpu = map(statistics.median, zip(*ours, strict=True))
        jpeg = {FAMILY: bench.jpegs(str(bench.root / "network"))}
        jpeg[FAMILY]["bare_loop_over_jpeg"] = round(bare_rate / jpeg[FAMILY]["images_per_second"], 2)
        if not bench.cuda:
            jpeg["patch-kmeans (the default)"] = bench.jpegs(None)
    finally:
        ray.shutdown()
    return {
        "name": "actor_overhead",
        "ratio": round(our_rate / bare_rate, 3),
        "limit": BAR,
        "cpu_ratio": round(bare_cpu / our_cpu, 3),
        "device": cuda_name() if bench.cuda else f"cpu, {options.cpus} threads: no CUDA device, so images of {options.size} pixels",
        "network": f"ViT-VQGAN small encoder, random, {options.size} px, batches of {BATCH_ROWS}, {'bf16' if bench.cuda else 'float32'}",
        "compiled": options.compile,
        "bare_images_per_second": bare_rate,
        "actor_images_per_second": our_rate,
        "runs": {"columns": "images/s, CPU ms per image", "bare": bare, "actor": ours},
        "jpeg": jpeg,
        "decode_threads": options.decode_threads,
        "images": options.images,
        "jpegs": options.jpegs,
        "shard_rows": options.shard_rows,
        "repeats": options.repeat,
        "cpu_count": os.cpu_count(),
        "load_average_before": [round(value, 2) for value in load],
    }


def cuda_name() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def main() -> None:
    cuda, cpus = device_name() == "cuda", os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with images; else the sample images beside the repository, else generated")
    parser.add_argument("--images", type=int, default=100_000 if cuda else 1024, help="pre-decoded images of one run")
    parser.add_argument("--jpegs", type=int, default=40_000 if cuda else 1024, help="real images of the run that decodes")
    parser.add_argument("--size", type=int, default=256 if cuda else 64, help="side of an image in pixels")
    parser.add_argument("--shard-rows", type=int, default=5_000 if cuda else 256)
    parser.add_argument("--cpus", type=int, default=min(4, cpus) if cuda else 1, help="CPUs of the actor and of the loop")
    parser.add_argument("--decode-threads", type=int, default=cpus, help="CPUs of the actor that decodes, a thread each")
    parser.add_argument("--warm-up", type=int, default=20 if cuda else 2, help="batches that do not count")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ao-", dir="/tmp"))  # short: Ray puts sockets of 107 characters below it
    try:
        result = measure(Bench(options, root))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
