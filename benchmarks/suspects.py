"""Precision and recall of suspect labels, where a known share of labels is wrong.

    python benchmarks/suspects.py [--data digits fashion-mnist] [--model scratch pretrained]
        [--images 1000] [--flipped 0.05] [--seeds 0 1 2] [--out runs/suspects]

Draws images of a set as evenly as it goes over the classes, gives a share of them another class at
random, and does what `ns-ray suspects` does: with the small network of the recipe `digits`, trained
from scratch in five folds with the settings that a run chooses, and with logistic regression on
features of tf_efficientnet_lite0 with ImageNet weights at 96 px. Precision: how many of the
suspects were changed. Recall: how many of those changed are suspects. Beside it other rules on the
same probabilities: every image that another class is likelier for (arg-max), the off-diagonal of
the confident joint (Northcutt et al. 2021), without the own class's threshold, and, where it is
installed (`pip install -e '.[bench]'`), cleanlab with its defaults. What is there is only read.
Writes suspects.csv, and prints a Markdown table.
"""

import argparse
import csv
import importlib.util
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine

from ns_ray.compute import Pool, Workers
from ns_ray.config import PredictConfig, RunConfig
from ns_ray.data import list_source
from ns_ray.data.sources.items import natural
from ns_ray.review import find_suspects
from ns_ray.stages import RayStages
from ns_ray.training import Limits

LITE = {"model": "tf_efficientnet_lite0", "pretrained": "efficientnet-lite", "image_size": 96}
MODELS = {
    "scratch": {"model": "test_resnet", "image_size": 32, "crop_pct": 1.0},
    "pretrained": LITE,
}
FIRST = 25
"""Suspects, sorted by margin, whose precision is looked at alone."""
HERE = RayStages(
    pool=Pool(1, 1, 0, in_process=True),
    workers=Workers(count=1, cpus=1, gpus=0, loaders=0, in_process=True),
    limits=Limits(),
    predict=PredictConfig(runtime="torch"),
    metrics=None,
)
"""All work in this process, on one CPU."""


def images(data: str, count: int, flipped: float, seed: int, out: Path) -> list[bool]:
    """Write a table of images with labels, some of them changed; which."""
    listing, rng = list_source(data), np.random.default_rng(seed)
    place: Counter[str | None] = Counter()
    drawn = []
    for i in rng.permutation(listing.rows):
        item = listing.items[i]
        drawn.append((place[item.label], i))
        place[item.label] += 1
    items = [listing.items[i] for _, i in sorted(drawn)[:count]]
    wrong = np.isin(np.arange(count), rng.permutation(count)[: round(flipped * count)])
    labels = []
    for item, changed in zip(items, wrong, strict=True):
        others = [name for name in listing.classes if name != item.label]
        labels.append(str(rng.choice(others)) if changed else item.label)
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [item.read() for item in items], "label": labels}), out)
    return [bool(w) for w in wrong]


def rules(probs: Any, labels: Any) -> dict[str, Any]:
    """What other rules suspect: bool [n] by name."""
    own = probs[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probs.shape[1])
    thresholds = np.bincount(labels, own, probs.shape[1]) / np.maximum(counts, 1)
    above = np.where(probs >= thresholds, probs, -1.0)
    joint = (above.max(axis=1) >= 0) & (above.argmax(axis=1) != labels)
    found = {"arg-max": probs.argmax(axis=1) != labels, "confident joint": joint}
    if importlib.util.find_spec("cleanlab") is not None:
        from cleanlab.filter import find_label_issues

        found["cleanlab"] = find_label_issues(labels, probs, n_jobs=1)
    return found


def scores(suspect: Any, wrong: Any) -> tuple[float, float]:
    """Precision and recall, in percent."""
    hits = int((suspect & wrong).sum())
    return 100 * hits / max(int(suspect.sum()), 1), 100 * hits / int(wrong.sum())


def of_one(args: argparse.Namespace, data: str, model: str, seed: int) -> list[dict[str, Any]]:
    """Precision and recall of each rule."""
    out = args.out / f"{data}-{model}-{seed}"
    table = out / "labeled.parquet"
    wrong = np.array(images(data, args.images, args.flipped, seed, table))
    found = out / "found" / "labels.parquet"
    if not found.exists():
        source = {"labeled": str(table), "unlabeled": [str(table)], "validation_size": 0.1}
        plain = {
            "name": "one",
            "data": source,
            "teacher": MODELS[model],
            "students": [MODELS[model]],
        }
        config = RunConfig.model_validate({**plain, "seed": seed, "storage": str(out)})
        find_suspects(config, HERE, device="cpu", out=str(out / "found"))
    lines = pq.read_table(found).to_pylist()
    rows = np.array([int(line["key"].rpartition("/")[2]) for line in lines])
    probs = np.array([line["probabilities"] for line in lines])
    names = sorted({line["label"] for line in lines}, key=natural)
    labels = np.array([names.index(line["label"]) for line in lines])
    margins = np.array([line["margin"] for line in lines])
    made = []
    suspect = np.array([line["suspect"] for line in lines])
    for rule, marked in {"suspects": suspect, **rules(probs, labels)}.items():
        precision, recall = scores(marked, wrong[rows])
        first = np.flatnonzero(marked)[np.argsort(-margins[marked], kind="stable")][:FIRST]
        about = {"data": data, "model": model, "seed": seed, "rule": rule}
        of_first = 100 * float(wrong[rows][first].mean())
        made.append({**about, "precision": precision, "recall": recall, "first": of_first})
    return made


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {sd:.1f}"


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "fashion-mnist"])
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--flipped", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/suspects").absolute())
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in args.model:
        for data in args.data:
            for seed in args.seeds:
                rows += of_one(args, data, model, seed)
                with (args.out / "suspects.csv").open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)

    print(f"\n{machine()}; {args.images:,} images, {args.flipped:.0%} flipped; percent\n")
    print(f"| images | model | rule | precision | recall | of the first {FIRST} |")
    print("|---|---|---|---:|---:|---:|")
    for data, model, rule in dict.fromkeys((r["data"], r["model"], r["rule"]) for r in rows):
        mine = [r for r in rows if (r["data"], r["model"], r["rule"]) == (data, model, rule)]
        cells = [spread([r[name] for r in mine]) for name in ("precision", "recall", "first")]
        print(f"| {data} | {model} | {rule} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
