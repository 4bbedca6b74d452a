"""Images of no class in the pile: which score tells them, and what leaving them out is worth.

    python benchmarks/foreign.py scores RUN [RUN ...] --foreign SOURCE [SOURCE ...] [--images 1000]
    python benchmarks/foreign.py students --foreign SOURCE [--seeds 0 1] [--out runs/foreign]

`scores`: how well the first teacher of a finished run tells images of a source from those of its
own pile (area under the ROC curve), by what its softmax says and by its features; `nearest` is the
product's score, through the product's runtime, and the shares are of images above its limit.
`students`: Fashion-MNIST, 500 labels and 500 for validation, a pile of which half is of the source;
one teacher a seed labels it for a student that takes all, one without what is foreign
(`select.max_foreign=1`), and one whose pile holds no foreign image.
"""

import argparse
import json
import statistics
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import machine
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score

from ns_ray.compute import Machine
from ns_ray.config.loading import parse
from ns_ray.data import Item, Normalize, Row, eval_pixels, list_source, read_rows
from ns_ray.labeling.foreign import images_of, scale_of
from ns_ray.model import Predictor, load
from ns_ray.selftrain import self_train
from ns_ray.stages import open_stages
from ns_ray.store import RunLayout, open_bundle, open_corpus

Array = np.ndarray[Any, Any]
LABELS, VALIDATION, PILE, DRAWN_FROM = 500, 500, 3000, 10_000
THIN = {"channels": [32, 64, 128, 256], "stem_width": 16, "stem_type": "deep"}
MODEL = {"model": "resnet10t", "model_args": THIN, "image_size": 32, "crop_pct": 1.0}


# ----------------------------------------------------------------------------------- scores


def heads(bundle: str, images: list[bytes]) -> tuple[Array, Array]:
    """Features [n, features] and logits [n, classes] in fp32 torch."""
    loaded, spec = load(open_bundle(bundle))
    model: Any = loaded.eval()
    normalize = Normalize(spec, torch.device("cpu"))
    features, logits = [], []
    for at in range(0, len(images), 64):
        pixels = np.stack([eval_pixels(data, spec) for data in images[at : at + 64]])
        with torch.inference_mode():
            maps = model.forward_features(normalize(torch.from_numpy(pixels)))
            features.append(model.forward_head(maps, pre_logits=True).numpy())
            logits.append(model.forward_head(maps).numpy())
    return np.concatenate(features), np.concatenate(logits)


def read(items: list[Item]) -> list[bytes]:
    """Encoded images; those of a table together."""
    places = [item.place for item in items if isinstance(item.place, Row)]
    return [*read_rows(places)] if places else [item.read() for item in items]


def unit(rows: Array) -> Array:
    """Rows of length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def scores_of(features: Array, logits: Array, labeled: Array, labels: Array) -> dict[str, Array]:
    """The scores that are compared, each higher for what is foreign."""
    probs = softmax(logits, axis=1)
    means = np.stack([labeled[labels == label].mean(axis=0) for label in np.unique(labels)])
    fifth = np.sort(unit(features) @ unit(labeled).T, axis=1)[:, -5]
    return {
        "max softmax": 1 - probs.max(axis=1),
        "entropy": -(probs * np.log(np.maximum(probs, 2**-24))).sum(axis=1),
        "max logit": -logits.max(axis=1),
        "energy": -logsumexp(logits, axis=1),
        "class mean": -(unit(features) @ unit(means).T).max(axis=1),
        "5th nearest": -fifth,
    }


def compared(run: Path, source: str, count: int) -> dict[str, float]:
    """Areas under the curve, and shares above the limit."""
    bundle, corpora = str(run / "gen-00" / "bundle"), run / "corpora"
    labeled = images_of(str(corpora / "labeled"), 1000)
    labels = np.concatenate(
        [
            table["label"].to_numpy()
            for _, table in open_corpus(str(corpora / "labeled")).scan(["label"])
        ]
    )[: len(labeled)]
    own = images_of(str(corpora / "unlabeled"), count)
    other = read(list(islice(list_source(source, setting="--foreign").each(), count)))
    known = heads(bundle, labeled)[0]
    a, b = (scores_of(*heads(bundle, images), known, labels) for images in (own, other))
    predictor = Predictor(bundle, known=labeled, images=100_000)
    held_out = predictor.predict(images_of(str(corpora / "validation"), 1000))
    scale = scale_of(
        np.array([answer[-1] for answer in held_out if isinstance(answer, np.ndarray)])
    )
    assert scale is not None
    for found, images in ((a, own), (b, other)):
        answers = predictor.predict(images)
        found["nearest"] = scale.foreign(np.array([np.asarray(x)[-1] for x in answers]))
    truth = np.repeat([0, 1], [len(own), len(other)])
    areas = {name: float(roc_auc_score(truth, np.append(a[name], b[name]))) for name in a}
    above = {"own": float((a["nearest"] > 1).mean()), "foreign": float((b["nearest"] > 1).mean())}
    assert predictor.choice is not None
    print(
        f"{run} {source}: {predictor.choice.runtime} {predictor.choice.precision}", file=sys.stderr
    )
    return areas | above


def scores(args: argparse.Namespace) -> None:
    """A line for each run and source."""
    header = ""
    for run in args.runs:
        for source in args.foreign:
            found = compared(run, source, args.images)
            if not header:
                header = "| run | foreign | " + " | ".join(found) + " |"
                print(header + "\n|---|---|" + "---:|" * len(found))
            cells = " | ".join(f"{value:.3f}" for value in found.values())
            print(f"| {run.name} | {Path(source).name} | {cells} |", flush=True)


# --------------------------------------------------------------------------------- students


def tables(out: Path, source: str) -> tuple[Path, Path, Path]:
    """Parquet tables of Fashion-MNIST's training images, of which labeled and validation images are
    drawn; of others of them, without labels; and of as many foreign images."""
    labeled, own, other = (out / f"{name}.parquet" for name in ("labeled", "own", "foreign"))
    if not other.exists():
        out.mkdir(parents=True, exist_ok=True)
        items = list(list_source("fashion-mnist", setting="data.labeled").each())
        some, rest = items[:DRAWN_FROM], items[DRAWN_FROM : DRAWN_FROM + PILE]
        columns = {"image": read(some), "label": [item.label for item in some]}
        pq.write_table(pa.table(columns), labeled)
        pq.write_table(pa.table({"image": read(rest)}), own)
        foreign = islice(list_source(source, setting="--foreign").each(), PILE)
        pq.write_table(pa.table({"image": read(list(foreign))}), other)
    return labeled, own, other


def student(args: argparse.Namespace, seed: int, arm: str) -> dict[str, Any]:
    """The `result.json` of one run."""
    labeled, own, other = tables(args.out, args.foreign)
    mixed = [str(own)] if arm == "clean" else [str(own), str(other)]
    first = args.out / f"all-{seed}" / "gen-00" / "bundle"
    config = {
        "name": f"{arm}-{seed}",
        "storage": str(args.out),
        "seed": seed,
        "data": {
            "labeled": str(labeled),
            "labels": LABELS,
            "validation_size": VALIDATION,
            "unlabeled": mixed,
            "test": "fashion-mnist:test",
        },
        "teacher": MODEL if arm == "all" else {"bundle": str(first)},
        "students": [MODEL],
        "label": {"teachers": 1},
        "select": {"max_foreign": 1.0} if arm == "without" else {},
        "accept": {"max_p": 1.0},
    }
    run = parse(json.dumps(config), args.set)
    layout = RunLayout.of(run)
    saved = Path(layout.result)
    if not saved.exists():
        # So little work is done in this process, and Ray is not started for it.
        stages = open_stages(run, Machine(cpus=1, gpus=0, local=True))
        saved.write_text(json.dumps(self_train(run, layout, stages).result))
    found: dict[str, Any] = json.loads(saved.read_text())
    folder = Path(layout.root)
    chosen = json.loads((folder / "gen-01" / "selection" / "_DONE.json").read_text())["facts"]
    return found | {"foreign": chosen["foreign"], "kept": chosen["kept"]}


def students(args: argparse.Namespace) -> None:
    """A line for each arm."""
    found = {
        arm: [student(args, seed, arm) for seed in args.seeds]
        for arm in ("all", "without", "clean")
    }
    print(f"\nMachine: {machine()}; seeds {args.seeds}; test, percent\n")
    print(
        "| student taught | above the limit | kept | teacher | student |\n|---|---:|---:|---:|---:|"
    )
    for arm, results in found.items():
        share = statistics.mean(r["foreign"]["rows"] / r["foreign"]["of"] for r in results)
        kept = statistics.mean(r["kept"] for r in results)
        tops = [[100 * r["generations"][g]["test_top1"] for r in results] for g in (0, 1)]
        cells = [" ".join(f"{top:.2f}" for top in each) for each in tops]
        print(f"| {arm} | {share:.1%} | {kept:,.0f} | {cells[0]} | {cells[1]} |")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("scores")
    verb.add_argument("runs", type=Path, nargs="+")
    verb.add_argument("--foreign", nargs="+", required=True)
    verb.add_argument("--images", type=int, default=1000)
    verb.set_defaults(work=scores)
    verb = verbs.add_parser("students")
    verb.add_argument("--foreign", required=True)
    verb.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    verb.add_argument("--out", type=Path, default=Path("runs/foreign").absolute())
    verb.add_argument("--set", nargs="*", default=[], metavar="A.B=C")
    verb.set_defaults(work=students)
    args = parser.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
