"""What the benchmarks say about the machine they ran on."""

import platform
import time
from pathlib import Path
from typing import Any

from ns_ray.compute import cpus


def machine() -> str:
    """Processor and number of CPUs, such as "AMD EPYC, 2 CPUs"."""
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name}, {cpus()} CPUs"


def forward_rates(model: Any) -> dict[str, float]:
    """Images/s of a timm model's forward pass on the CPU in bf16 and in fp32, channels last: the
    better of two batches after a warm-up. Without bf16 instructions the former is ten times less.
    """
    import torch

    size = int(model.pretrained_cfg["input_size"][-1])
    batch = torch.randn(64, 3, size, size).to(memory_format=torch.channels_last)
    rates = {}
    for precision in ("bf16", "fp32"):
        seconds = []
        half = precision == "bf16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            for _ in range(3):
                start = time.perf_counter()
                model(batch)
                seconds.append(time.perf_counter() - start)
        rates[precision] = len(batch) / min(seconds[1:])
    return rates
