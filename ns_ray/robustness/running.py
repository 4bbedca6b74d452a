"""Does the units of a job, in this process or as Ray Data tasks and actors."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ns_ray import store
from ns_ray.compute import Pool, tasks
from ns_ray.log import progress
from ns_ray.robustness.job import Job, part_file
from ns_ray.robustness.units import Unit, passes
from ns_ray.robustness.work import END, Make, Row, Scorer, make

SECONDS_PER_PICTURE = 3e-3
"""What making a picture and a forward pass take in one process with a small model, or on a GPU."""


def run_job(job: Job, outs: Sequence[str], prints: Sequence[str], pool: Pool, title: str) -> None:
    """Do the missing units, and write the counts of each as it is finished."""
    todo = [i for i, models in enumerate(job.missing) if models]
    size = {i: passes(job.units[i], job.config) for i in todo}
    total = sum(size[i] * len(job.missing[i]) for i in todo)
    rows: dict[int, list[Row]] = defaultdict(list)
    with progress(title, total, "pictures") as meter:
        for row in _rows(job, todo, pool, title, total):
            i = int(row["unit"])
            if row["name"] != END:
                rows[i].append(row)
                continue
            for m in job.missing[i]:
                part = _part(job.units[i], [row for row in rows[i] if row["model"] == m])
                store.write_json(store.join(outs[m], part_file(i, prints[m])), part)
            del rows[i]
            meter.add(size[i] * len(job.missing[i]))


def _part(unit: Unit, rows: Sequence[Row]) -> dict[str, Any]:
    """What the file of a unit holds: its images, the counts, and what a model had wrong."""
    told: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["told"]:
            told[f"{row['name']} {row['level']:g}"].append(str(row["told"]))
    return {
        "suite": unit.suite,
        "rows": [_counts(row, unit.suite) for row in rows],
        "unit": asdict(unit),
        "told": {name: " ".join(parts) for name, parts in sorted(told.items())},
    }


def _counts(row: Row, suite: str) -> list[str | float]:
    """What is kept of a row: name, level, value, count, and `right` of a sequence."""
    kept: list[str | float]
    kept = [str(row["name"]), float(row["level"]), float(row["value"]), int(row["count"])]
    return [*kept, float(row["right"])] if suite == "perturbations" else kept


def _rows(job: Job, todo: list[int], pool: Pool, title: str, total: int) -> Iterator[Row]:
    """Counts of all units, that of its end last for each unit.

    Raises:
        StageError: tasks or actors kept failing.
    """
    if tasks.done_here(total * SECONDS_PER_PICTURE, pool):
        scorer = Scorer(job, total)
        for i in todo:
            for made in make(i, job):
                yield from scorer.score(made)
        return
    import ray.data

    dataset = ray.data.from_items([{"unit": i} for i in todo], override_num_blocks=len(todo))
    counted = dataset.map_batches(Make(job), batch_size=1, num_cpus=1).map_batches(
        Scorer,
        fn_constructor_args=(job, total // pool.actors),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(todo))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    # Rows of a unit come in any order from several actors: its end waits for all of them.
    seen: dict[int, int] = defaultdict(int)
    ends: dict[int, Row] = {}
    for row in tasks.stream(counted, title, cpus=pool.cpus, gpus=pool.gpus):
        i = int(row["unit"])
        if row["name"] == END:
            ends[i] = row
        else:
            seen[i] += 1
            yield row
        if i in ends and seen[i] == int(ends[i]["count"]):
            yield ends.pop(i)
