"""Image sets that a model of 0.4 million parameters learns in a few steps, and their runs."""

import contextlib
import copy
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from broken_files import broken, odd_but_good

from ns_ray.data.images import encode_png

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


def given_teacher(folder: Path) -> str:
    """A bundle with random weights, so that no training comes before the pile is labeled."""
    import torch

    from ns_ray.config.training import ModelConfig
    from ns_ray.model.bundle import save
    from ns_ray.model.networks import build

    torch.manual_seed(0)
    model = build(ModelConfig.model_validate(MODEL), len(COLORS))
    names = tuple(COLORS)
    save(model, str(folder), classes=names, fingerprint="teacher", provenance={"model": "x"})
    return str(folder)


def user_environment() -> dict[str, str]:
    """What a user's shell has: nothing of what conftest.py sets for tests in this process."""
    ours = ("RAY_", "OMP_", "MALLOC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def start(script: list[str], config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program on a config, as a user starts it, to its end."""
    return subprocess.run(
        [sys.executable, *script, "--config", str(config), *arguments],
        env=user_environment(),
        cwd=config.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass(frozen=True)
class Whole:
    """A whole run, from the command line.

    Attributes:
        config: its file.
        root: its folder.
        process: how it ended, and what it printed.
        good: keys of the images of the pile that can be read.
        bad: reasons of the others, by key.
    """

    config: Path
    root: Path
    process: subprocess.CompletedProcess[str]
    good: set[str]
    bad: dict[str, str]


LONELY = "yellow"
"""A class that has one image, and none in test."""


def whole_run(folder: Path) -> Whole:
    """Make the images of a run, 2 % of the pile broken, and run it."""
    labeled = folder_per_class(folder / "labeled", 20)
    (labeled / LONELY).mkdir()
    (labeled / LONELY / "only.png").write_bytes(encode_png(np.full((SIDE, SIDE, 3), 90, np.uint8)))
    folder_per_class(folder / "test", 10, start=300)
    odd, bad = odd_but_good(), broken()
    pile = flat_folder(folder / "pile", 50 * len(bad) - len(odd) - len(bad), start=500)
    good = {path.name for path in pile.iterdir()} | set(odd)
    for name, data in (odd | {name: data for name, (data, _) in bad.items()}).items():
        (pile / name).write_bytes(data)
    config = write_config(
        folder / "tiny.yaml",
        {
            "storage": str(folder / "runs"),
            "data.labeled": str(labeled),
            "data.unlabeled": [str(pile)],
            "data.test": str(folder / "test"),
        },
    )
    process = start(["-m", "ns_ray.run"], config)
    reasons = {name: reason for name, (_, reason) in bad.items()}
    return Whole(config, folder / "runs" / "tiny", process, good, reasons)


@contextlib.contextmanager
def interrupted_at(title: str) -> Iterator[None]:
    """Inside, a run in this process gets Ctrl-C where the training of this title would begin."""
    from ns_ray.training import fit

    def interrupted(*arguments: Any, title: str, **asked: Any) -> Any:
        if title == stop:
            raise KeyboardInterrupt
        return fit(*arguments, title=title, **asked)

    stop = title
    with mock.patch("ns_ray.stages.fit", interrupted):
        yield


def processes(name: str) -> list[Any]:
    """Processes that this one has started, at any depth, with a word in their command line."""
    import psutil  # comes with Ray

    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended in the meantime
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found
