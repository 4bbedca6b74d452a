"""Image sets that a model of 0.4 million parameters learns in a few steps, and their runs."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ns_ray.images import encode_png

COLORS = {"blue": (40, 60, 200), "green": (60, 170, 60), "red": (200, 60, 50)}
SIDE = 16

MODEL = {"model": "test_resnet", "image_size": 32, "crop_pct": 1.0}

RUN: dict[str, Any] = {
    "name": "tiny",
    "data": {"validation_size": 30, "rows_per_shard": 40},
    "teacher": MODEL,
    "students": [MODEL],
    "train": {
        "epochs": 4,
        "batch_size": 10,
        "unlabeled_ratio": 1,
        "lr": 0.05,
        "ema_decay": 0.9,
        "log_steps": 1,
        "checkpoint_seconds": 0,
        "noise": {"randaugment": "rand-m3-n1-p0.5", "crop_scale": [0.5, 1.0]},
    },
    "accept": {"max_p": 1.0},
    "resources": {"loaders": 1, "label_actors": 1, "cpus_per_actor": 1, "cpus_per_worker": 1},
}
"""A run of seconds; `data.labeled` and the like are to be filled in."""


def png(name: str, seed: int) -> bytes:
    """A picture of a class: its color under much noise."""
    rng = np.random.default_rng([seed, *name.encode()])
    noise = rng.normal(0, 60, (SIDE, SIDE, 3))
    return encode_png(np.clip(np.array(COLORS[name]) + noise, 0, 255).astype(np.uint8))


def folder_per_class(
    folder: Path, count: int, start: int = 0, names: Iterable[str] = COLORS
) -> Path:
    """`count` pictures of each class, made from the seeds that follow `start`."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(start, start + count):
            (folder / name / f"{i:04d}.png").write_bytes(png(name, i))
    return folder


def flat_folder(folder: Path, count: int, start: int = 0) -> Path:
    """`count` pictures of all classes in turn, unlabeled."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(COLORS)
    for i in range(start, start + count):
        (folder / f"{i:04d}.png").write_bytes(png(names[i % len(names)], i))
    return folder


def settings(changes: Mapping[str, Any]) -> dict[str, Any]:
    """`RUN` with other values, given as {"train.epochs": 2}."""
    plain = copy.deepcopy(RUN)
    for path, value in changes.items():
        node = plain
        *parents, last = path.split(".")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return plain


def write_config(path: Path, changes: Mapping[str, Any]) -> Path:
    """`settings` as a YAML file."""
    path.write_text(yaml.safe_dump(settings(changes)))
    return path


def processes(name: str) -> list[Any]:
    """Processes that this one has started, at any depth, with a word in their command line."""
    import psutil  # comes with Ray

    children = psutil.Process().children(recursive=True)
    return [process for process in children if name in " ".join(process.cmdline())]
