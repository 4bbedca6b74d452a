"""The itinerary: which steps a run has.

The driver takes these steps, `ns-ray plan` prices them, and `ns-ray status` looks for what they
leave. Pure: it follows from the settings alone, and no file is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ns_ray import store
from ns_ray.config import ModelConfig, RunConfig, finetuning, pretraining, train_config
from ns_ray.steps import (
    Arm,
    Label,
    Pack,
    Publish,
    Refit,
    Robustness,
    Role,
    Score,
    Select,
    Split,
    Step,
    Student,
    Teacher,
    Train,
)
from ns_ray.store import CONTROL, RunLayout, arm_name


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
        yield from self.refit or ()
        if self.robustness:
            yield self.robustness
        yield self.model


def steps(
    config: RunConfig,
    layout: RunLayout | None = None,
    *,
    students: int | None = None,
    again: Sequence[int] | None = None,
) -> Itinerary:
    """What a run consists of.

    Args:
        config: the run.
        layout: where it lives; None: where the config says.
        students: how many there were, in a run that has ended before the last of them. None: all.
        again: generations of the students that a refit repeats, the best one last. None: all.
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
        students=make.students(models, range(1, len(models) + 1)),
        control=make.arm(CONTROL, "control", control) if config.control else None,
        refit=make.refit(models, again or range(1, len(models) + 1)) if config.refit else None,
        robustness=Robustness("robustness", "robustness", layout.robustness(arm_name(0)))
        if config.evaluate.robustness
        else None,
        model=Publish("model", "model", layout.model),
    )


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
    again: str = ""
    """How the names of a refit's steps begin."""

    def arm(self, g: int, role: Role, model: ModelConfig) -> Arm:
        test = self._score(g, model, "test") if self.config.data.test is not None else None
        trainings = tuple(self._trainings(g, role, model))
        return Arm(g, role, model, trainings, self._score(g, model, "validation"), test)

    def teacher(self, model: ModelConfig) -> Teacher:
        arm, count = self.arm(0, "teacher", model), self.config.label.teachers or 1
        others = tuple(self._other(arm.trainings[0], k) for k in range(2, count + 1))
        title, out = f"{self._name(0)} average", self.layout.average
        score = Score(f"{self._name(0)}/average", title, out, 0, model, "validation", count)
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

    def students(
        self, models: Sequence[ModelConfig], generations: Sequence[int]
    ) -> tuple[Student, ...]:
        """Those of these generations, each taught by the one before it, the first by the first
        teacher, or teachers."""
        found, teacher, count = [], self.config.teacher, self.config.label.teachers or 1
        for g in generations:
            name, out = self._name(g), self.layout.pseudo_labels(g)
            label = Label(f"{name}/label", f"{name} label", out, g, teacher, count)
            select = Select(f"{name}/select", f"{name} select", self.layout.selection(g), g)
            arm = self.arm(g, "student", models[g - 1])
            found.append(Student(**vars(arm), label=label, select=select))
            teacher, count = models[g - 1], 1
        return tuple(found)

    def refit(self, models: Sequence[ModelConfig], generations: Sequence[int]) -> Refit:
        make = replace(self, layout=self.layout.refit, again="refit ")
        students = make.students(models, generations)
        out, test = self.layout.corpus("all-labeled"), students[-1].test
        return Refit(out, make.teacher(self.config.teacher), students, test)

    def _name(self, g: int) -> str:
        return self.again + arm_name(g)

    def _score(self, g: int, model: ModelConfig, split: Split) -> Score:
        name, out = self._name(g), store.join(self.layout.evaluation(g), split)
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
            id=f"{self._name(g)}/{name}",
            title=f"{self._name(g)} {name}",
            out=layout.bundle(g) if name == "train" else layout.pretrained(g),
            generation=g,
            role=role,
            model=model,
            train=train_config(self.config.train, model),
            pseudo=pseudo,
            checkpoints=layout.checkpoints(g),
            all_labels=bool(self.again),
        )
