"""What a run has found, in words. A finding says no more than its test does."""

from dataclasses import dataclass

from ns_ray.report.facts import Model, Run
from ns_ray.report.predictions import matched
from ns_ray.report.words import count, p_value, percent
from ns_ray.scoring import better_p
from ns_ray.selection import MOST_FOREIGN, foreign_words
from ns_ray.store import Predictions

PROVEN = 0.05
"""Largest p of a difference that is called one."""


@dataclass(frozen=True)
class Versus:
    """How a model does against another on the same images.

    Attributes:
        difference: of the accuracies, a fraction.
        gained: images that only the new model has right; None: unknown.
        lost: images that only the old one has right.
        p: of a one-sided paired test that the one ahead is better.
    """

    difference: float
    gained: int | None = None
    lost: int | None = None
    p: float | None = None

    @property
    def better(self) -> bool:
        """Whether the new model is ahead by more than chance explains."""
        return self.difference > 0 and self.p is not None and self.p <= PROVEN

    @property
    def words(self) -> str:
        """`2.0 points above` or the like; what follows is the other model's name."""
        if round(1000 * self.difference) == 0:
            return "level with"
        size = f"{abs(100 * self.difference):.1f}"
        word = "point" if size == "1.0" else "points"
        return f"{size} {word} {'above' if self.difference > 0 else 'below'}"


def versus(
    old: Predictions | None, new: Predictions | None, old_top1: float, new_top1: float
) -> Versus:
    """Compare two models; without their predictions, only the accuracies."""
    if old is None or new is None:
        return Versus(new_top1 - old_top1)
    at_old, at_new = matched(old.keys, new.keys)
    was, now = old.correct[at_old], new.correct[at_new]
    gained, lost = int((now & ~was).sum()), int((was & ~now).sum())
    p = better_p(was, now) if gained >= lost else better_p(now, was)
    return Versus(new_top1 - old_top1, gained, lost, p)


def within(run: Run, old: Model, new: Model) -> Versus:
    """Compare two models of a run on the headline's images."""
    pair = [run.predictions(model, run.split) for model in (old, new)]
    return versus(pair[0], pair[1], run.top1(old), run.top1(new))


def asked(run: Run) -> str:
    """The first sentence: what the run was to find out."""
    data = run.result["data"]
    return (
        f"Do {data['unlabeled']:,} unlabeled images make a better classifier of "
        f"{len(run.classes):,} classes than {data['labeled']:,} labeled ones alone?"
    )


def outcome(run: Run) -> str:
    """The second sentence: what came out, and how sure it is."""
    student, teacher = run.student, run.teacher
    against = within(run, teacher, student)
    images = f"{_rows(run, student)} {run.split} images"
    if not run.ended:
        text = f"So far, {student.name} is right on {percent(run.top1(student))} of {images}"
        if student is teacher:
            return f"{text}, and there is no student yet."
        return f"{text}, {against.words} the first teacher ({p_value(against.p)})."
    if run.best is teacher:
        accepted = any(model.row["accepted"] for model in run.models if model.kind == "student")
        reason = (
            "the students that were accepted are worse on validation images"
            if accepted
            else "none of the students was accepted"
        )
        return (
            f"No: {reason}, and the first teacher, right on {percent(run.top1(teacher))} of "
            f"{images}, stays the best model: no student has helped."
        )
    text = (
        f"{student.name} is right on {percent(run.top1(student))} of {images}, "
        f"{against.words} the first teacher ({p_value(against.p)})"
    )
    proven = against.better
    if run.control is not None:
        apart = within(run, run.control, student)
        proven = proven and apart.better
        text += (
            f" and {apart.words} the control arm, which had the same noise and no unlabeled "
            f"image ({p_value(apart.p)})"
        )
    answer = "Yes" if proven else "No" if against.difference <= 0 else "Not proven"
    return f"{answer}: {text}."


def warnings(run: Run) -> list[str]:
    """What else the headline must say: that a rival of the delivered model is ahead of it, or that
    most of the pile is of no class."""
    found = [lesson.selection.facts.get("foreign") for lesson in run.lessons[-1:]]
    foreign = [
        f"Most of the pile is foreign: {foreign_words(facts)}. select.max_foreign=1 leaves it out."
        for facts in found
        if facts and facts["least"] > MOST_FOREIGN
    ]
    return [*_rival_ahead(run), *foreign]


def _rival_ahead(run: Run) -> list[str]:
    best, rival = run.best, run.control
    against = within(run, best, rival) if rival is not None else None
    if rival is None or against is None or round(1000 * against.difference) <= 0:
        return []
    ahead = (
        "is better than the delivered model"
        if against.better
        else "is ahead of the delivered model, though chance could explain it"
    )
    return [
        f"The control arm, trained on labeled images alone, {ahead}: right on "
        f"{percent(run.top1(rival))} of {_rows(run, rival)} {run.split} images, {against.words} "
        f"{best.name} ({p_value(against.p)})."
    ]


def _rows(run: Run, model: Model) -> str:
    rows = model.of(run.split).get("rows") or run.result["data"].get(run.split)
    return count(rows)


def trained(run: Run) -> str:
    """`bf16 on NVIDIA H100 with 2 workers`, for each model where they differ: what the weights
    depend on besides the settings. Empty where it is not known."""
    found: dict[str, list[str]] = {}
    for model in run.models:
        facts = run.provenance(model)
        if "precision" in facts:
            many = "1 worker" if facts["workers"] == 1 else f"{facts['workers']:,} workers"
            text = f"{facts['precision']} on {facts['device']} with {many}"
            found.setdefault(text, []).append(model.name)
    if len(found) < 2:
        return "".join(found)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in found.items())
