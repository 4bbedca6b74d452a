"""Accuracy after more labels: chosen as `ns-ray label-next` does, by parts of it, and at random.

    python benchmarks/label_next.py [--data digits] [--labels 30] [--count 100] [--seeds 0 1 2 3 4]
        [--pile 5000] [--ways WAY...] [--out runs/label-next]

For each seed: a teacher on so many labels, as evenly as it goes over the classes, labels the pile;
`--count` images of it are chosen in each way and get their true labels; a model is trained anew on
all labels, and scored on the test images of the set. All models have the settings that a run
chooses, the architecture of the recipe `digits`, the same 100 validation images and the same seed.
A model that is there is only read. Writes label-next.csv, and prints a Markdown table.
"""

import argparse
import csv
import json
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine

from ns_ray.compute import Workers
from ns_ray.config import Images, PredictConfig, RunConfig, settle
from ns_ray.data import list_source, pack, symmetric
from ns_ray.itinerary import steps
from ns_ray.model import Predictor
from ns_ray.review.asking import spread_out
from ns_ray.review.choosing import SPARE, Candidates, closest, likeliest, pool
from ns_ray.store import Bundle, Corpus
from ns_ray.training import fit

MODEL = {"model": "test_resnet", "image_size": 32, "crop_pct": 1.0}
VALIDATION = 100

Choose = Callable[[Candidates, Any, int], Candidates]
"""(the whole pile in the order of its margins, its corpus, how many) -> those to label."""


def at_random(pile: Candidates, _: Any, count: int) -> Candidates:
    """Any."""
    return pile.take(np.random.default_rng(len(pile)).permutation(len(pile))[:count])


def by_margin(pile: Candidates, _: Any, count: int) -> Candidates:
    """The least margins of all."""
    return pile.take(np.argsort(pile.margins, kind="stable")[:count])


def spread_of(spare: int) -> Choose:
    """As label-next: the least margins of each class, spread out."""
    return lambda pile, corpus, count: spread_out(pool(pile, count, spare), corpus, count)


WAYS: dict[str, Choose] = {
    "at random": at_random,
    "margin": by_margin,
    "margin, balanced": spread_of(1),
    "label-next": spread_of(SPARE),
    "spread among 10": spread_of(10),
}


def split(args: argparse.Namespace, seed: int) -> dict[str, pa.Table]:
    """Images with their labels: those that are labeled at first, for validation, and the pile."""
    listing = list_source(args.data)
    items = [listing.items[i] for i in np.random.default_rng(seed).permutation(listing.rows)]
    place: Counter[str | None] = Counter()
    order = []
    for item in items:
        order.append(place[item.label])
        place[item.label] += 1
    items = [items[i] for i in np.argsort(order, kind="stable")]
    ends = np.cumsum([0, args.labels, VALIDATION, args.pile])
    tables = {}
    for name, start, end in zip(("labeled", "validation", "pile"), ends, ends[1:], strict=False):
        part = items[start:end]
        images, labels = [item.read() for item in part], [item.label for item in part]
        tables[name] = pa.table({"image": images, "label": labels})
    return tables


def packed(table: pa.Table, out: Path) -> Corpus:
    """Images as a corpus. A key ends in the row of the table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".parquet")
    if not file.exists() or not pq.read_table(file).equals(table):
        pq.write_table(table, file)
    return pack(str(file), out=str(out))


def trained(labeled: Corpus, validation: Corpus, seed: int, out: Path) -> Bundle:
    """A model with the settings that a run chooses for so many images, trained in this process."""
    sources = {"labeled": "x", "unlabeled": ["x"]}
    settings = {"name": "one", "data": sources, "teacher": MODEL, "students": [MODEL]}
    config = RunConfig.model_validate({**settings, "storage": str(out)})
    images = Images(labeled.rows, 1, symmetric(labeled))
    step = steps(settle(config, images)[0]).teacher.trainings[0]
    return fit(
        step.model,
        step.train,
        labeled=labeled,
        validation=validation,
        seed=seed,
        workers=Workers(count=1, cpus=1, gpus=0, loaders=0, in_process=True),
        checkpoints=str(out / "checkpoints"),
        out=str(out / "bundle"),
        title=out.name,
        provenance={},
    )


def probabilities(model: Bundle, corpus: Corpus) -> tuple[Any, Any, Any]:
    """Keys, probabilities float32 [rows, classes] and names of the shards of images."""
    predictor = Predictor(model.path, threads=1, config=PredictConfig(runtime="torch"))
    keys, probs, shards = [], list[Any](), []
    for shard, table in corpus.scan(["key", "image"]):
        keys += table["key"].to_pylist()
        probs += predictor.predict(table["image"].to_pylist())
        shards += [shard.name] * table.num_rows
    return np.array(keys), np.stack(probs), np.array(shards)


def accuracy(model: Bundle, test: Corpus) -> float:
    """Of a model on test images, in percent."""
    file = Path(model.path).with_name(f"{model.fingerprint}.json")
    if not file.exists():
        keys, probs, _ = probabilities(model, test)
        rows = [row for _, table in test.scan(["key", "label"]) for row in table.to_pylist()]
        truth = {row["key"]: row["label"] for row in rows}
        right = probs.argmax(axis=1) == np.array([truth[key] for key in keys])
        file.write_text(json.dumps(100 * float(right.mean())))
    return float(json.loads(file.read_text()))


def of_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Test accuracy of each way, in percent."""
    out = args.out / str(seed)
    tables = split(args, seed)
    labeled, validation = (packed(tables[n], out / n) for n in ("labeled", "validation"))
    pile = packed(tables["pile"].drop_columns("label"), out / "pile")
    test = pack(f"{args.data}:test", out=str(args.out / "test"))
    before = trained(labeled, validation, seed, out / "before")
    row = {"seed": seed, "before": accuracy(before, test)}
    keys, probs, shards = probabilities(before, pile)
    found = closest(Candidates(keys, shards, keys, *likeliest(probs)), len(keys))
    for way, choose in ((way, WAYS[way]) for way in args.ways):
        chosen = choose(found, pile, args.count)
        rows = sorted(int(key.rpartition("/")[2]) for key in chosen.keys)
        more = tables["pile"].take(pa.array(rows))
        place = out / way.replace(", ", "-").replace(" ", "-")
        together = packed(pa.concat_tables([tables["labeled"], more]), place / "labeled")
        row[way] = accuracy(trained(together, validation, seed, place), test)
    return row


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {sd:.1f}"


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--labels", type=int, default=30)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--pile", type=int, default=5000)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/label-next").absolute())
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        rows.append(of_seed(args, seed))
        with (args.out / "label-next.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    print(f"\n{machine()}; {args.data}, seeds {args.seeds}; test accuracy, percent\n")
    print(f"| labels | chosen | accuracy | against {args.ways[0]} |")
    print("|---:|---|---:|---:|")
    print(f"| {args.labels} | | {spread([row['before'] for row in rows])} | |")
    for way in args.ways:
        gains = [row[way] - row[args.ways[0]] for row in rows]
        print(
            f"| {args.labels + args.count} | {way} | {spread([row[way] for row in rows])} "
            f"| {spread(gains) if way != args.ways[0] else ''} |"
        )


if __name__ == "__main__":
    main()
