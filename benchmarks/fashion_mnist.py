"""Accuracy of every generation on Fashion-MNIST with 1,000 labels, over seeds.

    python benchmarks/fashion_mnist.py [--seeds 0 1 2] [--storage runs] [--set A.B=C]

Runs the recipe `fashion-mnist` once per seed (a finished run is only read) and prints a Markdown
table: mean and standard deviation of validation and test accuracy, in percent.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine


def run(seed: int, storage: str, overrides: list[str]) -> dict[str, Any]:
    """The result of the recipe with one seed; see `result.json`."""
    name = f"fashion-mnist-{seed}"
    command = [sys.executable, "-m", "ns_ray.run", "--recipe", "fashion-mnist"]
    for setting in [f"storage={storage}", f"name={name}", f"seed={seed}", *overrides]:
        command += ["--set", setting]
    done = subprocess.run(command, check=False)
    if done.returncode not in (0, 5):
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(Path(storage, name, "result.json").read_text())
    return result


def percent(values: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * spread:.2f}"


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--set", nargs="*", default=[], metavar="A.B=C")
    args = parser.parse_args()
    results = [run(seed, args.storage, args.set) for seed in args.seeds]

    print(f"\nMachine: {machine()}; seeds {args.seeds}\n")
    print("| | model | parameters | validation | test | minutes |")
    print("|---|---|---:|---:|---:|---:|")
    count = min(len(result["generations"]) for result in results)
    rows = [[result["generations"][g] for result in results] for g in range(count)]
    rows.append([result["control"] for result in results])
    for row in rows:
        first = row[0]
        control = first["role"] == "control"
        title = "control arm" if control else f"generation {first['generation']}, {first['role']}"
        minutes = statistics.mean(sum(r["seconds"].values()) for r in row) / 60
        print(
            f"| {title} | {first['model']} | {first['parameters']:,} "
            f"| {percent([r['val_top1'] for r in row])} | {percent([r['test_top1'] for r in row])} "
            f"| {minutes:.1f} |"
        )
    last, teacher, control = rows[-2], rows[0], rows[-1]
    for other, title in ((teacher, "its first teacher"), (control, "the control arm")):
        gains = [a["test_top1"] - b["test_top1"] for a, b in zip(last, other, strict=True)]
        print(f"\nLast student against {title}, test, points: {percent(gains)}", end="")
        print(f" (each seed: {', '.join(f'{100 * gain:+.2f}' for gain in gains)})")


if __name__ == "__main__":
    main()
