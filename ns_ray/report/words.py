"""Numbers and findings in words. A finding says no more than its test does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ns_ray.report.facts import Model, Predictions, Run, matched
from ns_ray.scoring import better_p

PROVEN = 0.05
"""Largest p of a difference that is called one."""
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
NOTHING = DASH


def percent(value: float | None, digits: int = 1) -> str:
    """`95.4%` of a fraction; a dash of nothing."""
    return NOTHING if value is None else f"{value:.{digits}%}"


def points(difference: float, digits: int = 1) -> str:
    """`+2.0` percentage points of a difference of fractions, with a real minus sign."""
    text = f"{100 * difference:+.{digits}f}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", MINUS)


def count(value: int | float | None) -> str:
    """`1,097`; a dash of nothing."""
    return NOTHING if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """`0.213`; a dash of nothing."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def seconds(value: float) -> str:
    """`0.3 s`, `58 s`, `3 min 20 s`, `2 h 5 min`."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def p_value(p: float | None) -> str:
    """`p = 0.03`."""
    if p is None:
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2f}" if p >= 0.01 else f"p = {p:.3f}"


def interval(scores: Mapping[str, Any]) -> tuple[float, float] | None:
    """Interval of the accuracy, where it was computed."""
    found = scores.get("top1_interval")
    return (float(found[0]), float(found[1])) if found else None


def span(low_high: tuple[float, float]) -> str:
    """The ends of an interval, in percent."""
    return f"{100 * low_high[0]:.1f}{DASH}{100 * low_high[1]:.1f}"


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
    if run.best is teacher:
        return (
            f"No: none of the students was accepted, and the first teacher, right on "
            f"{percent(run.top1(teacher))} of {images}, stays the best model."
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


def _rows(run: Run, model: Model) -> str:
    rows = model.of(run.split).get("rows") or run.result["data"].get(run.split)
    return count(rows)
