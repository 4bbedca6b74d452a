"""What a training worker is told to do, as plain values."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ns_ray.config import TrainConfig
from ns_ray.errors import ConfigError

Tell = Callable[[tuple[int, dict[str, float]] | str], object]
"""Takes what rank 0 has to say: the step, and values such as the loss; or a line for people."""

MetricsSink = Callable[[int, Mapping[str, float]], None]
"""Takes (step, values) for the record of a run."""


@dataclass(frozen=True)
class Job:
    """All that a training worker needs to know, as plain values."""

    model: dict[str, Any]
    train: dict[str, Any]
    labeled: str
    validation: str | None
    """Corpus that the temperature is fitted on; None: it is not fitted."""
    selection: str | None
    soft: bool
    temperature: float
    start_from: str | None
    seed: int
    out: str
    checkpoint: str
    fingerprint: str
    steps: int
    loaders: int
    in_turn: bool
    """Whether the loaders rest while the model works (see `loader.from_tasks`)."""
    threads: int
    device: str
    """Where the model learns: cpu or cuda."""
    lanes: int
    """Forward passes of a step, over all workers (see rows.py)."""
    trained_groups: int
    """Only the last groups of layers are trained, this many; 0: all."""
    provenance: dict[str, Any]
    given_temperature: float | None = None
    """What the logits are divided by where none is fitted; None: they stay as they are."""


@dataclass(frozen=True)
class Limits:
    """What a training bears.

    Attributes:
        max_failures: restarts after a lost worker or node, without a step forward between them; -1:
            any number.
        max_wait: for nodes that have room for a worker, such as 15m.
    """

    max_failures: int = 3
    max_wait: str = "15m"


def total_steps(train: TrainConfig, labeled_rows: int) -> int:
    """Optimizer steps of a training: epochs count passes over the labeled images."""
    return max(1, math.ceil(train.epochs * labeled_rows / train.batch_size))


def lane_sizes(train: TrainConfig, workers: int, pseudo: bool) -> tuple[int, int]:
    """Labeled and pseudo-labeled images of one forward pass.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """
    lanes = workers * train.accumulate
    unlabeled = round(train.batch_size * train.unlabeled_ratio) if pseudo else 0
    for size, setting in [(train.batch_size, "batch_size"), (unlabeled, "unlabeled_ratio")]:
        if size % lanes:
            raise ConfigError(
                f"train.{setting} gives {size} images per step, which {workers} workers x "
                f"{train.accumulate} passes cannot share evenly; make it a multiple of {lanes}"
            )
    return train.batch_size // lanes, unlabeled // lanes
