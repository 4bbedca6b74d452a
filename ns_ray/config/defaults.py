"""What the product chooses where a run's `train` section does not say: steps, rates, batch, noise.

From the number of labels, the size of the pile, the models, and whether they are pretrained. What
is set stays as it is. The numbers are those of docs/decisions/0032. Knows nothing about files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

from ns_ray.config.run import RunConfig
from ns_ray.config.training import ModelConfig, merged

FEW_LABELS = 2000
"""Labeled images up to which a pretrained model starts from a fitted classifier (which takes
seconds then; with more, there are steps enough to learn one from nothing) and its BatchNorms keep
their statistics."""
SMALL_IMAGE = 64
"""Images up to so many pixels are shifted rather than cropped and enlarged."""


@dataclass(frozen=True)
class Images:
    """What there is to learn from.

    Attributes:
        labeled: labeled images.
        pile: unlabeled ones.
        symmetric: whether mirrored images look like the others (data/mirrored.py).
    """

    labeled: int
    pile: int
    symmetric: bool = True


TEACHERS = 3
"""First teachers where labels are few: they take little time then, and differ much."""

BUDGET, LABEL = "budget", "label"
"""Among what is chosen, beside the models: how many teachers label for the first student, and what
the run's time is enough for (planning/budget.py). `steps`: the share of the steps that would be
chosen otherwise. `students`: how many of them."""

OPTIMIZATION = (
    "optimizer", "lr", "weight_decay", "clip_grad", "schedule", "warmup_epochs", "ema_decay"
)  # fmt: skip
"""What goes together: all of it is chosen, or with an `optimizer` or `lr` of the user's nothing."""


def settle(
    config: RunConfig, images: Images, before: Mapping[str, Any] | None = None
) -> tuple[RunConfig, dict[str, dict[str, Any]]]:
    """Choose what a run leaves open.

    Args:
        config: the run.
        images: what it has.
        before: what was chosen when the run began, perhaps by an earlier version: that stays. Of a
            run with a budget, at first only what fits into it.

    Returns:
        The run with every model's training settings and the number of teachers written out, and
        by model (`teacher`, `students.0`, ...) and section those of them that were chosen.
    """
    asked = config.train.model_dump(mode="json", exclude_unset=True)
    before = before or {}
    fitted = before.get(BUDGET, {})
    chosen = {BUDGET: dict(fitted)}

    def settled(place: str, model: ModelConfig) -> ModelConfig:
        if model.bundle is not None:
            return model
        said = merged(asked, model.train)
        start = config.teacher if model.init == "teacher" else model
        defaults = _training(
            said,
            images,
            student=place != "teacher",
            pretrained=start.pretrained is not None or start.bundle is not None,
            small=(model.image_size or SMALL_IMAGE + 1) <= SMALL_IMAGE,
            lanes=config.resources.num_workers * said.get("accumulate", 1),
            length=fitted.get("steps", 1.0),
        )
        chosen[place] = _missing({**defaults, **before.get(place, {})}, said)
        return model.model_copy(update={"train": merged(chosen[place], model.train)})

    teacher = settled("teacher", config.teacher)
    models = config.students[: fitted.get("students")]
    students = tuple(settled(f"students.{i}", m) for i, m in enumerate(models))
    teachers = config.label.teachers
    if teachers is None:
        begun, own = {*before} - {BUDGET}, "epochs" not in chosen.get("teacher", {})
        usual = 1 if begun or own else _teachers(config, images)
        teachers = before.get(LABEL, {}).get("teachers", usual)
        chosen[LABEL] = {"teachers": teachers} if teachers > 1 else {}
    label = config.label.model_copy(update={"teachers": teachers})
    made = config.model_copy(update={"teacher": teacher, "students": students, "label": label})
    return made, {place: found for place, found in chosen.items() if found}


def _teachers(config: RunConfig, images: Images) -> int:
    """How many first teachers label together."""
    return TEACHERS if config.teacher.bundle is None and images.labeled <= FEW_LABELS else 1


def _training(
    said: Mapping[str, Any],
    images: Images,
    *,
    student: bool,
    pretrained: bool,
    small: bool,
    lanes: int,
    length: float,
) -> dict[str, Any]:
    """Settings of one training, as if only how long it is and its batch had been said; `length` is
    the share of the steps that the time is enough for."""
    few = images.labeled <= FEW_LABELS
    batch = 32 if few else 64
    if pretrained:
        if student:  # three times as many images come with the labeled ones
            batch //= 2
        steps = 20 * sqrt(images.labeled)
        if student:
            steps = max(1.5 * steps, 3 * sqrt(images.pile))
        lr, ratio = (1e-3 if student else 3e-4), 3.0
        noise = {"randaugment": "rand-m9-mmax30-n2-p1.0", "dropout": 0.2}
    else:
        steps = max(30 * sqrt(images.labeled), 60 * images.labeled / batch)
        if not student:  # a step of it takes an eighth of the images of a student's
            steps *= 2
        lr, ratio = 4e-3, 7.0
        noise = {"randaugment": "rand-m9-n2-p1.0", "dropout": 0.1}
    batch = said.get("batch_size", ceil(batch / lanes) * lanes)
    epochs = said.get("epochs", round(length * steps * batch / images.labeled, 2))
    found = {
        "epochs": epochs,
        "batch_size": batch,
        "unlabeled_ratio": ratio,
        "batch_norm": "kept" if pretrained and few else "live",
        "optimizer": "adamw",
        "lr": lr,
        "weight_decay": 0.05,
        "clip_grad": 1.0,
        "schedule": "cosine",
        "warmup_epochs": round(epochs / 10, 2),
        "ema_decay": 0.99,
        "noise": {
            **noise,
            "crop_scale": None if small else [0.3, 1.0],
            "crop_padding": 0.1 if small else 0.0,
            "flip": 0.5 if images.symmetric else 0.0,
            "stochastic_depth": 0.0,
        },
    }
    own = "optimizer" in said or "lr" in said
    return {k: v for k, v in found.items() if not (own and k in OPTIMIZATION)}


def _missing(defaults: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the defaults that nothing said takes the place of."""
    found = {}
    for name, value in defaults.items():
        if name not in said:
            found[name] = value
        elif isinstance(value, Mapping):
            found[name] = _missing(value, said[name])
    return {name: value for name, value in found.items() if value != {}}
