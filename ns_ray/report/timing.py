"""When a run was done, how long each stage took, and how fast it was."""

from typing import Any

from ns_ray import store
from ns_ray.report import words
from ns_ray.report.facts import Run
from ns_ray.report.findings import trained

STAGES = ("label", "select", "train", "validation", "test")


def stages(run: Run) -> dict[str, Any]:
    """Seconds and images/s of every stage: a row per model, a cell per stage."""
    selected = {lesson.generation: lesson.selection for lesson in run.lessons}
    rows: list[dict[str, Any]] = []
    for model in run.models:
        rates = dict(model.row.get("images_per_second") or {})
        took = dict(model.row.get("seconds") or {})
        for split in ("validation", "test"):
            rates.setdefault(split, model.of(split).get("images_per_second"))
        chosen = None if model.is_control else selected.get(model.generation)
        done = store.published(chosen.path) if chosen else None
        if chosen and done and done.seconds:
            took["select"] = done.seconds
            rates["select"] = chosen.facts["rows"] / done.seconds
        cells = [
            {"seconds": took[stage], "rate": rates.get(stage)} if stage in took else None
            for stage in STAGES
        ]
        total = sum(took.values())
        rows.append({"name": model.name, "kind": model.kind, "cells": cells, "total": total})
    longest = max(row["total"] for row in rows) or 1.0
    used = [any(row["cells"][i] for row in rows) for i in range(len(STAGES))]
    return {
        "names": [name for name, use in zip(STAGES, used, strict=True) if use],
        "rows": [
            {
                **row,
                "share": row["total"] / longest,
                "cells": [c for c, use in zip(row["cells"], used, strict=True) if use],
            }
            for row in rows
        ],
        "total": sum(row["total"] for row in rows),
        "trained": trained(run),
    }


def finished(run: Run) -> str:
    """When the last model was scored, `2026-11-25 01:54 UTC`."""
    times = []
    for model in run.models:
        done = store.published(store.join(run.layout.evaluation(model.generation), run.split))
        if done is not None:
            times.append(done.finished)
    return words.minute(max(times, default=""))
