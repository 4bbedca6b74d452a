"""What a training worker is told to do, as plain values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ns_ray.config import TrainConfig
from ns_ray.errors import ConfigError

Tell = Callable[[tuple[int, dict[str, float]]], object]
"""Takes what rank 0 has to say: the step, and values such as the loss."""


@dataclass(frozen=True)
class Job:
    """All that a training worker needs to know, as plain values."""

    model: dict[str, Any]
    train: dict[str, Any]
    labeled: str
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
    threads: int
    accumulate: int
    provenance: dict[str, Any]


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
