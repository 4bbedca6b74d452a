"""What the benchmarks say about the machine they ran on."""

import csv
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ns_ray import __version__
from ns_ray.compute import cpus

INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bf16",
    "amx_bf16": "AMX",
    "asimd": "NEON",
    "sve": "SVE",
}
"""Those that decide how fast networks are, by their names in /proc/cpuinfo."""

PACKAGES = ("torch", "ray", "openvino", "pyarrow", "pillow")


def machine() -> str:
    """Processor, instruction sets, number of CPUs and versions, such as "AMD EPYC (AVX2, AVX-512),
    2 CPUs; Python 3.11, torch 2.14.1"."""
    info = Path("/proc/cpuinfo")
    told: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    name = told.get("model name") or platform.processor() or platform.machine()
    flags = told.get("flags", told.get("Features", "")).split()
    sets = ", ".join(short for flag, short in INSTRUCTIONS.items() if flag in flags)
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return f"{name}{f' ({sets})' if sets else ''}, {cpus()} CPUs; {', '.join(found)}"


HISTORY = Path(__file__).parent / "history.csv"
"""Ratios of each release, to be looked at before the next."""


def record(benchmark: str, ratios: Mapping[str, float], history: Path = HISTORY) -> None:
    """Add a line for each ratio of a run; only sides of the same run are compared.

    Args:
        benchmark: the command, without its folder.
        ratios: by what they are of.
        history: date, release, benchmark, ratio, value, machine.
    """
    new = not history.exists()
    with history.open("a", newline="") as file:
        lines = csv.writer(file)
        if new:
            lines.writerow(["date", "release", "benchmark", "ratio", "value", "machine"])
        for name, value in ratios.items():
            today = datetime.now(tz=UTC).date().isoformat()
            lines.writerow([today, __version__, benchmark, name, f"{value:.2f}", machine()])


def forward_rates(model: Any) -> dict[str, float]:
    """Images/s of a timm model's forward pass on the CPU in fp32 and in bf16, channels last: the
    better of two batches after a warm-up. Without bf16 instructions the latter is ten times less,
    and a few images tell that.
    """
    import torch

    size = int(model.pretrained_cfg["input_size"][-1])
    batch = torch.randn(64, 3, size, size).to(memory_format=torch.channels_last)
    rates: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        measured = []
        half = precision == "bf16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            for images in (batch[:4], batch[:4], batch, batch):
                start = time.perf_counter()
                model(images)
                measured.append(len(images) / (time.perf_counter() - start))
                if len(measured) == 2 and 3 * measured[1] < rates.get("fp32", 0.0):
                    break
        rates[precision] = max(measured[2:] or measured[1:])
    return rates
