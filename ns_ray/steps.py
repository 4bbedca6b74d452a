"""What a step of a run is: what it works on, and where its output lies. See itinerary.py."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

from ns_ray.config import AcceptConfig, ModelConfig, TrainConfig, fixres_config, longer
from ns_ray.store import arm_name

Role = Literal["teacher", "student", "control"]
Split = Literal["labeled", "unlabeled", "validation", "test"]


@dataclass(frozen=True)
class Step:
    """One thing that a run does.

    Attributes:
        id: names it, also in metrics.jsonl: `gen-01/train`. Unique in a run.
        title: for people: `gen-01 train`.
        out: folder of what it leaves.
    """

    id: str
    title: str
    out: str


@dataclass(frozen=True)
class Pack(Step):
    """A set of images becomes a corpus."""

    split: Split


@dataclass(frozen=True)
class Part:
    """One training of a `Train` step: with `fixres` it has two.

    Attributes:
        title: for people: that of the step, and that of the second says `fixres`.
        model: what is trained.
        train: how.
        pseudo: whether on pseudo-labeled images, too.
        trained_groups: only the last groups of layers learn, this many; 0: all.
    """

    title: str
    model: ModelConfig
    train: TrainConfig
    pseudo: bool
    trained_groups: int


@dataclass(frozen=True)
class Train(Step):
    """A model is trained.

    Attributes:
        generation: of the model; CONTROL for the control arm.
        role: what the model is for.
        model: architecture and start weights.
        train: how, the model's own settings included.
        pseudo: whether on pseudo-labeled images, too.
        checkpoints: folder of what is kept while it is trained.
        all_labels: whether the validation images are among the labeled ones; see `among_more`.
        temperature: what its logits are divided by, where that is not fitted on validation images.
    """

    generation: int
    role: Role
    model: ModelConfig
    train: TrainConfig
    pseudo: bool
    checkpoints: str
    all_labels: bool = False
    temperature: float | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The training, and the fine-tuning at a higher resolution where there is one."""
        first = Part(self.title, self.model, self.train, self.pseudo, 0)
        finer = fixres_config(self.model, self.train)
        if finer is None or self.model.fixres is None:
            return (first,)
        return (
            first,
            Part(f"{self.title} fixres", *finer, False, self.model.fixres.trained_groups),
        )


@dataclass(frozen=True)
class Label(Step):
    """The teacher of a generation labels the pile.

    Attributes:
        generation: of the first student that learns from these labels.
        teacher: the model that labels, if every student is accepted.
        models: how many such models label together: more than one where the first teachers do.
    """

    generation: int
    teacher: ModelConfig
    models: int


@dataclass(frozen=True)
class Select(Step):
    """Which pseudo-labeled images train the student of a generation."""

    generation: int


@dataclass(frozen=True)
class Score(Step):
    """A model is scored on validation or test images.

    Attributes:
        generation: of the model; CONTROL for the control arm.
        model: its settings.
        split: the images.
        models: how many such models are scored as one, by the average of their probabilities.
    """

    generation: int
    model: ModelConfig
    split: Split
    models: int = 1


@dataclass(frozen=True)
class Robustness(Step):
    """The models that matter are scored on damaged images; `out` is that of the first teacher."""


@dataclass(frozen=True)
class Publish(Step):
    """The best model is copied to where it is served from."""


@dataclass(frozen=True)
class Arm:
    """A model of the run, and the steps that make and score it.

    Attributes:
        generation: 0, 1, ...; CONTROL for the control arm.
        role: what it is for.
        model: its settings.
        trainings: none where the teacher is given, two with `finetune`: the second starts from
            what the first has made.
        validation, test: its scoring; no test where the run has no test images.
    """

    generation: int
    role: Role
    model: ModelConfig
    trainings: tuple[Train, ...]
    validation: Score
    test: Score | None

    @property
    def name(self) -> str:
        """`gen-01` or `control`."""
        return arm_name(self.generation)


@dataclass(frozen=True)
class Teacher(Arm):
    """The first teacher, and those that label with it where `label.teachers` asks for several.

    Attributes:
        others: their trainings.
        average: the scoring of the average of all; None where there are no others.
    """

    others: tuple[Train, ...]
    average: Score | None


@dataclass(frozen=True)
class Student(Arm):
    """A student, and how its lesson is made.

    Attributes:
        label: by the teacher of the generation before. A student that was refused leaves its
            teacher in place, and the labels of that teacher where they are.
        select: what this student learns from those labels.
    """

    label: Label
    select: Select


@dataclass(frozen=True)
class Refit:
    """The best student and the models that led to it once more, with the validation images among
    the labeled ones.

    Attributes:
        out: folder of those images.
        teacher, students: as before, in folders of their own; nothing is left to validate them on.
        test: of the last of them; None where the run has no test images.
    """

    out: str
    teacher: Teacher
    students: tuple[Student, ...]
    test: Score | None

    @property
    def trainings(self) -> tuple[Train, ...]:
        """Those of all its models."""
        students = (step for arm in self.students for step in arm.trainings)
        return (*self.teacher.trainings, *self.teacher.others, *students)

    def __iter__(self) -> Iterator[Step]:
        """The steps, in the order in which they are taken."""
        yield from (*self.teacher.trainings, *self.teacher.others)
        for arm in self.students:
            yield from (arm.label, arm.select, *arm.trainings)
        if self.test:
            yield self.test


def among_more(step: Train, labeled: int, more: int) -> Train:
    """The same training with more labeled images: steps grow as the square root of their number."""
    return replace(step, train=longer(step.train, sqrt(labeled / (labeled + more))))


def teaches_next(accepted: bool, config: AcceptConfig) -> bool:
    """Whether a student takes its teacher's place."""
    return accepted or config.otherwise == "continue"


def teachers(accepted: Sequence[bool], config: AcceptConfig) -> list[int]:
    """Generation of the teacher of each student, from what became of the students in turn."""
    found, teacher = [], 0
    for g, student_accepted in enumerate(accepted, start=1):
        found.append(teacher)
        if teaches_next(student_accepted, config):
            teacher = g
    return found
