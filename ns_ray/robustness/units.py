"""One unit of work: some images, one suite, and what it shows to the models."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ns_ray.config import RobustnessConfig
from ns_ray.robustness.corruptions import FAMILY, STANDARD
from ns_ray.robustness.scores import PERTURBATIONS

EXTRA_PERTURBATIONS = ("speckle_noise", "gaussian_blur", "spatter", "shear")

IMAGES_IN_A_UNIT = 64
"""A unit is finished, or done again."""


@dataclass(frozen=True)
class Unit:
    """Some images and what is done to them.

    Attributes:
        suite: corruptions, perturbations or adversarial.
        keys: of the images; for released ones their files.
        labels: int, index among the classes of the images.
        place: corpus shard, or folder of released files.
        name, level: of released files: the corruption or perturbation, and severity.
    """

    suite: Literal["corruptions", "perturbations", "adversarial"]
    keys: tuple[str, ...]
    labels: tuple[int, ...]
    place: str
    name: str | None = None
    level: int = 0

    def chunks(self) -> "Iterator[Unit]":
        """The same images in units of at most IMAGES_IN_A_UNIT."""
        for i in range(0, len(self.keys), IMAGES_IN_A_UNIT):
            j = i + IMAGES_IN_A_UNIT
            yield replace(self, keys=self.keys[i:j], labels=self.labels[i:j])


@dataclass(frozen=True)
class Shown:
    """What goes through the models at once.

    Attributes:
        name, level: corruption and severity (`clean` and 0 for none), or perturbation and 0.
        pixels: uint8 [n, side, side, 3]: n images, or the n frames of one sequence.
        labels: int [n], or [1] of a sequence.
        at: which of the unit's images they are, as many as labels.
    """

    name: str
    level: int
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    labels: tuple[int, ...]
    at: tuple[int, ...]


def names_of(config: RobustnessConfig, suite: str) -> tuple[str, ...]:
    """The corruptions or perturbations that a config asks for."""
    if suite == "corruptions":
        return tuple(FAMILY) if config.extra else STANDARD
    return PERTURBATIONS + (EXTRA_PERTURBATIONS if config.extra else ())


def passes(unit: Unit, config: RobustnessConfig) -> int:
    """About how many forward passes a unit takes for one model."""
    n = len(unit.keys)
    if unit.suite == "adversarial":  # a backward pass is worth two
        return n * len(config.epsilons) * 3 * (1 + config.pgd_steps)
    if unit.suite == "perturbations":
        return n * 31 * (1 if unit.name else len(names_of(config, "perturbations")))
    if unit.name:
        return n
    return n * (1 + len(names_of(config, "corruptions")) * len(config.severities))
