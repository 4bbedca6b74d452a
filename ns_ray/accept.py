"""Which model takes over: the best of a run, what led to it, and what people are told of a
student."""

from collections.abc import Sequence

from ns_ray.config import AcceptConfig
from ns_ray.result import Generation
from ns_ray.scoring import better_p

CLEARLY_WORSE = 0.9
"""From this p of `better_p` on, a model is taken to be worse than an earlier one: three images lost
and none gained, or 60 lost and 45 gained."""


def best_of(accepted: Sequence[Generation]) -> Generation:
    """The last model, unless a paired test on validation images says that an earlier one is better.

    The highest of several scores would be the luckiest: each is right by chance on an image or two.
    """
    best = accepted[-1]
    for earlier in reversed(accepted[:-1]):
        if better_p(*earlier.validation.beside(best.validation)) > CLEARLY_WORSE:
            best = earlier
    return best


def lineage(model: Generation, generations: Sequence[Generation]) -> list[Generation]:
    """The first teacher to this model: those that led to it."""
    found = [model]
    while lesson := found[0].lesson:
        found.insert(0, generations[lesson.teacher])
    return found


def verdict(student: Generation, teacher: Generation, config: AcceptConfig) -> str:
    """Whether the student takes over, for people."""
    scores = (
        f"validation {teacher.validation.top1:.4f} -> {student.validation.top1:.4f}, "
        f"p = {student.p_value:.3f}"
    )
    if student.accepted:
        return f"{student.name}: accepted ({scores})"
    next_step = {
        "keep_teacher": f"{teacher.name} stays the teacher",
        "continue": "it teaches all the same",
        "stop": "the run ends",
    }[config.otherwise]
    return f"{student.name}: not accepted ({scores}); {next_step}"
