"""How long a source of a million images takes until packing begins, and the memory it takes.

    python benchmarks/listing.py [--images 1000000] [--rounds 3] [--first-shard]

A folder of 1,000 classes, and tables of its paths, of images of 8 x 8 pixels: hard links of a
thousand files. Each way is a process of its own, in turn: `list_all`, which lists and holds
validation images out, of the folder, a CSV, a Parquet table and JSON lines; beside them what others
do with the folder, os.walk with a stat of each file (a fingerprint needs sizes and times), and
torchvision's ImageFolder (which makes none). Seconds and CPU seconds are without imports, MiB is
VmHWM less that after the imports. `--first-shard` adds `ns-ray pack` from the command until its
first shard is there, imports, Ray and all. On a machine that others use, CPU seconds say more than
seconds. Prints a Markdown table.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine
from PIL import Image

FILES = 1000
"""Different images; the others are links to them."""

NS_RAY = """
from ns_ray.config import DataConfig
from ns_ray.data import list_all
def work(source):
    return list_all(DataConfig(labeled=source), seed=0, pile=False)
"""
WALK = """
import os
def work(source):
    found = {}
    for folder, _, names in os.walk(source):
        for name in names:
            path = os.path.join(folder, name)
            state = os.stat(path)
            found[path] = (os.path.basename(folder), state.st_size, state.st_mtime_ns)
    return found
"""
TORCHVISION = """
from torchvision.datasets import ImageFolder as work
"""
MEASURE = """
import sys, time
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
before, start, cpu = peak(), time.perf_counter(), time.process_time()
kept = work(sys.argv[1])
print(time.perf_counter() - start, time.process_time() - cpu, peak() - before)
"""


def make(folder: Path, images: int) -> dict[str, Path]:
    """The sources, by name."""
    rng = np.random.default_rng(0)
    originals = folder / "originals"
    originals.mkdir()
    for i in range(FILES):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(originals / f"{i}.png")
    root = folder / "images"
    labels = [f"class{i % FILES:04d}" for i in range(images)]
    paths = [f"{root}/{label}/image{i:07d}.png" for i, label in enumerate(labels)]
    for label in sorted({*labels}):
        (root / label).mkdir(parents=True)
    for i, path in enumerate(paths):
        os.link(originals / f"{i * 7919 % FILES}.png", path)
    pairs = list(zip(paths, labels, strict=True))
    text = "path,label\n" + "".join(f"{path},{label}\n" for path, label in pairs)
    (folder / "paths.csv").write_text(text)
    lines = (f'{{"path": "{path}", "label": "{label}"}}\n' for path, label in pairs)
    (folder / "paths.jsonl").write_text("".join(lines))
    pq.write_table(pa.table({"path": paths, "label": labels}), folder / "paths.parquet")
    tables = {f"ns_ray, {end}": folder / f"paths.{end}" for end in ("csv", "jsonl", "parquet")}
    return {"ns_ray, folder": root, "os.walk and stat": root, "ImageFolder": root, **tables}


def measured(code: str, source: Path) -> list[float]:
    """Seconds, CPU seconds and MiB of one process."""
    command = [sys.executable, "-c", code + MEASURE, str(source)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()[-3:]]


def first_shard(source: Path) -> list[float]:
    """Seconds, CPU seconds and peak MiB of `ns-ray pack` until it has written a shard."""
    with tempfile.TemporaryDirectory() as out, open(f"{out}/log", "w") as log:
        command = [sys.executable, "-m", "ns_ray", "pack", "--data", str(source)]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--out", f"{out}/corpus"], stdout=log, stderr=subprocess.STDOUT
        )
        while not any(Path(out).glob("corpus/part-*.json")):
            if process.poll() is not None:
                sys.exit(Path(out, "log").read_text())
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.send_signal(signal.SIGINT)
        process.wait()
    cpu = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return [seconds, cpu, int(status.split("VmHWM:")[1].split()[0]) / 1024]


def main() -> None:
    """Measure all in turn, and print medians and ranges."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first-shard", action="store_true")
    args = parser.parse_args()
    others = {"os.walk and stat": WALK, "ImageFolder": TORCHVISION}
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="ns-ray-listing-") as folder:
        sources = make(Path(folder), args.images)
        for _ in range(args.rounds):
            for name, source in sources.items():
                row = measured(others.get(name, NS_RAY), source)
                found.setdefault(name, []).append(row)
            if args.first_shard:
                row = first_shard(sources["ns_ray, folder"])
                found.setdefault("`ns-ray pack`, to the first shard", []).append(row)
    print(f"{machine()}; {args.images:,} images, {args.rounds} rounds in turn, medians\n")
    print("| | seconds | CPU seconds | MiB |")
    print("|---|---:|---:|---:|")
    for name, rows in found.items():
        cells = (
            f"{statistics.median(c):,.{digits}f} ({min(c):,.{digits}f} to {max(c):,.{digits}f})"
            for c, digits in zip(zip(*rows, strict=True), (1, 1, 0), strict=True)
        )
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
