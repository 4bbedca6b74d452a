"""A pretrained network, few labels and a pile: defaults against the probe and the control arm.

    python benchmarks/pretrained.py --train cifar10-train.parquet --test cifar10-test.parquet
        [--labels 40 100 250] [--seeds 0 1 2 3 4] [--out runs/pretrained] [--set A.B=C]
    python benchmarks/pretrained.py --train TABLE --test TABLE --labels 50 --pile 1412 --held-out 0

The tables have columns `image` and `label`. For each number of labels and seed: a run with no
`train` settings, on labels of its own, 100 more for validation and 10,000 images without labels;
teacher and student are tf_efficientnet_lite0 with ImageNet weights at 96 px. With `--held-out 0`
there are no other labels: the run holds validation images out of its own, which are as many of
each class, and each seed has its own pile, too. The probe is logistic regression on that network's
features of the images that the first teacher is trained on, strength by cross-validation; another
one has the validation images, too. Test is scored once, when a run has ended. A run that has ended
is only read.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import machine

from ns_ray.config import ModelConfig, dump
from ns_ray.config.loading import parse
from ns_ray.data import together
from ns_ray.model import build
from ns_ray.scoring.scores import expected_calibration_error
from ns_ray.store import open_corpus
from ns_ray.training.forward import forward
from ns_ray.training.head import start_head

PILE, DRAWN_FROM, VALIDATION = 10_000, 5_000, 100
MODEL = {"model": "tf_efficientnet_lite0", "pretrained": "efficientnet-lite", "image_size": 96}


def tables(train: Path, out: Path, images: int) -> tuple[Path, Path]:
    """The pile, and the images that labels are drawn from: other rows of a shuffled table."""
    pile, labeled = out / "pile.parquet", out / "labeled.parquet"
    if not labeled.exists():
        table = pq.read_table(train, columns=["image", "label"])
        order = np.random.default_rng(0).permutation(table.num_rows)
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(pa.array(order[:images])).drop_columns("label"), pile)
        pq.write_table(table.take(pa.array(order[images : images + DRAWN_FROM])), labeled)
    return pile, labeled


def all_there_is(train: Path, out: Path, images: int, labels: int, seed: int) -> tuple[Path, Path]:
    """The pile, and labeled images without any more to draw from: a seed's own rows of a table."""
    folder = out / f"data-{labels}-{seed}"
    pile, labeled = folder / "pile.parquet", folder / "labeled.parquet"
    if not labeled.exists():
        table = pq.read_table(train, columns=["image", "label"])
        classes = np.array(table["label"].to_pylist())
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(classes))
        names = sorted(set(classes.tolist()))
        each = labels // len(names)
        chosen = np.concatenate([order[classes[order] == name][:each] for name in names])
        others = rng.permutation(np.setdiff1d(order, chosen))[:images]
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(pa.array(others)).drop_columns("label"), pile)
        pq.write_table(table.take(pa.array(chosen)), labeled)
    return pile, labeled


def run(args: argparse.Namespace, labels: int, seed: int) -> dict[str, Any]:
    """The result of one run; see `result.json`."""
    if args.held_out:
        pile, labeled = tables(args.train, args.out, args.pile)
        split = {"labels": labels, "validation_size": args.held_out}
    else:
        pile, labeled = all_there_is(args.train, args.out, args.pile, labels, seed)
        split = {}
    config = {
        "name": f"{labels}-{seed}",
        "storage": str(args.out),
        "seed": seed,
        "data": {
            "labeled": str(labeled),
            "unlabeled": [str(pile)],
            "test": str(args.test),
            **split,
        },
        "teacher": MODEL,
        "students": [MODEL] * args.students,
        "control": True,
    }
    path = args.out / f"{config['name']}.yaml"
    path.write_text(dump(parse(json.dumps(config), args.set)))
    command = [sys.executable, "-m", "ns_ray.run", "--config", str(path)]
    done = subprocess.run(command, check=False)
    if done.returncode not in (0, 5):
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads((args.out / config["name"] / "result.json").read_text())
    return result


def probe(folder: Path, *, every_label: bool = False) -> dict[str, float]:
    """Accuracy and calibration on test of logistic regression on the labeled images of a run, or
    on its validation images too."""
    saved = folder / ("probe-of-all.json" if every_label else "probe.json")
    if not saved.exists():
        labeled = open_corpus(str(folder / "corpora" / "labeled"))
        if every_label:
            validation = open_corpus(str(folder / "corpora" / "validation"))
            labeled = together(labeled, validation, str(folder / "every-label"))
        test = open_corpus(str(folder / "corpora" / "test"))
        cpu = torch.device("cpu")
        model = build(ModelConfig.model_validate(MODEL), len(labeled.classes))
        start_head(model, labeled, cpu)
        logits, truth = forward(model, test, cpu, model)
        probs = torch.from_numpy(logits).softmax(dim=1).numpy()
        top1 = float((probs.argmax(axis=1) == truth).mean())
        ece = expected_calibration_error(probs, truth)
        saved.write_text(json.dumps({"top1": top1, "ece": ece}))
    found: dict[str, float] = json.loads(saved.read_text())
    return found


def row_of(result: dict[str, Any], folder: Path) -> dict[str, float]:
    """Test accuracy and calibration of every model, in percent."""
    first, last = result["generations"][0], result["generations"][-1]
    best = result["generations"][result["best_generation"]]
    arms = {"teacher": first, "student": last, "control": result["control"], "delivered": best}
    found = {name: arm["scores"]["test"] for name, arm in arms.items()}
    scores = {"probe": probe(folder), "probe_of_all": probe(folder, every_label=True), **found}
    row = {name: 100 * score["top1"] for name, score in scores.items()}
    return row | {f"{name}_ece": 100 * score["ece"] for name, score in scores.items()}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {sd:.1f}"


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[40, 100, 250])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--pile", type=int, default=PILE)
    parser.add_argument("--held-out", type=int, default=VALIDATION)
    parser.add_argument("--students", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained").absolute())
    parser.add_argument("--set", nargs="*", default=[], metavar="A.B=C")
    args = parser.parse_args()
    rows = []
    for labels in args.labels:
        for seed in args.seeds:
            result = run(args, labels, seed)
            row = row_of(result, args.out / f"{labels}-{seed}")
            rows.append({"labels": labels, "seed": seed, **row})
    with (args.out / "pretrained.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    print(f"\nMachine: {machine()}; seeds {args.seeds}; test, percent\n")
    print(
        "| labels | probe | of all | first teacher | control arm | last student | delivered | ECE |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    names = ("probe", "probe_of_all", "teacher", "control", "student", "delivered", "delivered_ece")
    for labels in args.labels:
        mine = [row for row in rows if row["labels"] == labels]
        cells = [spread([row[name] for row in mine]) for name in names]
        print(f"| {labels} | {' | '.join(cells)} |")
    for labels in args.labels:
        mine = [row for row in rows if row["labels"] == labels]
        for rival in ("probe", "probe_of_all", "teacher", "control"):
            gains = [row["delivered"] - row[rival] for row in mine]
            each = ", ".join(f"{gain:+.1f}" for gain in gains)
            print(f"\n{labels} labels, delivered against {rival}: {spread(gains)} ({each})", end="")
    print()


if __name__ == "__main__":
    main()
