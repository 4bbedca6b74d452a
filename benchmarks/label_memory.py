"""Peak memory of labeling 10,000 and 100,000 images: it must not grow with the pile.

    python benchmarks/label_memory.py [--rows 10000 100000] [--image 160] [--model test_resnet]

Counts the proportional set size (PSS: private memory plus a fair share of what is shared) of this
process and of all of Ray's processes, sampled twice a second while the stage runs. Each size runs
in a fresh process with a fresh local cluster. Prints a Markdown table.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import machine
from PIL import Image

DISTINCT = 512
"""Different images; keys differ for all rows."""
ROWS_PER_SHARD = 1024


def jpegs(side: int) -> list[bytes]:
    """Noisy gradients that compress about as badly as photographs."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, side)
    files = []
    for _ in range(DISTINCT):
        angle = rng.uniform(0, 2 * np.pi)
        base = np.cos(angle) * ramp[:, None] + np.sin(angle) * ramp[None, :]
        pixels = base[..., None] + rng.normal(0, 25, (side, side, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def make_corpus(out: str, rows: int, side: int) -> None:
    """Write a packed corpus of `rows` unlabeled images."""
    from ns_ray import store
    from ns_ray.store import Shard, corpus_manifest, schema

    shards: list[Shard] = []
    files, digest = jpegs(side), store.fingerprint("memory", rows, side)
    for start in range(0, rows, ROWS_PER_SHARD):
        table = pa.Table.from_pylist(
            [
                {
                    "key": f"image-{i:08d}",
                    "image": files[i % DISTINCT],
                    "label": None,
                    "width": side,
                    "height": side,
                    "sha256": "",
                    "uri": "",
                }
                for i in range(start, min(rows, start + ROWS_PER_SHARD))
            ],
            schema.CORPUS,
        )
        name = f"shard-{len(shards):05d}"
        file = schema.part_name(name, digest)
        store.write_table(store.join(out, file), table)
        shards.append(Shard(name, file, table.num_rows, table.nbytes))
    manifest = corpus_manifest(shards, [], [], {}, "benchmark")
    store.write_json(store.join(out, "manifest.json"), manifest)
    names = [shard.file for shard in shards]
    facts = {"rows": rows}
    store.publish(
        out, stage="pack", fingerprint=digest, files=names, facts=facts, inputs={}, seconds=0
    )


def pss_bytes(root: int) -> int:
    """Proportional set size of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    total, queue = 0, [root]
    while queue:
        pid = queue.pop()
        queue += children.get(pid, [])
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:"))
    return total * 1024


def measure(folder: str, rows: int, model: str, side: int) -> None:
    """Label in this process and print the measurement as JSON."""
    from ns_ray.compute import cluster, prepare

    prepare()
    from ns_ray.compute import resources
    from ns_ray.config import LabelConfig, ModelConfig, ResourcesConfig
    from ns_ray.labeling import pseudo_label
    from ns_ray.model import build, save
    from ns_ray.store import open_corpus

    net = build(ModelConfig(model=model, image_size=side), 100)
    names = [str(i) for i in range(100)]
    teacher = save(
        net, f"{folder}/bundle", classes=names, fingerprint="memory", provenance={"model": model}
    )
    corpus = open_corpus(f"{folder}/corpus")
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            peak[0] = max(peak[0], pss_bytes(os.getpid()))

    config = ResourcesConfig()
    with cluster(config, f"{folder}/ray.log") as machine:
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.monotonic()
        pool = resources.pool(config, machine)
        out = f"{folder}/labels"
        pseudo_label(LabelConfig(), teacher, corpus, pool=pool, out=out, title="label")
        seconds = time.monotonic() - start
        stop.set()
        watcher.join()
    print("RESULT " + json.dumps({"rows": rows, "peak": peak[0], "seconds": seconds}))


def main() -> None:
    """Measure each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--image", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.rows[0], args.model, args.image)
        return
    results = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            make_corpus(f"{folder}/corpus", rows, args.image)
            corpus_bytes = sum(f.stat().st_size for f in Path(folder, "corpus").glob("*.parquet"))
            command = [sys.executable, __file__, "--rows", str(rows), "--image", str(args.image)]
            command += ["--model", args.model, "--measure", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
            results.append({**json.loads(line.removeprefix("RESULT ")), "corpus": corpus_bytes})

    print(f"Machine: {machine()}; {args.model} at {args.image} px\n")
    print("| images | corpus, MiB | seconds | images/s | peak memory, MiB | against the first |")
    print("|---:|---:|---:|---:|---:|---:|")
    for r in results:
        print(
            f"| {r['rows']:,} | {r['corpus'] / 2**20:,.0f} | {r['seconds']:.0f} "
            f"| {r['rows'] / r['seconds']:,.0f} | {r['peak'] / 2**20:,.0f} "
            f"| {r['peak'] / results[0]['peak']:.2f} |"
        )


if __name__ == "__main__":
    main()
