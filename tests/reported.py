"""A finished run whose files are written by hand: nothing is trained, every number is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from ns_ray import store
from ns_ray.config.labeling import SelectConfig
from ns_ray.config.loading import config_hash, dump
from ns_ray.config.run import RunConfig
from ns_ray.data.images import encode_png
from ns_ray.scoring.scores import score
from ns_ray.selection.stage import select
from ns_ray.store.corpora import Shard, corpus_manifest
from ns_ray.store.labels import open_labels
from ns_ray.store.layout import CONTROL, RunLayout, arm_name
from ns_ray.store.schema import CORPUS, REJECTED, labels_table, part_name

Array = np.ndarray[Any, Any]

CLASSES = ("cat", "dog & $x$", "<script>alert(1)</script>")
TEST, VALIDATION, PILE = 40, 30, 60
WRONG = {"gen-00": 12, "gen-01": 8, "gen-02": 2, "control": 10}
"""Images of test, the first ones, that each model gets wrong."""
SURE = 0.9
"""Confidence of every answer to a labeled image."""
FAMILIES = {"gaussian_noise": "noise", "fog": "weather", "pixelate": "digital"}


def config(folder: Path, name: str, **changes: Any) -> RunConfig:
    """Settings of the run."""
    model = {"model": "test_resnet"}
    plain = {"labeled": "somewhere", "test": "elsewhere"}
    settings: dict[str, Any] = {
        "name": name,
        "storage": str(folder),
        "data": plain,
        "teacher": model,
    }
    settings |= {"students": (model, model), "control": True, **changes}
    return RunConfig.model_validate(settings)


def keys_of(split: str, rows: int) -> list[str]:
    """Keys in the order of the corpus."""
    return [f"{split}/{i:03d}.png" for i in range(rows)]


def write_corpus(out: str, split: str, rows: int, *, labeled: bool, rejected: int = 0) -> None:
    """Two shards of small pictures; image i is of class i % 3."""
    keys = keys_of(split, rows)
    shards = []
    for n, part in enumerate(np.array_split(np.arange(rows), 2)):
        table = [
            {
                "key": keys[i],
                "image": encode_png(np.full((8, 8, 3), (5 * i) % 256, np.uint8)),
                "label": int(i % 3) if labeled else None,
                "width": 8,
                "height": 8,
                "sha256": f"{split}{i}",
                "uri": f"/pictures/{keys[i]}",
            }
            for i in part
        ]
        file = f"shard-{n:05d}.aaaaaa.parquet"
        store.write_table(store.join(out, file), pa.Table.from_pylist(table, CORPUS), 8)
        shards.append(Shard(f"shard-{n:05d}", file, len(part), 1000))
    bad = [
        {"key": f"bad{i}", "uri": f"/pictures/bad{i}.png", "reason": "truncated", "detail": ""}
        for i in range(rejected)
    ]
    store.write_table(store.join(out, "rejected.parquet"), pa.Table.from_pylist(bad, REJECTED), 8)
    reasons = {"truncated": rejected} if rejected else {}
    classes = list(CLASSES) if labeled else []
    manifest = corpus_manifest(shards, classes, [], reasons, "by hand")
    store.write_json(store.join(out, "manifest.json"), manifest)
    files = [*(s.file for s in shards), "manifest.json", "rejected.parquet"]
    _publish(out, "pack", files, {"rows": rows})


def _publish(out: str, stage: str, files: list[str], facts: Mapping[str, Any]) -> None:
    store.publish(
        out, stage=stage, fingerprint="f" * 12, files=files, facts=facts, inputs={}, seconds=2.0
    )


def write_probs(out: str, stage: str, keys: list[str], probs: Any, facts: Any) -> None:
    """Probabilities of a corpus's images, one file per shard."""
    files = []
    for n, part in enumerate(np.array_split(np.arange(len(keys)), 2)):
        table = labels_table(pa.array([keys[i] for i in part]), probs[part], f"shard-{n:05d}", None)
        files.append(part_name(f"shard-{n:05d}", "f" * 12))
        store.write_table(store.join(out, files[-1]), table, 8)
    _publish(out, stage, files, facts)


def answers(rows: int, wrong: int, sure: float | Array = SURE) -> Any:
    """Probabilities [rows, 3]: the first ones for the next class, the others for the right one."""
    shift = np.arange(rows) < wrong
    probs = np.zeros((rows, 3), np.float32)
    top = np.broadcast_to(np.asarray(sure, np.float32), rows)
    probs[:] = ((1 - top) / 2)[:, None]
    probs[np.arange(rows), (np.arange(rows) + shift) % 3] = top
    return probs


def robustness(error: float) -> dict[str, Any]:
    """What evaluation says about damaged images."""
    corruptions = {
        name: {
            "family": family,
            "error": {str(s): error * s / 5 for s in range(1, 6)},
            "mean": error * 0.6,
        }
        for name, family in FAMILIES.items()
    }
    return {
        "rows": TEST,
        "corruptions": corruptions,
        "mean_corruption_error": error * 0.6,
        "relative_to": None,
        "relative": None,
        "mce": None,
        "perturbations": {},
        "mean_flip_rate": None,
        "mfr": None,
        "adversarial": {"fgsm": {str(e): 0.9 - 0.05 * e * error for e in (0, 2, 4, 8, 16)}},
    }


def scores(rows: int, wrong: int) -> dict[str, Any]:
    """What evaluation says about clean images."""
    found = score(answers(rows, wrong), np.arange(rows) % 3, CLASSES, 2)
    top1 = found["top1"]
    bins = [
        {"low": i / 15, "high": (i + 1) / 15, "rows": 0, "confidence": 0.0, "accuracy": 0.0}
        for i in range(15)
    ]
    bins[13] |= {"rows": rows, "confidence": SURE, "accuracy": top1}
    matrix = np.zeros((3, 3), int)
    for i in range(rows):
        matrix[i % 3, (i + (i < wrong)) % 3] += 1
    interval = [max(0.0, top1 - 0.1), min(1.0, top1 + 0.1)]
    more = {"top1_interval": interval, "confusion": matrix.tolist(), "reliability": bins}
    return found | more


def write_model(layout: RunLayout, g: int, plain: bool) -> dict[str, Any]:
    """Predictions and scores of a model; returns its row of result.json."""
    folder = arm_name(g)
    wrong = WRONG[folder]
    for split, rows in (("test", TEST), ("validation", VALIDATION)):
        out = store.join(layout.evaluation(g), split)
        write_probs(out, "evaluate", keys_of(split, rows), answers(rows, wrong), {})
    of: dict[str, Any] = {"validation": scores(VALIDATION, wrong), "test": scores(TEST, wrong)}
    if plain:  # as a program without these figures leaves it
        for split in of.values():
            for name in ("top1_interval", "confusion", "reliability"):
                del split[name]
    else:
        of["robustness"] = robustness(wrong / TEST)
    store.write_json(store.join(layout.generation(g), "evaluation.json"), of)
    return {
        "generation": g,
        "role": "control" if g < 0 else "teacher" if g == 0 else "student",
        "model": "test_resnet",
        "parameters": 1234,
        "val_top1": 1 - wrong / VALIDATION,
        "test_top1": 1 - wrong / TEST,
        "accepted": g >= 0,
        "p_value": 0.031 if g > 0 else None,
        "pseudo_labels": None,
        "seconds": {"train": 10.0 + g, "validation": 1.0, "test": 1.0},
        "images_per_second": {"train": 321.0},
    }


def write_lesson(layout: RunLayout, g: int) -> None:
    """Pseudo-labels of the pile, their confidence growing with the key, and a selection."""
    out = layout.pseudo_labels(g)
    probs = answers(PILE, 6 if g == 1 else 3, np.linspace(0.36, 0.96, PILE))
    facts = {
        "corpus": layout.corpus("unlabeled"),
        "teacher": layout.bundle(g - 1),
        "classes": list(CLASSES),
        "rows": PILE,
    }
    write_probs(out, "label", keys_of("unlabeled", PILE), probs, facts)
    settings = SelectConfig(threshold=0.5, per_class=12)
    select(settings, open_labels(out), seed=0, labeled_counts=(4, 4, 4), out=layout.selection(g))


def write_run(folder: Path, name: str = "made", *, plain: bool = False, **changes: Any) -> Path:
    """The whole run.

    Args:
        folder: its store.
        plain: without intervals, bins and robustness.
        changes: settings.
    """
    settings = config(folder, name, **changes)
    layout = RunLayout.of(settings)
    for split, count in (("labeled", 12), ("test", TEST), ("validation", VALIDATION)):
        write_corpus(layout.corpus(split), split, count, labeled=True)
    write_corpus(layout.corpus("unlabeled"), "unlabeled", PILE, labeled=False, rejected=4)
    rows = [write_model(layout, g, plain) for g in (0, 1, 2)]
    for g in (1, 2):
        write_lesson(layout, g)
    counts = {"labeled": 12, "unlabeled": PILE, "validation": VALIDATION, "test": TEST}
    result = {
        "name": name,
        "status": "done",
        "best_generation": 2,
        "model": "model",
        "generations": rows,
        "control": write_model(layout, CONTROL, plain),
        "data": {"classes": CLASSES, **counts, "rejected": {"unlabeled": {"truncated": 4}}},
        "versions": {"python": "3.11", "ray": "2.60"},
        "config_hash": config_hash(settings),
    }
    text = dump(settings) + yaml.safe_dump({"config_hash": config_hash(settings)})
    store.write_bytes(layout.config, text.encode())
    store.write_json(layout.result, result)
    store.write_json(layout.sources, {"notes": {"unlabeled": ["3 files <here> are no images"]}})
    return Path(layout.root)
