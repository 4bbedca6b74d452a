"""Which model takes over: the best of a run, what led to it, and what people are told of a
student."""

from collections.abc import Mapping, Sequence
from typing import Any

from ns_ray.config import AcceptConfig
from ns_ray.result import Generation
from ns_ray.scoring import compare

CLEARLY_WORSE, MORE_LOST = 0.9, 5
"""A model is taken to be worse than an earlier one where p of `better_p` is above the first, and so
many images more are lost than gained: 5 and none, or 60 and 45. Of ten validation images four can
be lost by a model that is six points better (docs/decisions/0008-accept-gate.md)."""


def best_of(accepted: Sequence[Generation]) -> Generation:
    """The last model, unless a paired test on validation images says that an earlier one is better.

    The highest of several scores would be the luckiest: each is right by chance on an image or two.
    """
    best = accepted[-1]
    for earlier in reversed(accepted[:-1]):
        if clearly_worse(compare(*earlier.validation.beside(best.validation))):
            best = earlier
    return best


def clearly_worse(pair: Mapping[str, Any], limit: float = CLEARLY_WORSE) -> bool:
    """Whether of two models the later one is worse, as `compare` found them."""
    return bool(pair["p"] > limit and pair["lost"] - pair["gained"] >= MORE_LOST)


def is_accepted(pair: Mapping[str, Any], config: AcceptConfig) -> bool:
    """Whether a student takes over from its teacher, as `compare` found them. Where it may be a
    little worse, `config.max_p` above 0.5, a few images lost are no reason to refuse it."""
    if config.max_p > 0.5:
        return not clearly_worse(pair, config.max_p)
    return bool(pair["p"] <= config.max_p)


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
        few = ": too few images to tell" if (student.p_value or 0.0) > config.max_p else ""
        return f"{student.name}: accepted ({scores}{few})"
    next_step = {
        "keep_teacher": f"{teacher.name} stays the teacher",
        "continue": "it teaches all the same",
        "stop": "the run ends",
    }[config.otherwise]
    return f"{student.name}: not accepted ({scores}); {next_step}"
