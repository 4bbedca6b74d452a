"""What came of a run: its models, and the `result.json` that is made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

from ns_ray import store
from ns_ray.config import RunConfig, config_hash
from ns_ray.steps import Arm, Role
from ns_ray.store import Bundle, Corpora, Evaluation, Facts, PseudoLabels, Selection


@dataclass(frozen=True)
class Lesson:
    """What a student was taught.

    Attributes:
        teacher: generation of the model that labeled.
        labels: its pseudo-labels of the pile.
        selection: those of them that train the student.
    """

    teacher: int
    labels: PseudoLabels
    selection: Selection


@dataclass(frozen=True)
class Generation:
    """A trained model: the first teacher, a student, or the control arm.

    Attributes:
        arm: its steps.
        bundle: the model.
        validation, test: its scores; those on test come last.
        accepted: whether it may be served, and teach.
        p_value: of a student, that it is no better than its teacher.
        lesson: of a student.
        robustness: its scores on damaged images, where they were asked for.
        before_fixres: those of the model before its fine-tuning at a higher resolution.
        others: of the first teacher: further ones, which label with it.
        average: scores of the average of all first teachers on validation, where there are others.
    """

    arm: Arm
    bundle: Bundle
    validation: Evaluation
    accepted: bool
    p_value: float | None = None
    lesson: Lesson | None = None
    test: Evaluation | None = None
    robustness: Facts | None = None
    before_fixres: Facts | None = None
    others: tuple[Bundle, ...] = ()
    average: Evaluation | None = None

    @property
    def generation(self) -> int:
        """0, 1, ...; CONTROL for the control arm."""
        return self.arm.generation

    @property
    def name(self) -> str:
        """`gen-01` or `control`."""
        return self.arm.name

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """The models that label where this one teaches."""
        return (self.bundle, *self.others)

    def among(self, others: tuple[Bundle, ...], average: Evaluation) -> "Generation":
        """The same model as the first of several teachers, and what their average scores."""
        return replace(self, others=others, average=average)

    def tested(self, test: Evaluation) -> "Generation":
        """The same model with its scores on test images."""
        return replace(self, test=test)

    def damaged(self, robustness: Facts, before_fixres: Facts | None) -> "Generation":
        """The same model with its scores on damaged images."""
        return replace(self, robustness=robustness, before_fixres=before_fixres)


@dataclass(frozen=True)
class Refitted:
    """The best student, made once more with the validation images among the labeled ones.

    Attributes:
        models: the first teacher to that student, the models that led to it.
        labeled: labeled images they were trained on.
        test: its scores; None where the run has no test images.
    """

    models: tuple[Generation, ...]
    labeled: int
    test: Evaluation | None

    @property
    def bundle(self) -> Bundle:
        """The model."""
        return self.models[-1].bundle


class Counts(TypedDict):
    """Pseudo-labels of a student: all, those kept, and those with copies."""

    rows: int
    kept: int
    copies: int


class Teachers(TypedDict):
    """First teachers that label together: how many, and the accuracy of their average."""

    count: int
    val_top1: float


class Entry(TypedDict):
    """A model in result.json. Accuracies are fractions; seconds of the first teacher are those of
    all that label with it."""

    generation: int
    role: Role
    model: str
    parameters: int
    val_top1: float
    test_top1: float | None
    scores: Mapping[str, Facts | None]
    robustness: Facts | None
    accepted: bool
    p_value: float | None
    pseudo_labels: Counts | None
    seconds: dict[str, float]
    images_per_second: dict[str, float]
    teachers: NotRequired[Teachers]


class RefitEntry(TypedDict):
    """The model that was delivered in place of the best generation, in result.json; `generations`
    are those that led to it, seconds those of all of them."""

    generations: list[int]
    labeled: int
    test_top1: float | None
    scores: Mapping[str, Facts | None]
    seconds: dict[str, float]


class Result(TypedDict):
    """All of result.json; `model` is the folder of what is served, in that of the run."""

    name: str
    status: str
    best_generation: int
    model: str
    generations: list[Entry]
    control: Entry | None
    refit: NotRequired[RefitEntry]
    data: Facts
    versions: Mapping[str, str]
    config_hash: str


def result(
    config: RunConfig,
    data: Corpora,
    models: Sequence[Generation],
    best: int,
    refit: Refitted | None = None,
) -> Result:
    """What `result.json` says.

    Args:
        config: the run.
        data: its images.
        models: the first teacher, the students, and the control arm where there is one.
        best: generation of what is served, or of the student that was made once more for it.
        refit: that model, where there is one.
    """
    generations = [g for g in models if g.arm.role != "control"]
    control = [g for g in models if g.arm.role == "control"]
    corpora = {name: corpus for name, corpus in vars(data).items() if corpus is not None}
    accepted = any(g.accepted for g in generations[1:])
    found: Result = {
        "name": config.name,
        "status": "done" if accepted else "no_student_accepted",
        "best_generation": best,
        "model": "model",
        "generations": [_entry(g) for g in generations],
        "control": _entry(control[0]) if control else None,
        "data": {
            "classes": list(data.labeled.classes),
            **{name: corpus.rows for name, corpus in corpora.items()},
            "rejected": {name: dict(corpus.rejected) for name, corpus in corpora.items()},
        },
        "versions": store.versions(),
        "config_hash": config_hash(config),
    }
    if refit is not None:
        seconds = {
            "train": sum(bundle.seconds for g in refit.models for bundle in g.bundles),
            "label": sum(g.lesson.labels.seconds for g in refit.models if g.lesson),
            "test": refit.test.seconds if refit.test else 0.0,
        }
        found["refit"] = {
            "generations": [g.generation for g in refit.models],
            "labeled": refit.labeled,
            "test_top1": refit.test.top1 if refit.test else None,
            "scores": {"test": _summary(refit.test.scores) if refit.test else None},
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
        }
    return found


def _entry(g: Generation) -> Entry:
    seconds = {
        "train": sum(bundle.seconds for bundle in g.bundles),
        "validation": sum(scores.seconds for scores in (g.validation, g.average) if scores),
    }
    rates = {"train": g.bundle.images_per_second}
    # A refused student's teacher has labeled already, and is not paid twice.
    if g.lesson is not None and g.lesson.teacher == g.generation - 1:
        seconds = {"label": g.lesson.labels.seconds, **seconds}
        rates = {"label": g.lesson.labels.images_per_second, **rates}
    if g.test is not None:
        seconds["test"] = g.test.seconds
    entry: Entry = {
        "generation": g.generation,
        "role": g.arm.role,
        "model": g.arm.model.model or g.bundle.architecture,
        "parameters": g.bundle.parameters,
        "val_top1": g.validation.top1,
        "test_top1": g.test.top1 if g.test else None,
        "scores": {
            "validation": _summary(g.validation.scores),
            "test": _summary(g.test.scores) if g.test else None,
        },
        "robustness": None if g.robustness is None else robustness_summary(g.robustness),
        "accepted": g.accepted,
        "p_value": g.p_value,
        "pseudo_labels": None
        if g.lesson is None
        else {
            "rows": g.lesson.labels.rows,
            "kept": g.lesson.selection.kept,
            "copies": g.lesson.selection.copies,
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "images_per_second": rates,
    }
    if g.average is not None:
        entry["teachers"] = {"count": len(g.bundles), "val_top1": g.average.top1}
    return entry


def _summary(scores: Facts) -> Facts:
    """The scores that are one number, and the interval of the accuracy."""
    not_scores = ("rejected", "images_per_second")
    return {
        name: value
        for name, value in scores.items()
        if (isinstance(value, int | float) or name == "top1_interval") and name not in not_scores
    }


def robustness_summary(found: Facts) -> Facts:
    """The numbers of a robustness result that stand alone and their intervals, and the accuracy
    under attacks by epsilon."""
    numbers = {
        name: v
        for name, v in found.items()
        if isinstance(v, int | float | str) or (name.endswith("_interval") and v is not None)
    }
    attacks = found.get("adversarial")
    return {**numbers, **attacks} if isinstance(attacks, Mapping) else numbers
