"""The itinerary: which steps a run has, what each works on, and where its output lies.

The driver takes these steps, `ns-ray plan` prices them, and `ns-ray status` looks for what they
leave. Pure: it follows from the settings alone, and no file is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal

from ns_ray import store
from ns_ray.config import (
    AcceptConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    finetuning,
    fixres_config,
    longer,
    pretraining,
    train_config,
)
from ns_ray.store import CONTROL, REFIT, RunLayout, arm_name

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
        generation: of the model; CONTROL for the control arm, REFIT for the best student again.
        role: what the model is for.
        model: architecture and start weights.
        train: how, the model's own settings included.
        pseudo: whether on pseudo-labeled images, too.
        checkpoints: folder of what is kept while it is trained.
        temperature: what its logits are divided by, where that is not fitted on validation images.
    """

    generation: int
    role: Role
    model: ModelConfig
    train: TrainConfig
    pseudo: bool
    checkpoints: str
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
    """The best student once more, with the validation images among the labeled ones.

    Attributes:
        out: folder of those images.
        trainings: those of the student; see `among_more`.
        test: None where the run has no test images.
    """

    out: str
    trainings: tuple[Train, ...]
    test: Score | None


@dataclass(frozen=True)
class Itinerary:
    """All steps of a run."""

    images: tuple[Pack, ...]
    teacher: Teacher
    students: tuple[Student, ...]
    control: Arm | None
    refit: Refit | None
    robustness: Robustness | None
    model: Publish

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The first teacher, the students, and the control arm where there is one."""
        return (self.teacher, *self.students, *([self.control] if self.control else []))

    def __iter__(self) -> Iterator[Step]:
        """The steps, in the order in which they are taken."""
        yield from self.images
        for arm in self.arms:
            if isinstance(arm, Student):
                yield from (arm.label, arm.select)
            yield from (*arm.trainings, arm.validation)
            if isinstance(arm, Teacher) and arm.average:
                yield from (*arm.others, arm.average)
        yield from (arm.test for arm in self.arms if arm.test)
        if self.refit:
            yield from self.refit.trainings
            yield from [self.refit.test] if self.refit.test else []
        if self.robustness:
            yield self.robustness
        yield self.model


def steps(
    config: RunConfig, layout: RunLayout | None = None, *, students: int | None = None
) -> Itinerary:
    """What a run consists of.

    Args:
        config: the run.
        layout: where it lives; None: where the config says.
        students: how many there were, in a run that has ended before the last of them. None: all.
    """
    layout = layout or RunLayout.of(config)
    splits: list[Split] = ["validation", "labeled", "unlabeled"]
    if config.data.test is not None:
        splits.insert(1, "test")
    models = config.students[:students]
    make = _Maker(config, layout)
    control = alone(models[-1], config.teacher)
    return Itinerary(
        images=tuple(
            Pack(f"corpora/{split}", f"{split} corpus", layout.corpus(split), split)
            for split in splits
        ),
        teacher=make.teacher(config.teacher),
        students=tuple(
            make.student(g, model, (config.teacher, *models)[g - 1])
            for g, model in enumerate(models, start=1)
        ),
        control=make.arm(CONTROL, "control", control) if config.control else None,
        refit=make.refit(models[-1]) if config.refit and models else None,
        robustness=Robustness("robustness", "robustness", layout.robustness(arm_name(0)))
        if config.evaluate.robustness
        else None,
        model=Publish("model", "model", layout.model),
    )


def among_more(step: Train, labeled: int, more: int) -> Train:
    """The same training with more labeled images: steps grow as the square root of their number."""
    return replace(step, train=longer(step.train, sqrt(labeled / (labeled + more))))


def alone(student: ModelConfig, teacher: ModelConfig) -> ModelConfig:
    """The student without a teacher: one that starts from its teacher's weights starts from those
    that the first teacher started from."""
    if student.init == "scratch":
        return student
    start = teacher.pretrained or teacher.bundle
    return student.model_copy(update={"init": "scratch", "pretrained": start})


@dataclass(frozen=True)
class _Maker:
    config: RunConfig
    layout: RunLayout

    def arm(self, g: int, role: Role, model: ModelConfig) -> Arm:
        test = self._score(g, model, "test") if self.config.data.test is not None else None
        trainings = tuple(self._trainings(g, role, model))
        return Arm(g, role, model, trainings, self._score(g, model, "validation"), test)

    def teacher(self, model: ModelConfig) -> Teacher:
        arm, count = self.arm(0, "teacher", model), self.config.label.teachers or 1
        others = tuple(self._other(arm.trainings[0], k) for k in range(2, count + 1))
        title, out = f"{arm.name} average", self.layout.average
        score = Score(f"{arm.name}/average", title, out, 0, model, "validation", count)
        return Teacher(**vars(arm), others=others, average=score if others else None)

    def _other(self, first: Train, k: int) -> Train:
        """The training of the k-th first teacher."""
        folder = self.layout.teacher(k)
        return replace(
            first,
            id=f"{first.id}-{k:02d}",
            title=f"{first.title} {k}",
            out=store.join(folder, "bundle"),
            checkpoints=store.join(folder, "checkpoints"),
        )

    def student(self, g: int, model: ModelConfig, teacher: ModelConfig) -> Student:
        name, out = arm_name(g), self.layout.pseudo_labels(g)
        models = (self.config.label.teachers or 1) if g == 1 else 1
        label = Label(f"{name}/label", f"{name} label", out, g, teacher, models)
        select = Select(f"{name}/select", f"{name} select", self.layout.selection(g), g)
        return Student(**vars(self.arm(g, "student", model)), label=label, select=select)

    def refit(self, model: ModelConfig) -> Refit:
        arm = self.arm(REFIT, "student", model)
        return Refit(self.layout.corpus("all-labeled"), arm.trainings, arm.test)

    def _score(self, g: int, model: ModelConfig, split: Split) -> Score:
        name, out = arm_name(g), store.join(self.layout.evaluation(g), split)
        return Score(f"{name}/{split}", f"{name} {split}", out, g, model, split)

    def _trainings(self, g: int, role: Role, model: ModelConfig) -> Iterator[Train]:
        if model.bundle is not None:
            return
        student = role == "student"
        if model.finetune is None:
            yield self._train("train", g, role, model, student)
            return
        # The control arm takes as many steps as the student: both parts, on labeled images.
        first = pretraining(model, pseudo=student)
        yield self._train("pretrain", g, role, first, student)
        yield self._train("train", g, role, finetuning(model), False)

    def _train(
        self,
        name: Literal["pretrain", "train"],
        g: int,
        role: Role,
        model: ModelConfig,
        pseudo: bool,
    ) -> Train:
        layout = self.layout
        return Train(
            id=f"{arm_name(g)}/{name}",
            title=f"{arm_name(g)} {name}",
            out=layout.bundle(g) if name == "train" else layout.pretrained(g),
            generation=g,
            role=role,
            model=model,
            train=train_config(self.config.train, model),
            pseudo=pseudo,
            checkpoints=layout.checkpoints(g),
        )


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
