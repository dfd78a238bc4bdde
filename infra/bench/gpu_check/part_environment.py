"""The machine: versions, missing packages, and measured rates of matrix products and copies."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Report, Skipped, bf16_peak_tflops, seconds_of

NEEDED = ("torch", "numpy", "pyarrow", "typer", "rich", "fsspec", "safetensors", "filelock", "PIL", "pytest", "hypothesis")
WANTED = (
    "timm", "torchvision", "triton", "diffusers", "vector_quantize_pytorch", "ray", "zstandard", "s3fs", "pytest_timeout", "sklearn",
    "matplotlib",
)  # fmt: skip
NAMES = {"PIL": "pillow", "sklearn": "scikit-learn"}


def version(module: str) -> str | None:
    """Return the version of an installed package; None where it is missing."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(NAMES.get(module, module.replace("_", "-")))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def torch_facts() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    if not torch.cuda.is_available():
        return {**facts, "device": f"cpu {platform.machine()}"}
    device = torch.cuda.get_device_properties(0)
    return {
        **facts,
        "device": device.name,
        "devices": torch.cuda.device_count(),
        "capability": list(torch.cuda.get_device_capability(0)),
        "memory_gb": round(device.total_memory / 1e9, 1),
        "multiprocessors": device.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "tf32_convolutions_by_default": bool(torch.backends.cudnn.allow_tf32),
    }


def measured_peaks(small: bool) -> dict[str, float]:
    """Return the best rate of some square products on random numbers, and the bytes per second of a copy within the device."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side, found = 256 if small else 8192, {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        for _ in range(3):
            a @ b
        best = min(seconds_of(lambda a=a, b=b: a @ b) for _ in range(10))
        found[f"{name}_tflops"] = float(f"{2 * side**3 / best / 1e12:.4g}")
    source = torch.zeros(1 << (22 if small else 32), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    found["copy_gb_per_second"] = round(2 * source.numel() / min(seconds_of(lambda: target.copy_(source)) for _ in range(5)) / 1e9, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    report = Report(options.out)
    packages = {module: version(module) for module in (*NEEDED, *WANTED)}
    report.add(
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)),
        packages=packages,
        missing=[module for module, found in packages.items() if found is None],
    )
    with report.step("packages"):
        lacking = [NAMES.get(module, module) for module in NEEDED if packages[module] is None]
        if lacking:
            raise RuntimeError(
                f"{sys.executable} lacks {', '.join(lacking)}; choose another with PYTHON=…, or bring wheels with --wheels DIR"
            )
    if packages["torch"] is None:
        return
    with report.step("torch"):
        report.add(**torch_facts())
        if not options.cpu and report.values["cuda"] is None:
            raise RuntimeError("this torch was built without CUDA; expected one with it, or --cpu")
        if not options.cpu and report.values["device"].startswith("cpu "):
            raise RuntimeError("torch sees no CUDA device; expected one, or --cpu")
    with report.step("nvidia-smi"):
        if options.cpu or shutil.which("nvidia-smi") is None:
            raise Skipped("there is no nvidia-smi on the path" if not options.cpu else "--cpu")
        fields = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,power.limit"
        report.add(nvidia_smi=subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        ).stdout.strip())  # fmt: skip
    with report.step("peaks"):
        report.add(measured=measured_peaks(options.cpu), bf16_peak_tflops=bf16_peak_tflops(str(report.values.get("device"))))


if __name__ == "__main__":
    main()
