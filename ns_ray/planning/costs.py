"""What each stage of a run is going to cost: images, steps, memory and time.

Memory comes from a step replayed without data, time from a short step measured here (see
model/cost.py).
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import timm
import torch

from ns_ray.config import (
    BUDGET,
    Images,
    ModelConfig,
    NoiseConfig,
    RunConfig,
    TrainConfig,
    fixres_config,
    settle,
    train_config,
)
from ns_ray.data import Augment, Listings, decode, seeded
from ns_ray.itinerary import steps
from ns_ray.model import Cost, Rate, forward_cost, load, measured_rate, model_name, training_cost
from ns_ray.steps import Label, Part, Robustness, Score, Train, among_more
from ns_ray.store import Corpora, Facts, Kind, open_bundle
from ns_ray.training import lane_sizes, total_steps

MEASURED_MEMORY = 0.4
"""Share of the memory that a measured step may need on a machine where nothing is trained yet."""


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

    @classmethod
    def packed(cls, data: Corpora) -> "Counts":
        """Those of a run that has packed its own."""
        return cls(
            classes=len(data.labeled.classes),
            labeled=data.labeled.rows,
            unlabeled=data.unlabeled.rows if data.unlabeled else 0,
            validation=data.validation.rows,
            test=data.test.rows if data.test else 0,
        )


@dataclass(frozen=True)
class Stage:
    """A line of the plan.

    Attributes:
        id: of the step that it is, or is a part of; see steps.py.
        kind: what it does: train, label or score.
        name: of the stage.
        model: what works.
        size: side of the images in pixels.
        images: how many go through it, an image that several models label once for each.
        steps: of the optimizer; None where nothing is trained.
        cost: of a training; None for labeling and scoring, or where a bundle is given.
        rate: images/s of one worker here, None where it was not measured.
        loading: seconds in which one CPU decodes an image and noises it; 0 where there was none.
    """

    id: str
    kind: Kind
    name: str
    model: str
    size: int
    images: int
    steps: int | None
    cost: Cost | None
    rate: float | None
    loading: float = 0.0


class Planner:
    """Prices the itinerary of a run; `notes` says what is left out, and why."""

    def __init__(
        self,
        config: RunConfig,
        counts: Counts,
        device: torch.device,
        on_gpu: bool,
        measure: bool,
        images: Sequence[bytes] = (),
        memory: float = MEASURED_MEMORY,
    ) -> None:
        """
        Args:
            config, counts: the run.
            device: where steps are measured.
            on_gpu: whether the run's are on one.
            measure: whether any are.
            images: some of the run's, as they are packed, to measure what loading takes.
            memory: share of the device's memory that a measured step may need by its estimate.
        """
        self._config, self._counts = config, counts
        self._device, self._on_gpu, self._measure = device, on_gpu, measure
        self._images, self._memory = images, memory
        self._rates: dict[str, Rate | None] = {}
        self.notes: list[str] = []
        self._cost, self._forward_cost = cache(self._replayed), cache(self._forwarded)
        self._loading = cache(self._loaded)

    def stages(self, fitted: Facts | None = None) -> Iterator[Stage]:
        """One for each training, labeling and scoring of the run's itinerary.

        Args:
            fitted: what the run's time is enough for; see `config.BUDGET`.
        """
        counts = self._counts
        scored = {"validation": counts.validation, "test": counts.test}
        learnt = Images(counts.labeled, counts.unlabeled)
        for step in steps(settle(self._config, learnt, {BUDGET: fitted or {}})[0]):
            match step:
                case Train():
                    more = counts.validation if step.all_labels else 0
                    for part in among_more(step, counts.labeled, more).parts:
                        yield self._training(step, part, counts.labeled + more)
                case Label():
                    yield self._forward(step, step.teacher, counts.unlabeled * step.models)
                case Score():
                    images = scored[step.split] * step.models
                    if images:
                        yield self._forward(step, step.model, images)
                case Robustness():
                    self._note("the scoring of damaged images is not in these figures")

    def _training(self, step: Train, part: Part, labeled: int) -> Stage:
        model, train = part.model, part.train
        workers = self._config.resources.num_workers
        rows = sum(lane_sizes(train, workers, part.pseudo))
        updates = total_steps(train, labeled)
        groups = part.trained_groups
        # How many steps there are makes no difference to one.
        one = train.model_copy(update={"epochs": 1.0, "warmup_epochs": 0.0})
        cost = self._cost(_shape(model), one.model_dump_json(), rows, groups)
        rate = self._rate(model, train, cost, groups)
        images = updates * rows * workers * train.accumulate
        return Stage(
            step.id,
            "train",
            part.title,
            model.model or "",
            _size(model),
            images,
            updates,
            cost,
            rate.training if rate else None,
            self._loading(train.noise.model_dump_json(), _size(model)),
        )

    def _forward(self, step: Label | Score, model: ModelConfig, images: int) -> Stage:
        kind: Kind = "label" if isinstance(step, Label) else "score"
        if model.bundle is not None:
            bundle = open_bundle(model.bundle)
            size = load(bundle)[1].size
            return Stage(
                step.id, kind, step.title, bundle.architecture, size, images, None, None, None
            )
        train = train_config(self._config.train, model)
        finer = fixres_config(model, train)
        model, train = finer or (model, train)
        groups = model.fixres.trained_groups if model.fixres else 0
        cost = self._forward_cost(_shape(model), train.noise.model_dump_json())
        rate = self._rate(model, train, cost, groups)
        return Stage(
            step.id,
            kind,
            step.title,
            model.model or "",
            _size(model),
            images,
            None,
            None,
            rate.labeling if rate else None,
            self._loading(CLEAN.model_dump_json(), _size(model)),
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
            if needed > self._memory * there:
                self._note(
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
                    labeled=self._counts.unlabeled,
                    predict=self._config.predict,
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

    def _forwarded(self, model: str, noise: str) -> Cost:
        train = TrainConfig(noise=NoiseConfig.model_validate_json(noise))
        shape = ModelConfig.model_validate_json(model)
        return forward_cost(shape, train, classes=self._counts.classes)

    def _loaded(self, noise: str, size: int) -> float:
        """Seconds in which one CPU decodes and noises an image; the second time, as the first
        warms up."""
        if not self._images:
            return 0.0
        augment = Augment(NoiseConfig.model_validate_json(noise), size)
        with seeded(0):
            for _ in range(2):
                start = time.perf_counter()
                for image in self._images:
                    augment(decode(image, shrink_to=2 * size))
                seconds = time.perf_counter() - start
        return seconds / len(self._images)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


CLEAN = NoiseConfig(randaugment=None, crop_scale=None, flip=0.0)
"""Input noise of images that are labeled or scored."""


def _shape(model: ModelConfig) -> str:
    """A model without its training settings, as JSON."""
    return model.model_copy(update={"train": {}}).model_dump_json()


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
