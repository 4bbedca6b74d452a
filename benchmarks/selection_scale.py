"""How long selection takes, and how much memory, for millions of pseudo-labels.

    python benchmarks/selection_scale.py --rows 5,10,20

Writes label files (key, label, confidence: what selection reads) of 1,000 classes of very
different sizes, a third of the confidences exactly 1, and selects from them in Ray tasks on this
machine. Time should grow with the rows, memory should not. Each row count is measured in a process
of its own. Prints a Markdown table.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from ns_ray import store
from ns_ray.compute import resources
from ns_ray.config import SelectConfig
from ns_ray.store import PseudoLabels, open_labels, part_name

CLASSES = 1000
MIB = 2**20


def write_labels(folder: str, rows: int, per_file: int) -> PseudoLabels:
    """Published pseudo-labels without their probabilities; class sizes fall as 1 / rank."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, CLASSES + 1)
    names = []
    for index, start in enumerate(range(0, rows, per_file)):
        n = min(per_file, rows - start)
        confidence = np.where(rng.random(n) < 1 / 3, 1, rng.beta(2, 1, n)).astype(np.float32)
        table = pa.table(
            {
                "key": [f"pile/{start + i:012d}.jpg" for i in range(n)],
                "label": rng.choice(CLASSES, n, p=shares / shares.sum()).astype(np.int32),
                "confidence": confidence,
            }
        )
        names.append(part_name(f"shard-{index:05d}", "bench0"))
        store.write_table(store.join(folder, names[-1]), table, row_group_size=per_file)
    store.publish(
        folder,
        stage="label",
        fingerprint="bench0",
        files=names,
        facts={"corpus": "-", "classes": [f"class-{i}" for i in range(CLASSES)], "rows": rows},
        inputs={},
        seconds=0,
    )
    return open_labels(folder)


class Peak:
    """Watches the Ray workers below this process until stopped: the most private memory that one
    of them had, in MiB."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        self.mib = max(self.mib, process.memory_full_info().uss / MIB)
                except psutil.Error:  # it has just ended
                    continue

    def stop(self) -> float:
        """The peak so far."""
        self._stopped.set()
        self._thread.join()
        return self.mib


def measure(rows: int, per_file: int, cpus: int) -> dict[str, float]:
    """Select from that many rows; seconds, and MiB of the driver and of the largest task."""
    import ray

    from ns_ray.compute import tasks
    from ns_ray.selection import select

    tasks.TASK = 0.0  # Ray tasks for any number of rows
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(  # so that the driver's peak is not that of writing the labels
            [*again(rows, per_file), "--write", folder], check=True
        )
        labels = open_labels(folder)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
        peak, start = Peak(), time.monotonic()
        chosen = select(SelectConfig(), labels, seed=0, out=f"{folder}/selection")
        seconds = time.monotonic() - start
        largest = peak.stop()
        ray.shutdown()
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "driver": driver, "tasks": largest, "kept": chosen.kept}


def machine(cpus: int) -> str:
    """One line about where this ran."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    memory = psutil.virtual_memory().total / 2**30
    found: dict[str, Any] = store.versions()
    load = os.getloadavg()[0]
    return (
        f"{model}, {resources.cpus()} CPUs, {memory:.0f} GiB; {cpus} tasks at once; load average "
        f"{load:.1f} before; Python {found['python']}, Ray {found['ray']}, NumPy {found['numpy']}"
    )


def again(rows: int, per_file: int) -> list[str]:
    """This program, for so many rows."""
    size = ["--rows", str(rows / 1e6), "--rows-per-file", str(per_file)]
    return [sys.executable, __file__, *size]


def main() -> None:
    """Measure every row count and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="5,10,20", help="millions of rows, comma-separated")
    parser.add_argument("--rows-per-file", type=int, default=100_000)
    parser.add_argument("--cpus", type=int, default=resources.cpus(), help="tasks at once")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    args = parser.parse_args()
    counts = [int(float(text) * 1e6) for text in args.rows.split(",")]
    if args.write:
        write_labels(args.write, counts[0], args.rows_per_file)
        return
    if args.one:
        print(json.dumps(measure(counts[0], args.rows_per_file, args.cpus)))
        return
    print(machine(args.cpus), "\n", sep="\n")
    print("| rows | kept | seconds | rows/s | driver, peak MiB | largest task, peak MiB |")
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    for rows in counts:
        command = [*again(rows, args.rows_per_file), "--one", "--cpus", str(args.cpus)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        got = json.loads(output.splitlines()[-1])
        print(
            f"| {rows:,} | {got['kept']:,} | {got['seconds']:.1f} | {rows / got['seconds']:,.0f} "
            f"| {got['driver']:,.0f} | {got['tasks']:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
