"""What the students were taught: their pseudo-labels, per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ns_ray.report.facts import Lesson, Run
from ns_ray.selection import foreign_words

MAX_ROWS = 60
"""Most classes that are listed one by one; of more, the rarest and the most common half of it."""


def lesson_facts(run: Run, lesson: Lesson) -> dict[str, Any]:
    """The pseudo-labels of one student: totals, and a row per class."""
    precision = kept_precision(run, lesson)
    facts = lesson.selection.facts
    rows = []
    for i, row in enumerate(facts["table"]):
        histogram = [int(n) for n in facts["histogram"][i]]
        cut = facts["threshold"] if row["threshold"] is None else row["threshold"]
        kept = precision[i] if precision else None
        rows.append({**row, "bars": bars(histogram, cut), "precision": kept})
    rest = 0
    if len(rows) > MAX_ROWS:
        by_rows = sorted(rows, key=lambda row: int(row["rows"]))
        rest = len(rows) - MAX_ROWS
        rows = by_rows[: MAX_ROWS // 2] + by_rows[-MAX_ROWS // 2 :]
    total = None
    if precision:
        total = {n: sum(getattr(k, n) for k in precision) for n in ("rows", "right")}
    return {
        "lesson": lesson,
        "teachers": run.teachers if lesson.teacher == 0 else {},
        "facts": facts,
        "rows": rows,
        "rest": rest,
        "precision": total,
        "foreign": foreign_facts(facts),
    }


def foreign_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """How much of the pile is foreign: a sentence, and bars of which the right half is; empty where
    that is not known."""
    found = facts.get("foreign")
    return {"words": foreign_words(found), "bars": bars(found["histogram"], 0.5)} if found else {}


def bars(histogram: Sequence[int], cut: float) -> list[dict[str, float | bool]]:
    """Bars of a small histogram: x, height (0 to 1), and whether they reach above the cut."""
    most = max(max(histogram), 1)
    size = len(histogram)
    return [
        {"x": i, "height": n / most, "kept": (i + 1) / size > cut}
        for i, n in enumerate(histogram)
        if n
    ]


@dataclass(frozen=True)
class Kept:
    """How right a class's pseudo-labels are, as far as validation images can tell.

    Attributes:
        rows: validation images that the teacher gives this class and selection would not drop.
        right: those that are of this class.
    """

    rows: int
    right: int


def kept_precision(run: Run, lesson: Lesson) -> list[Kept] | None:
    """Per class, on validation: the teacher's answers above the class's threshold of confidence.
    None where the teacher's predictions are gone."""
    found = run.labeler(lesson)
    if found is None:
        return None
    facts = lesson.selection.facts
    cuts = np.array(
        [
            facts["threshold"] if row["threshold"] is None else row["threshold"]
            for row in facts["table"]
        ],
        np.float32,
    )
    above = found.confidence > cuts[found.predicted]
    rows = np.bincount(found.predicted[above], minlength=len(cuts))
    right = np.bincount(found.predicted[above & found.correct], minlength=len(cuts))
    return [Kept(int(n), int(k)) for n, k in zip(rows, right, strict=True)]
