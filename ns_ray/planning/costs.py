"""What each stage of a run is going to cost: images, steps, memory and time.

Memory comes from a step replayed without data, time from a short step measured here (see
model/cost.py).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import timm
import torch

from ns_ray.compute import Machine
from ns_ray.config import (
    Images,
    ModelConfig,
    RunConfig,
    TrainConfig,
    fixres_config,
    settle,
    train_config,
)
from ns_ray.data import Listings
from ns_ray.model import Cost, Rate, forward_cost, load, measured_rate, model_name, training_cost
from ns_ray.steps import Label, Part, Robustness, Score, Train, steps
from ns_ray.store import open_bundle
from ns_ray.training import lane_sizes, total_steps

MEASURED_MEMORY = 0.4
"""Share of the machine's memory that a measured step may need by its estimate."""


@dataclass(frozen=True)
class Counts:
    """Images of a run."""

    classes: int
    labeled: int
    unlabeled: int
    validation: int
    test: int

    @classmethod
    def of(cls, found: Listings) -> "Counts":
        """Those that the sources list."""
        return cls(
            classes=len(found.labeled.classes),
            labeled=found.labeled.rows,
            unlabeled=found.unlabeled.rows if found.unlabeled else 0,
            validation=found.validation.rows,
            test=found.test.rows if found.test else 0,
        )


@dataclass(frozen=True)
class Stage:
    """A line of the plan.

    Attributes:
        name: of the stage.
        model: what works.
        size: side of the images in pixels.
        images: how many go through it, an image that several models label once for each.
        steps: of the optimizer; None where nothing is trained.
        cost: of a training; None for labeling and scoring, or where a bundle is given.
        rate: images/s of one worker here, None where it was not measured.
    """

    name: str
    model: str
    size: int
    images: int
    steps: int | None
    cost: Cost | None
    rate: float | None

    @property
    def seconds(self) -> float | None:
        """With one worker like this machine."""
        return self.images / self.rate if self.rate else None


class Planner:
    """Prices the itinerary of a run; `notes` says what is left out, and why."""

    def __init__(
        self, config: RunConfig, counts: Counts, machine: Machine, on_gpu: bool, measure: bool
    ) -> None:
        self._config, _ = settle(config, Images(counts.labeled, counts.unlabeled))
        self._counts, self._on_gpu = counts, on_gpu
        self._device = torch.device("cuda" if machine.gpus and on_gpu else "cpu")
        self._measure = measure
        self._rates: dict[str, Rate | None] = {}
        self.notes: list[str] = []
        self._cost = cache(self._replayed)

    def stages(self) -> Iterator[Stage]:
        """One for each training, labeling and scoring of the run's itinerary."""
        counts = self._counts
        scored = {"validation": counts.validation, "test": counts.test}
        for step in steps(self._config):
            match step:
                case Train():
                    for part in step.parts:
                        yield self._training(part)
                case Label():
                    yield self._forward(step.title, step.teacher, counts.unlabeled * step.models)
                case Score():
                    images = scored[step.split] * step.models
                    if images:
                        yield self._forward(step.title, step.model, images)
                case Robustness():
                    self.notes.append("the scoring of damaged images is not in these figures")

    def _training(self, part: Part) -> Stage:
        model, train = part.model, part.train
        workers = self._config.resources.num_workers
        rows = sum(lane_sizes(train, workers, part.pseudo))
        updates = total_steps(train, self._counts.labeled)
        groups = part.trained_groups
        cost = self._cost(model.model_dump_json(), train.model_dump_json(), rows, groups)
        rate = self._rate(model, train, cost, groups)
        images = updates * rows * workers * train.accumulate
        return Stage(
            part.title,
            model.model or "",
            _size(model),
            images,
            updates,
            cost,
            rate.training if rate else None,
        )

    def _forward(self, name: str, model: ModelConfig, images: int) -> Stage:
        if model.bundle is not None:
            bundle = open_bundle(model.bundle)
            return Stage(name, bundle.architecture, load(bundle)[1].size, images, None, None, None)
        train = train_config(self._config.train, model)
        finer = fixres_config(model, train)
        model, train = finer or (model, train)
        groups = model.fixres.trained_groups if model.fixres else 0
        cost = forward_cost(model, train, classes=self._counts.classes)
        rate = self._rate(model, train, cost, groups)
        return Stage(
            name,
            model.model or "",
            _size(model),
            images,
            None,
            None,
            rate.labeling if rate else None,
        )

    def _rate(self, model: ModelConfig, train: TrainConfig, cost: Cost, groups: int) -> Rate | None:
        """Measured once for a model and size, where the memory is there."""
        name = f"{model.model} at {_size(model)} px"
        if self._measure and name not in self._rates:
            self._rates[name] = None
            cuda = self._device.type == "cuda"
            # A pass of two images on a CPU; the whole one on a GPU.
            needed = cost.bytes(cuda) if cuda else int(cost.state_bytes * 2.5)
            there = _memory(self._device)
            if needed > MEASURED_MEMORY * there:
                self.notes.append(
                    f"{name} is not measured: it needs about {needed / 1e9:.0f} GB, and "
                    f"{there / 1e9:.0f} GB are here"
                )
            else:
                self._rates[name] = measured_rate(
                    model,
                    train,
                    cost,
                    classes=self._counts.classes,
                    device=self._device,
                    trained_groups=groups,
                )
        return self._rates.get(name)

    def _replayed(self, model: str, train: str, rows: int, groups: int) -> Cost:
        config = TrainConfig.model_validate_json(train)
        return training_cost(
            ModelConfig.model_validate_json(model),
            config,
            classes=self._counts.classes,
            rows=rows,
            bf16=self._on_gpu if config.precision == "auto" else config.precision == "bf16",
            workers=self._config.resources.num_workers,
            trained_groups=groups,
        )


@cache
def _built_size(name: str) -> int:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return int(config.input_size[-1]) if config else 224


def _size(model: ModelConfig) -> int:
    """Side of a model's images in pixels, its own where none is set."""
    return model.image_size or _built_size(model_name(model))


def _memory(device: torch.device) -> int:
    """Bytes: free ones of a GPU, all of the machine else."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
