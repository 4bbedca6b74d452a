"""Start-up of `ns-ray label` on packed corpora of very different sizes: it must not grow with rows.

    python benchmarks/adopt.py [--rows 10000 5000000] [--rounds 3]

Start-up is from the command to the first file of pseudo-labels. The driver is the command's own
process; its peak is VmHWM when that file is there, and then the command is interrupted. On a
machine that others use, seconds of CPU say more than seconds. Two actors
(`resources.label_actors=2`) make both sizes take the same way, through Ray: by default a small
corpus is labeled in the driver. Images are PNG files of 8 x 8 pixels in shards of 1,000, all keys
different; 5,000,000 rows take 0.2 GB in a temporary folder. Prints a Markdown table.
"""

import argparse
import hashlib
import io
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
from machine import machine
from PIL import Image

from ns_ray import store
from ns_ray.config import ModelConfig
from ns_ray.model import build, save
from ns_ray.store import Shard, corpus_manifest, schema

ROWS_PER_SHARD = 1000
SIDE = 8


def shard_table(first: int, rows: int, files: list[bytes]) -> pa.Table:
    """Rows of a corpus, numbered from `first` on."""
    digests = [hashlib.sha256(data).hexdigest() for data in files]
    numbers = range(first, first + rows)
    columns = [
        pa.array([f"{i:08d}" for i in numbers]),
        pa.array([files[i % len(files)] for i in numbers], pa.binary()),
        pa.nulls(rows, pa.int32()),
        pa.array([SIDE] * rows, pa.int32()),
        pa.array([SIDE] * rows, pa.int32()),
        pa.array([digests[i % len(files)] for i in numbers]),
        pa.array([f"synthetic/{i:08d}" for i in numbers]),
    ]
    return pa.Table.from_arrays(columns, schema=schema.CORPUS)


def make_corpus(out: str, rows: int) -> None:
    """Write a packed corpus of so many unlabeled images."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(16):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        files.append(buffer.getvalue())
    mark = store.fingerprint("adopt.py", rows)
    shards: list[Shard] = []
    for first in range(0, rows, ROWS_PER_SHARD):
        count = min(ROWS_PER_SHARD, rows - first)
        name = f"shard-{len(shards):05d}"
        file = schema.part_name(name, mark)
        store.write_table(store.join(out, file), shard_table(first, count, files))
        shards.append(Shard(name, file, count, count * len(files[0])))
    manifest = corpus_manifest(shards, [], [], {}, "synthetic")
    store.write_json(store.join(out, "manifest.json"), manifest)
    store.publish(
        out,
        stage="pack",
        fingerprint=mark,
        files=[*(shard.file for shard in shards), "manifest.json"],
        facts={"rows": rows},
        inputs={},
        seconds=0,
    )


def start_up(teacher: str, corpus: str) -> tuple[float, float, float]:
    """Seconds to the first pseudo-labels; until then, the driver's seconds of CPU and its peak
    memory in MiB."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "ns_ray", "label", "--bundle", teacher, "--data", corpus]
        command += ["--out", f"{out}/labels", "--set", "resources.label_actors=2"]
        with open(f"{out}/log", "w") as log:
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=log, stderr=log)
            while not any(Path(out, "labels").glob("shard-*.parquet")):
                if process.poll() is not None:
                    sys.exit(Path(out, "log").read_text() + f"\nended with {process.returncode}")
                time.sleep(0.02)
            seconds = time.perf_counter() - start
            times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            worked = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
            process.send_signal(signal.SIGINT)
            process.wait()
    return seconds, worked, peak / 1024


def main() -> None:
    """Measure the sizes in turn, and print medians and ranges."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 5_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ns-ray-adopt-") as folder:
        net = build(ModelConfig(model="test_resnet", image_size=32), 10)
        names = [str(i) for i in range(10)]
        teacher = save(net, f"{folder}/bundle", classes=names, fingerprint="adopt", provenance={})
        for rows in args.rows:
            make_corpus(f"{folder}/{rows}", rows)
        found: dict[int, list[tuple[float, float, float]]] = {rows: [] for rows in args.rows}
        for _ in range(args.rounds):
            for rows in args.rows:
                found[rows].append(start_up(teacher.path, f"{folder}/{rows}"))
        used = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    print(f"{machine()}; {args.rounds} rounds in turn, medians (least to most)\n")
    print("| rows | seconds to the first pseudo-labels | driver, CPU seconds | driver, peak MiB |")
    print("|---:|---:|---:|---:|")
    for rows, measured in found.items():
        columns = (
            f"{statistics.median(c):.1f} ({min(c):.1f} to {max(c):.1f})"
            for c in zip(*measured, strict=True)
        )
        print(f"| {rows:,} | " + " | ".join(columns) + " |")
    print(f"\nShards of all sizes: {used / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
