"""Noisy Student self-training, as the paper has it: a teacher labels the pile, the confident and
balanced part of it trains an equal or larger, noised student, and the student teaches next.

The stages are handed in (see stages.py), so this file knows no Ray and no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ns_ray import storage
from ns_ray.config import (
    AcceptConfig,
    ModelConfig,
    RunConfig,
    finetuning,
    pretraining,
    train_config,
)
from ns_ray.errors import DataError
from ns_ray.layout import CONTROL, RunLayout
from ns_ray.log import say
from ns_ray.metrics import better_p, compare
from ns_ray.settings import config_hash


@dataclass(frozen=True)
class Stages:
    """The stages of a run, bound to its resources: see ingest.py, train.py, pseudo_label.py,
    selection.py and evaluate.py for their signatures."""

    ingest: Callable[..., Any]
    fit: Callable[..., Any]
    open_bundle: Callable[[str], Any]
    pseudo_label: Callable[..., Any]
    select: Callable[..., Any]
    evaluate: Callable[..., Any]
    robustness: Callable[..., list[dict[str, Any]]]


@dataclass
class Generation:
    """One row of the result: the first teacher, a student, or the control arm."""

    generation: int
    role: str
    model: ModelConfig
    bundle: Any
    validation: Any
    accepted: bool
    p_value: float | None = None
    labels: Any = None
    selection: Any = None
    test: Any = None
    robustness: dict[str, Any] | None = None

    @property
    def place(self) -> int | str:
        """What its folder is called after."""
        return CONTROL if self.role == "control" else self.generation


def self_train(config: RunConfig, layout: RunLayout, stages: Stages) -> dict[str, Any]:
    """Run the whole loop and return what `result.json` says."""
    data = stages.ingest(config.data, seed=config.seed, out=layout)
    run = _Run(config, layout, stages, data)

    teacher = run.first_teacher()
    generations = [teacher]
    chosen = None
    for g, student_config in enumerate(config.students, start=1):
        labels = run.pseudo_label(teacher)
        chosen = run.select(labels, g, previous=chosen)
        student = run.fit_student(student_config, g, teacher, labels, chosen)
        student.p_value = better_p(*_paired(teacher.validation, student.validation))
        student.accepted = student.p_value <= config.accept.max_p
        generations.append(student)
        say(_verdict(student, teacher, config.accept))
        if student.accepted or config.accept.otherwise == "continue":
            teacher = student
        elif config.accept.otherwise == "stop":
            break

    control = run.fit_control(config.students[len(generations) - 2]) if config.control else None
    best = max(
        (g for g in generations if g.accepted), key=lambda g: (g.validation.top1, g.generation)
    )
    everything = [*generations, *([control] if control else [])]
    for scored in everything:
        run.test(scored)
    if config.evaluate.robustness is not None:
        shown = [generations[0], best, generations[-1], *([control] if control else [])]
        run.robustness([g for g in everything if g in shown])
    for scored in everything:
        run.write(scored, generations)
    return run.result(generations, control, best)


@dataclass(frozen=True)
class _Run:
    """The arguments that all stages of a run share."""

    config: RunConfig
    layout: RunLayout
    stages: Stages
    data: Any

    def first_teacher(self) -> Generation:
        """Step 1: a teacher trained on labeled images, or the user's."""
        if self.config.teacher.bundle is not None:
            bundle = self.stages.open_bundle(self.config.teacher.bundle)
            if tuple(bundle.classes) != tuple(self.data.labeled.classes):
                raise DataError(
                    f"teacher.bundle={self.config.teacher.bundle} knows the classes "
                    f"{list(bundle.classes)[:10]}, the labeled images have "
                    f"{list(self.data.labeled.classes)[:10]}; they must be the same"
                )
        else:
            bundle = self._fit(self.config.teacher, 0, "teacher")
        validation = self._evaluate(bundle, 0, "validation")
        return Generation(0, "teacher", self.config.teacher, bundle, validation, accepted=True)

    def pseudo_label(self, teacher: Generation) -> Any:
        """Step 2: the un-noised teacher labels the pile."""
        least = self.config.label.min_teacher_top1
        if teacher.validation.top1 < least:
            raise DataError(
                f"the teacher's validation accuracy is {teacher.validation.top1:.3f}, below "
                f"label.min_teacher_top1={least}; train a better teacher or lower the setting"
            )
        g = teacher.generation + 1
        noise = None
        if self.config.label.noised:
            noise = train_config(self.config.train, teacher.model).noise
        live = noise.live("labeled") if noise else "none"
        say(f"gen-{g:02d} label: teacher of gen-{teacher.generation:02d}; noise: {live}")
        return self.stages.pseudo_label(
            self.config.label,
            teacher.bundle,
            self.data.unlabeled,
            noise=noise,
            out=self.layout.pseudo_labels(g),
            title=f"gen-{g:02d} label",
        )

    def select(self, labels: Any, g: int, previous: Any) -> Any:
        """Step 2b: filter and balance."""
        return self.stages.select(
            self.config.select,
            labels,
            seed=self.config.seed,
            labeled_counts=self.data.labeled.class_counts,
            previous=previous if self.config.select.reassign else None,
            out=self.layout.selection(g),
        )

    def fit_student(
        self, config: ModelConfig, g: int, teacher: Generation, labels: Any, chosen: Any
    ) -> Generation:
        """Step 3: an equal or larger student, noised, on labeled and pseudo-labeled images."""
        if config.finetune is None:
            bundle = self._fit(config, g, "student", pseudo=chosen, teacher=teacher.bundle)
        else:
            inputs = {"pseudo": chosen, "teacher": teacher.bundle}
            first = self._fit(pretraining(config), g, "pretrained", **inputs)
            bundle = self._fit(finetuning(config), g, "student", teacher=first)
        validation = self._evaluate(bundle, g, "validation")
        return Generation(
            g, "student", config, bundle, validation, False, labels=labels, selection=chosen
        )

    def fit_control(self, config: ModelConfig) -> Generation:
        """The last student again, on labeled images only."""
        scratch = config.model_copy(update={"init": "scratch"})
        bundle = self._fit(scratch, CONTROL, "control")
        validation = self._evaluate(bundle, CONTROL, "validation")
        return Generation(-1, "control", config, bundle, validation, accepted=False)

    def test(self, scored: Generation) -> None:
        """Score on test: once, when every choice has been made."""
        if self.data.test is not None:
            scored.test = self._evaluate(scored.bundle, scored.place, "test")

    def robustness(self, models: list[Generation]) -> None:
        """Score on corrupted, perturbed and attacked test images (validation without a test)."""
        config = self.config.evaluate.robustness
        assert config is not None
        names = [_label(g.place) for g in models]
        bundles = [g.bundle for g in models]
        if config.baseline is not None:
            names = [config.baseline, *names]
            bundles = [self.stages.open_bundle(config.baseline), *bundles]
        places = ["baseline"] if config.baseline is not None else []
        results = self.stages.robustness(
            config,
            bundles,
            self.data.test or self.data.validation,
            outs=[self.layout.robustness(p) for p in [*places, *(g.place for g in models)]],
            names=names,
            title="robustness",
            batch_size=self.config.evaluate.batch_size,
        )
        for scored, result in zip(models, results[len(places) :], strict=True):
            scored.robustness = result

    def write(self, scored: Generation, generations: list[Generation]) -> None:
        """Everything that is known of a model's quality, in `evaluation.json`."""
        earlier = [g for g in generations if g is not scored and g.generation < scored.generation]
        if scored.role == "control":
            earlier = generations
        storage.write_json(
            storage.join(self.layout.generation(scored.place), "evaluation.json"),
            {
                "validation": scored.validation.scores,
                "test": scored.test.scores if scored.test else None,
                "robustness": scored.robustness,
                "paired": {
                    _label(g.place): compare(
                        *_paired(g.test or g.validation, scored.test or scored.validation)
                    )
                    for g in earlier
                },
            },
        )

    def _fit(self, model: ModelConfig, g: int | str, role: str, **inputs: Any) -> Any:
        offset = -1 if isinstance(g, str) else g
        train = train_config(self.config.train, model)
        noises = f"noise on labeled images: {train.noise.live('labeled')}"
        if inputs.get("pseudo") is not None:
            noises += f"; on pseudo-labeled: {train.noise.live('unlabeled')}"
        say(f"{_label(g)} train: {role} {model.model}; {noises}")
        pretrained = role == "pretrained"
        return self.stages.fit(
            model,
            train,
            labeled=self.data.labeled,
            seed=self.config.seed * 1000 + offset + 1,
            checkpoints=self.layout.checkpoints(g),
            out=self.layout.pretrained(g) if pretrained else self.layout.bundle(g),
            title=f"{_label(g)} {'pretrain' if pretrained else 'train'}",
            provenance={
                "run": self.config.name,
                "role": role,
                "model": model.model,
                "generation": g,
                "config_hash": config_hash(self.config),
            },
            **inputs,
        )

    def _evaluate(self, bundle: Any, g: int | str, split: str) -> Any:
        return self.stages.evaluate(
            self.config.evaluate,
            bundle,
            getattr(self.data, split),
            out=storage.join(self.layout.evaluation(g), split),
            title=f"{_label(g)} {split}",
        )

    def result(
        self, generations: list[Generation], control: Generation | None, best: Generation
    ) -> dict[str, Any]:
        """What `result.json` says. Accuracies are fractions."""
        data = self.data
        return {
            "name": self.config.name,
            "status": "done" if any(g.accepted for g in generations[1:]) else "no_student_accepted",
            "best_generation": best.generation,
            "best_bundle": best.bundle.path,
            "model": self.layout.model,
            "generations": [_row(g) for g in generations],
            "control": _row(control) if control else None,
            "data": {
                "classes": list(data.labeled.classes),
                **{
                    name: corpus.rows
                    for name in ("labeled", "unlabeled", "validation", "test")
                    if (corpus := getattr(data, name)) is not None
                },
                "rejected": {
                    name: dict(corpus.rejected)
                    for name in ("labeled", "unlabeled", "validation", "test")
                    if (corpus := getattr(data, name)) is not None
                },
            },
            "versions": storage.versions(),
            "config_hash": config_hash(self.config),
        }


def _label(g: int | str) -> str:
    return g if isinstance(g, str) else f"gen-{g:02d}"


def _row(g: Generation) -> dict[str, Any]:
    seconds = {"train": g.bundle.provenance.get("seconds", 0.0), "validation": g.validation.seconds}
    rates: dict[str, float] = {}
    if g.labels is not None:
        seconds = {"label": g.labels.seconds, **seconds}
        rates["label"] = float(g.labels.facts.get("images_per_second", 0.0))
    if g.test is not None:
        seconds["test"] = g.test.seconds
    rates["train"] = float(g.bundle.provenance.get("images_per_second", 0.0))
    return {
        "generation": g.generation,
        "role": g.role,
        "model": g.model.model or g.bundle.architecture,
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
        if g.labels is None
        else {"rows": g.labels.rows, "kept": g.selection.kept, "copies": g.selection.copies},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "images_per_second": rates,
    }


def _summary(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores that are one number, and the interval of the accuracy."""
    not_scores = ("rejected", "images_per_second")
    return {
        name: value
        for name, value in scores.items()
        if (isinstance(value, int | float) or name == "top1_interval") and name not in not_scores
    }


def robustness_summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a robustness result that stand alone, and the accuracy under attacks by
    epsilon."""
    numbers = {name: v for name, v in found.items() if isinstance(v, int | float | str)}
    return {**numbers, **found.get("adversarial", {})}


def _paired(old: Any, new: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Whether each model is right, on the images that both have scored."""
    right: Mapping[str, bool] = dict(zip(old.keys, old.correct, strict=True))
    shared = [(right[k], c) for k, c in zip(new.keys, new.correct, strict=True) if k in right]
    pairs = np.array(shared, dtype=bool).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _verdict(student: Generation, teacher: Generation, config: AcceptConfig) -> str:
    scores = (
        f"validation {teacher.validation.top1:.4f} -> {student.validation.top1:.4f}, "
        f"p = {student.p_value:.3f}"
    )
    if student.accepted:
        return f"gen-{student.generation:02d}: accepted ({scores})"
    next_step = {
        "keep_teacher": f"gen-{teacher.generation:02d} stays the teacher",
        "continue": "it teaches all the same",
        "stop": "the run ends",
    }[config.otherwise]
    return f"gen-{student.generation:02d}: not accepted ({scores}); {next_step}"
