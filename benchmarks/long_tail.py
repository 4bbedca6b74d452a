"""CIFAR-10 with a long tail: what balanced selection, class weights and logit adjustment are worth.

    python benchmarks/long_tail.py --train cifar10-train.parquet --test cifar10-test.parquet
        [--seeds 0 1 2 3 4] [--out runs/long-tail] [--set A.B=C]

The tables have columns `image` and `label`. Of the most frequent class there are 100 labeled
images, 40 for validation and 2,000 without labels; of each next one fewer, down to a fiftieth of
these in the last (n * ratio^(-c / 9): Cui et al., arXiv 1901.05555), other images with every seed.
Teachers and one student are tf_efficientnet_lite0 with ImageNet weights at 64 px. Every arm of the
grid `rare-classes` is run; the test images are balanced, so that their accuracy is the mean over
the classes. What has ended is only read.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from machine import machine

from ns_ray.ablation.grid import load_grid
from ns_ray.ablation.table import Measured, as_csv, markdown

RATIO = 50
MOST = {"labeled": 100, "validation": 40, "pile": 2_000}
"""Images of the most frequent class."""
MODEL = {"model": "tf_efficientnet_lite0", "pretrained": "efficientnet-lite", "image_size": 64}
GRID = "rare-classes"


def counts(most: int, classes: int) -> list[int]:
    """How many images of each class, the most frequent first; one at least."""
    return [max(1, round(most * RATIO ** (-c / (classes - 1)))) for c in range(classes)]


def tables(train: Path, out: Path, seed: int) -> dict[str, Path]:
    """Parquet tables of other rows each, the same in every call; the pile has no labels."""
    table = pq.read_table(train, columns=["image", "label"])
    labels = table["label"].to_numpy()
    order = np.random.default_rng(seed).permutation(len(labels))
    of_class = [order[labels[order] == name] for name in np.unique(labels)]
    found = {}
    for part, most in MOST.items():
        taken = counts(most, len(of_class))
        rows = np.concatenate([rows[:n] for rows, n in zip(of_class, taken, strict=True)])
        of_class = [rows[n:] for rows, n in zip(of_class, taken, strict=True)]
        drawn = table.take(pa.array(np.random.default_rng(seed).permutation(rows)))
        found[part] = out / f"{part}.parquet"
        pq.write_table(drawn.drop_columns("label") if part == "pile" else drawn, found[part])
    return found


def measured(args: argparse.Namespace, seed: int) -> list[Measured]:
    """Every arm with one seed."""
    out = args.out / str(seed)
    out.mkdir(parents=True, exist_ok=True)
    parts = tables(args.train, out, seed)
    settings = {
        "name": "long-tail",
        "data": {
            "labeled": str(parts["labeled"]),
            "validation": str(parts["validation"]),
            "unlabeled": [str(parts["pile"])],
            "test": str(args.test),
        },
        "teacher": MODEL,
        "students": [MODEL],
    }
    path = out / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    some = [word for one in args.set for word in ("--set", one)]
    command = ["ablate", GRID, "--config", str(path), "--seeds", str(seed), "--json", *some]
    command += ["--out", str(out / "grid")]
    done = subprocess.run(
        [sys.executable, "-m", "ns_ray", *command], check=False, stdout=subprocess.PIPE
    )
    if done.returncode:
        sys.exit(done.returncode)
    (found,) = json.loads(done.stdout)["grids"]
    return [Measured(**one) for one in found["results"]]


def main() -> None:
    """Run everything, print the table and write it beside every single result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/long-tail").absolute())
    parser.add_argument("--set", nargs="*", default=[], metavar="A.B=C")
    args = parser.parse_args()
    found = [one for seed in args.seeds for one in measured(args, seed)]
    (args.out / "long-tail.csv").write_text(as_csv(found))
    _, grid = load_grid(GRID)
    print(f"Machine: {machine()}; seeds {args.seeds}\n\n{markdown(GRID, grid, found)}")


if __name__ == "__main__":
    main()
