"""Which images the report shows. They are chosen by their labels alone."""

import numpy as np

from ns_ray.report.facts import Lesson, Model, Run
from ns_ray.report.pictures import SHOWN, Gallery, Wanted
from ns_ray.report.pile import changed_labels, kept_and_left, most_foreign, pile_of
from ns_ray.report.predictions import matched
from ns_ray.store import Predictions


def of_run(run: Run) -> tuple[list[Gallery], list[Gallery]]:
    """The galleries of a run: of its pile, and of its labeled images."""
    pile: list[Gallery] = []
    if run.lessons:
        drawn = pile_of(run, _lesson_of(run, run.student))
        pile += [*kept_and_left(drawn), *most_foreign(drawn)] if drawn else []
        pairs = zip(run.lessons, run.lessons[1:], strict=False)
        pile += [g for before, after in pairs if (g := changed_labels(run, before, after))]
    old, new = (run.predictions(model, run.split) for model in (run.teacher, run.student))
    labeled: list[Gallery] = []
    if old is not None and new is not None and run.student is not run.teacher:
        names = ("the first teacher", run.student.name)
        labeled = disagreements(run, run.split, (names[0], old), (names[1], new))
    return pile, labeled


def _lesson_of(run: Run, student: Model) -> Lesson:
    return run.lessons[student.generation - 1]


def disagreements(
    run: Run, split: str, old: tuple[str, Predictions], new: tuple[str, Predictions]
) -> list[Gallery]:
    """Labeled images on which two models differ: set right, newly wrong, wrong in another way.

    Args:
        split: of which corpus.
        old: a model's name, and its predictions.
        new: the same of the model that is compared with it.
    """
    (old_name, before), (new_name, after) = old, new
    at_a, at_b = matched(before.keys, after.keys)
    was, now = before.correct[at_a], after.correct[at_b]
    differ = before.predicted[at_a] != after.predicted[at_b]
    sure = after.confidence[at_b]
    found = []
    for title, rows in (
        (f"Set right by {new_name}", ~was & now),
        (f"Newly wrong with {new_name}", was & ~now),
        ("Wrong with both, in different ways", ~was & ~now & differ),
    ):
        where = np.flatnonzero(rows)
        where = where[np.argsort(-sure[where], kind="stable")]
        pictures = []
        for i in where[:SHOWN]:
            a, b = int(at_a[i]), int(at_b[i])
            truth, first, second = (
                run.classes[int(c)]
                for c in (before.truth[a], before.predicted[a], after.predicted[b])
            )
            caption = (f"{first} → {second}", f"is {truth}")
            words = f"a {truth}: {old_name} says {first}, {new_name} says {second}"
            key, shard = str(after.keys[b]), str(after.shards[b])
            pictures.append(Wanted(split, shard, key, caption, words))
        note = f"Those of which {new_name} is surest."
        found.append(Gallery(title, note, tuple(pictures), len(where)))
    return found
