"""What a finished run left in its files, as plain values. Knows no HTML and no pictures."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ns_ray import store
from ns_ray.config import AcceptConfig, recorded, validate
from ns_ray.errors import ConfigError, DamagedFileError, DataError
from ns_ray.steps import teachers
from ns_ray.store import (
    PROVENANCE,
    Corpus,
    Predictions,
    PseudoLabels,
    RunLayout,
    Selection,
    arm_name,
    open_corpus,
    open_labels,
    open_selection,
    read_predictions,
)


@dataclass(frozen=True)
class Model:
    """A trained model of the run: the first teacher, a student or the control arm.

    Attributes:
        row: its row of result.json.
        scores: its evaluation.json; empty where there is none.
    """

    row: dict[str, Any]
    scores: dict[str, Any]

    @property
    def is_control(self) -> bool:
        """Whether this is the control arm."""
        return self.kind == "control"

    @property
    def generation(self) -> int:
        """0, 1, ...; CONTROL for the control arm."""
        return int(self.row["generation"])

    @property
    def folder(self) -> str:
        """`gen-00`, or `control`."""
        return arm_name(self.generation)

    @property
    def name(self) -> str:
        """`generation 1`, or `control arm`."""
        return "control arm" if self.is_control else f"generation {self.generation}"

    @property
    def kind(self) -> str:
        """`control`, `teacher` (the first one) or `student`."""
        return str(self.row["role"])

    def of(self, split: str) -> dict[str, Any]:
        """Scores on validation or test; empty where there are none."""
        return dict(self.scores.get(split) or {})

    @property
    def robustness(self) -> dict[str, Any]:
        """Scores on corrupted, perturbed and adversarial images; empty where there are none."""
        return dict(self.scores.get("robustness") or {})

    @property
    def before_fixres(self) -> dict[str, Any]:
        """Those of the model before its fine-tuning at a higher resolution."""
        return dict(self.scores.get("robustness_before_fixres") or {})


@dataclass(frozen=True)
class Lesson:
    """What a student was taught: the pseudo-labels and the rows chosen from them.

    Attributes:
        generation: the student's.
        teacher: generation of the model that labeled.
    """

    generation: int
    teacher: int
    labels: PseudoLabels
    selection: Selection


@dataclass(frozen=True)
class Run:
    """A run, which may be under way.

    Attributes:
        layout: where it lives.
        result: its result.json; of one under way what is known so far, in the same form, and empty
            before its first model is there.
        config: its config.yaml.
        ended: whether there is nothing left to do.
    """

    layout: RunLayout
    result: dict[str, Any]
    config: dict[str, Any]
    ended: bool

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.config["name"])

    @property
    def mark(self) -> str:
        """Changes with the result."""
        return store.fingerprint(self.result)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their indices."""
        return [str(name) for name in self.result["data"]["classes"]]

    @cached_property
    def models(self) -> list[Model]:
        """The generations in order, then the control arm."""
        rows = [*self.result["generations"]]
        if self.result.get("control"):
            rows.append(self.result["control"])
        return [Model(row, self._scores(int(row["generation"]))) for row in rows]

    def _scores(self, g: int) -> dict[str, Any]:
        place = self.layout.generation(g)
        if not self.ended:  # a file of the end may be there from before, of other models
            done = store.published(store.join(self.layout.evaluation(g), "validation"))
            return {"validation": done.facts} if done else {}
        path = store.join(place, "evaluation.json")
        return store.read_scores(path) if store.exists(path) else {}

    @property
    def commit(self) -> str | None:
        """Commit of the program that trained the best model, where it is known."""
        return self.provenance(self.best).get("git_sha")

    def provenance(self, model: Model) -> dict[str, Any]:
        """What its bundle says of where it came from; empty where it lies elsewhere."""
        path = store.join(self.layout.bundle(model.generation), PROVENANCE)
        return dict(store.read_json(path)) if store.exists(path) else {}

    @property
    def teacher(self) -> Model:
        """The first teacher."""
        return self.models[0]

    @property
    def control(self) -> Model | None:
        """The control arm."""
        return self.models[-1] if self.models[-1].is_control else None

    @property
    def best(self) -> Model:
        """The best generation: the model that is served, or that was made once more for it."""
        return self.models[int(self.result["best_generation"])]

    @property
    def refit(self) -> dict[str, Any]:
        """The best student made once more, with validation images too, which is served in its
        place: its row of result.json; empty where there is none."""
        return dict(self.result.get("refit") or {})

    @property
    def student(self) -> Model:
        """The best student: the best model, or the last student where the teacher stayed best."""
        if self.best is not self.teacher:
            return self.best
        return [model for model in self.models if not model.is_control][-1]

    @property
    def split(self) -> str:
        """The images that the headline is about: test where there is one."""
        return "test" if self.best.row.get("test_top1") is not None else "validation"

    def top1(self, model: Model) -> float:
        """Accuracy on the headline's images, a fraction."""
        return float(model.row["test_top1" if self.split == "test" else "val_top1"])

    @cached_property
    def lessons(self) -> list[Lesson]:
        """One for each student."""
        accept = validate(AcceptConfig, self.config["accept"])
        students = self.result["generations"][1:]
        taught_by = teachers([bool(row["accepted"]) for row in students], accept)
        lessons = [
            Lesson(
                generation=g,
                teacher=teacher,
                labels=open_labels(self.layout.pseudo_labels(teacher + 1)),
                selection=open_selection(self.layout.selection(g)),
            )
            for g, teacher in enumerate(taught_by, start=1)
        ]
        if any(list(lesson.labels.classes) != self.classes for lesson in lessons):
            said = "its classes are not those of the pseudo-labels"
            raise DamagedFileError(self.layout.result, said)
        return lessons

    @property
    def teachers(self) -> dict[str, Any]:
        """First teachers that labeled together: how many, and the accuracy of their average on
        validation; empty where there was one."""
        return dict(self.teacher.row.get("teachers") or {})

    def labeler(self, lesson: Lesson) -> Predictions | None:
        """What the model that labeled, or the average of several, said about validation images;
        None where that is gone."""
        if lesson.teacher == 0 and self.teachers:
            return read_predictions(self.layout.average, self.corpus("validation"))
        return self.predictions(self.models[lesson.teacher], "validation")

    def corpus(self, split: str) -> Corpus | None:
        """Labeled, unlabeled, validation or test images; None where the run has none."""
        path = self.layout.corpus(split)
        return open_corpus(path) if store.published(path) else None

    def predictions(self, model: Model, split: str) -> Predictions | None:
        """What a model said about validation or test images; None where that is gone."""
        if (model.folder, split) not in self._predictions:
            place = store.join(self.layout.evaluation(model.generation), split)
            corpus = self.corpus(split)
            self._predictions[model.folder, split] = read_predictions(place, corpus)
        return self._predictions[model.folder, split]

    @cached_property
    def _predictions(self) -> dict[tuple[str, str], Predictions | None]:
        return {}


def open_run(path: str) -> Run:
    """A finished run's folder or URI.

    Raises:
        ConfigError: there is no run.
        DataError: the run has not finished.
    """
    run = open_any(path)
    if not run.ended:
        raise DataError(
            f"the run in {run.layout.root} has not finished: there is no result.json of its "
            "settings; start it again"
        )
    return run


def open_any(path: str) -> Run:
    """A run's folder or URI, finished or not.

    Raises:
        ConfigError: there is no run.
    """
    layout = RunLayout(store.absolute(path))
    if not store.exists(layout.config):
        raise ConfigError(f"{layout.root} is no run: it has no config.yaml; give a run's folder")
    config = recorded(store.read_bytes(layout.config))
    if config is None:
        raise DamagedFileError(layout.config, "it is not what a run writes; start the run again")
    for place in (layout.result, layout.so_far):
        if store.exists(place):
            found = store.read_result(place)
            # That of other settings stays until the run has ended with these.
            if found["config_hash"] == config.get("config_hash"):
                return Run(layout, found, config, ended=place == layout.result)
    return Run(layout, {}, config, ended=False)
