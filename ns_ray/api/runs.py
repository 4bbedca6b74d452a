"""`ns_ray.self_train`: a whole run from Python."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ns_ray.api.arguments import model, models, not_twice, plain, section
from ns_ray.api.caller import kept
from ns_ray.api.models import Model, load
from ns_ray.api.verdict import table
from ns_ray.api.whole import execute
from ns_ray.api.words import PYTHON
from ns_ray.config import configured
from ns_ray.errors import ConfigError
from ns_ray.log import plain as lines_of
from ns_ray.store import RunLayout

Source = str | os.PathLike[str]
ModelSettings = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Run:
    """A run that has ended. In a notebook it shows what came out, and the table of its models.

    Attributes:
        path: its folder, or URI.
        result: what its result.json says; accuracies are fractions.
    """

    path: str
    result: Mapping[str, Any]

    @property
    def report_path(self) -> str:
        """Its report for people: one HTML file, which opens offline."""
        return RunLayout(self.path).report

    @property
    def best(self) -> Model:
        """The model that it delivers: the last accepted student, or an earlier model if that is
        clearly better. Loaded anew each time."""
        return load(self.path)

    def __repr__(self) -> str:
        return f"Run({self.path!r})\n{lines_of(table(self.result)).rstrip()}"

    def _repr_html_(self) -> str:
        from ns_ray import report

        return report.brief(self.path)


def self_train(
    labeled: Source | Sequence[Source] | None = None,
    unlabeled: Source | Sequence[Source] | None = None,
    *,
    validation: Source | Sequence[Source] | None = None,
    test: Source | Sequence[Source] | None = None,
    teacher: ModelSettings | None = None,
    students: ModelSettings | Sequence[ModelSettings] | None = None,
    budget: str | None = None,
    out: Source | None = None,
    config: Source | None = None,
    recipe: str | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Noisy Student self-training, to its end: `python -m ns_ray.run`, from Python.

    The same call again continues where it was, also after an interrupt (Ctrl-C, or an interrupted
    cell), and returns at once when all is done. Ray is found or started as the command does: one
    that was started already (`ray.init`, a Ray task) is used, and left running.

    Args:
        labeled, unlabeled, validation, test: sources of images, as `data` of run.yaml takes them: a
            folder per class, a table, archives, a packed corpus or a named set, or several of them.
            Without `unlabeled`, labeled images that `data={"labels": ...}` leaves over are the
            pile; without `validation`, some labeled images are held out; without `test`, nothing is
            scored on test.
        teacher: a timm model name (with a tag, such as resnet50.a1_in1k: from its weights),
            settings of a model, or the Path of a bundle, which is used as it is.
        students: the student, or several in turn, each as large as its teacher or larger. None: two
            like the teacher.
        budget: fit the run into this time, such as 30m or 2h.
        out: folder or URI of the run; its last part is the run's name.
        config: a run.yaml to start from; what else is given goes on top.
        recipe: a recipe of the package to start from, such as digits.
        overwrite: redo what other settings under the same name left.
        settings: everything else of run.yaml, by its names: `seed=1`, `control=True`,
            `train={"epochs": 20, "noise": {"dropout": 0.2}}`, `data={"labels": 100}`.

    Returns:
        The run; `run.result["status"]` is `done`, or `no_student_accepted`.

    Raises:
        ConfigError: a setting is wrong, or the run's folder holds a run with others.
        DataError: the images cannot be used.
        StageError: something failed that the same call may get over; or another process is at work.
    """
    data = {"labeled": labeled, "unlabeled": unlabeled, "validation": validation, "test": test}
    given = {**settings, **_asked(settings, data, teacher, students), **_given(budget=budget)}
    if out is not None:
        not_twice(settings, {"storage": "out", "name": "out"})
        given["storage"], given["name"] = _place(os.fspath(out))
    elif config is None and recipe is None:
        raise ConfigError("out is missing: give the folder of the run, such as out='runs/birds'")
    made = configured(plain(given), config=config, recipe=recipe)
    with kept():
        return Run(RunLayout.of(made).root, execute(made, overwrite=overwrite, words=PYTHON))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _asked(
    settings: Mapping[str, Any], data: Mapping[str, Any], teacher: Any, students: Any
) -> dict[str, Any]:
    """The sections that have arguments of their own."""
    own = section(settings, "data", "{'labels': 100}")
    not_twice(own, {key: key for key in _given(**data)}, "data.")
    asked: dict[str, Any] = {"data": {**own, **_given(**data)}}
    if teacher is not None:
        asked["teacher"] = model(teacher, "teacher")
    if students is not None:
        asked["students"] = models(students, "students")
    return asked


def _place(out: str) -> tuple[str, str]:
    """`storage` and `name` of a run's folder; options of a URI stay with the storage."""
    path, question, options = out.partition("?")
    storage, slash, name = path.rstrip("/").rpartition("/")
    if slash and not storage:
        storage = "/"
    return (storage or ".") + question + options, name
