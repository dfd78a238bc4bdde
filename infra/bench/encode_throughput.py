"""How close does a neural tokenizer come to the peak of the device? ViT-VQGAN small and base, random weights, images in memory.

    python infra/bench/encode_throughput.py                 # on a GPU: --dtype bfloat16 --batch 64

`peak_tflops` is the best of square matrix products of several sizes in the same dtype, measured in the same minutes. `tflops` counts the
multiplications and additions of the network (linear layers, attention, patches) and of the search. `share` is `tflops` over the peak; its
bar is 0.75 for base on a CPU in float32 and 0.4 on a GPU in bfloat16. `over_bare` compares `VitVqgan.encode`, from uint8 pixels to ids as
a shard stores them, with the bare network on pixels that are already on the device; the two take turns, and the bar is 0.95. `ratio` is
the smallest of all figures over their bars.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tokenshards.pipeline.malloc import keep_freed_memory  # noqa: E402
from tokenshards.pipeline.tokenizers.config import ImportConfig  # noqa: E402
from tokenshards.pipeline.tokenizers.networks.network import SLOTS, choose_device, scaled, to_device  # noqa: E402
from tokenshards.pipeline.tokenizers.networks.weights import load_into  # noqa: E402
from tokenshards.pipeline.tokenizers.published.vit_vqgan import VitVqgan  # noqa: E402

SIZES = {"tiny": (64, 2, 1, 128), "small": (512, 8, 8, 2048), "base": (768, 12, 12, 3072)}
"""Width, layers, heads, width of the MLP. `tiny` is our own, for a quick test of this script."""
SIDE, PATCH, CODES, VALUES = 32, 8, 8192, 32
PEAK_SIZES = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192)}
SHARE_BARS = {"cpu": 0.75, "cuda": 0.4}
BARE_BAR = 0.95


def random_checkpoint(width: int, layers: int, heads: int, mlp: int, side: int = SIDE) -> dict[str, Tensor]:
    """Return the tensors, in the published layout, that an encoder of side x side patches needs."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / float(np.prod(shape[1:])) ** 0.5

    state = {
        "encoder.en_pos_embedding": torch.randn(1, side * side, width, generator=generator),
        "encoder.to_patch_embedding.0.weight": weight(width, 3, PATCH, PATCH),
        "encoder.to_patch_embedding.0.bias": torch.zeros(width),
        "encoder.transformer.norm.weight": torch.ones(width),
        "encoder.transformer.norm.bias": torch.zeros(width),
        "pre_quant.weight": weight(VALUES, width),
        "pre_quant.bias": torch.zeros(VALUES),
        "quantizer.embedding.weight": torch.randn(CODES, VALUES, generator=generator),
    }
    for layer in range(layers):
        name = f"encoder.transformer.layers.{layer}"
        for part in (0, 1):
            state[f"{name}.{part}.norm.weight"], state[f"{name}.{part}.norm.bias"] = torch.ones(width), torch.zeros(width)
        state[f"{name}.0.fn.to_qkv.weight"] = weight(3 * heads * 64, width)
        state[f"{name}.0.fn.to_out.weight"], state[f"{name}.0.fn.to_out.bias"] = weight(width, heads * 64), torch.zeros(width)
        state[f"{name}.1.fn.net.0.weight"], state[f"{name}.1.fn.net.0.bias"] = weight(mlp, width), torch.zeros(mlp)
        state[f"{name}.1.fn.net.2.weight"], state[f"{name}.1.fn.net.2.bias"] = weight(width, mlp), torch.zeros(width)
    return state


def flops_of(width: int, layers: int, heads: int, mlp: int) -> tuple[float, float]:
    """Return multiplications and additions per image: of the network, and of the search."""
    sites, inner = SIDE * SIDE, heads * 64
    layer = sites * (4 * width * inner + 2 * width * mlp) + 2 * sites * sites * inner
    network = layers * layer + sites * width * (3 * PATCH * PATCH + VALUES)
    return 2.0 * network, 2.0 * sites * CODES * VALUES


def finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any]) -> float:
    finish()
    started = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - started


def peak_tflops(device: torch.device, dtype: torch.dtype, repeat: int) -> float:
    best = 0.0
    for side in PEAK_SIZES[device.type]:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds_of(lambda a=a, b=b: a @ b)
        best = max(best, 2 * side**3 / min(seconds_of(lambda a=a, b=b: a @ b) for _ in range(repeat)) / 1e12)
    return best


def measure(size: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return images/s of the tokenizer and of its bare network, measured in turns."""
    state = random_checkpoint(*SIZES[size])
    tokenizer = VitVqgan.from_checkpoint(state, ImportConfig(dtype=options.dtype, decoder=False), decoder="bench", where=size)
    bare = load_into(
        tokenizer.build_encoder(),
        {key: value for key, value in state.items() if "quantizer" not in key},
        size,
        names=tokenizer.published_name,
    ).to(device)
    images = np.random.default_rng(0).integers(0, 256, (options.batch, 256, 256, 3), dtype=np.uint8)
    pixels = scaled(to_device(images), (0.0, 1.0))
    dtype = getattr(torch, options.dtype)
    peaks = [peak_tflops(device, dtype, options.repeat)]

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            for part in torch.split(pixels, options.slots):
                bare(part)

    def encode() -> None:
        tokenizer.encode(images)

    encode()
    forward()
    rates: dict[str, list[float]] = {"encode": [], "bare": []}
    for _ in range(options.repeat):
        rates["encode"].append(options.batch / seconds_of(encode))
        rates["bare"].append(options.batch / seconds_of(forward))
    peaks.append(peak_tflops(device, dtype, options.repeat))
    network, search = flops_of(*SIZES[size])
    rate, peak = statistics.median(rates["encode"]), max(peaks)
    tflops = rate * (network + search) / 1e12
    return {
        "images_per_second": round(rate, 3),
        "bare_images_per_second": round(statistics.median(rates["bare"]), 3),
        "over_bare": round(rate / statistics.median(rates["bare"]), 3),
        "tflops": round(tflops, 4),
        "peak_tflops": round(peak, 4),
        "share": round(tflops / peak, 3),
        "bare_share": round(statistics.median(rates["bare"]) * network / 1e12 / peak, 3),
        "gflop_per_image": round((network + search) / 1e9, 1),
        "runs": {side: [round(value, 3) for value in values] for side, values in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=SLOTS, help="images encoded at once, as in the batches of a plan")
    parser.add_argument("--slots", type=int, default=SLOTS, help="images that the bare network gets at once")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES], default=["small", "base"], help="the share of the last one counts")
    parser.add_argument("--threads", type=int, help="threads of torch", default=None)
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()  # for both sides, as in the workers of `tokenize`
    load, device = os.getloadavg(), choose_device()
    found = {size: measure(size, options, device) for size in options.sizes}
    bars = [found[options.sizes[-1]]["share"] / SHARE_BARS[device.type], *(entry["over_bare"] / BARE_BAR for entry in found.values())]
    report = {
        "name": "encode_throughput",
        "ratio": round(min(bars), 3),
        "limit": 1,
        **found,
        "share_bar": SHARE_BARS[device.type],
        "bare_bar": BARE_BAR,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "dtype": options.dtype,
        "batch": options.batch,
        "repeats": options.repeat,
        "cpu_count": os.cpu_count(),
        "load_average_before": [round(value, 2) for value in load],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
