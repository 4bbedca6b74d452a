"""What the student confuses less, and more, than the first teacher."""

from typing import Any

import numpy as np

from ns_ray.report import charts
from ns_ray.report.facts import Model, Run
from ns_ray.report.predictions import Array

MAX_MATRIX = 25
"""Most classes whose confusion matrix is drawn."""
PAIRS = 12
"""Confusions listed, those that changed most."""


def confusions(run: Run) -> dict[str, Any] | None:
    """What the student confuses less, and more, than the first teacher."""
    before, after = (confusion(run, model) for model in (run.teacher, run.student))
    if before is None or after is None:
        return None
    change = after - before
    off = change.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-np.abs(off), axis=None, kind="stable")[:PAIRS]
    pairs = []
    for cell in order:
        i, j = divmod(int(cell), len(change))
        if off[i, j]:
            pairs.append(
                {
                    "truth": run.classes[i],
                    "predicted": run.classes[j],
                    "before": int(before[i, j]),
                    "after": int(after[i, j]),
                    "change": int(off[i, j]),
                }
            )
    chart = None
    if change.any() and len(run.classes) <= MAX_MATRIX:
        right = int(np.trace(change))
        text = f"Change of the confusion matrix: {right:+d} images right. The table has the pairs."
        chart = charts.confusion_change(change, run.classes, text)
    return {"pairs": pairs, "chart": chart}


def confusion(run: Run, model: Model) -> Array | None:
    """int64 [true class, predicted class] on the headline's images."""
    counts = model.of(run.split).get("confusion")
    if counts is not None:
        return np.array(counts, np.int64)
    found = run.predictions(model, run.split)
    if found is None:
        return None
    size = len(run.classes)
    cells = found.truth.astype(np.int64) * size + found.predicted
    return np.asarray(np.bincount(cells, minlength=size * size).reshape(size, size), np.int64)
