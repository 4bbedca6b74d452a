"""What the benchmarks say about the machine they ran on."""

import platform
from pathlib import Path

from ns_ray.resources import cpus


def machine() -> str:
    """Processor and number of CPUs, such as "AMD EPYC, 2 CPUs"."""
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name}, {cpus()} CPUs"
