"""How much of a run fits into its `budget`: by a few steps measured where its models are trained.

First the models take fewer steps, then there are fewer students. Only what the run leaves open is
changed; what it sets stays, and where that takes too long the run ends before it has begun.
"""

from collections.abc import Callable, Sequence
from math import floor

import torch

from ns_ray.compute import Pool, Workers, tasks
from ns_ray.config import RunConfig, seconds_of
from ns_ray.errors import ConfigError
from ns_ray.log import say
from ns_ray.planning.costs import Counts, Planner, Stage
from ns_ray.planning.plan import duration
from ns_ray.store import Corpora, Facts

SHORTEST = 0.25
"""Least share of the steps that would be chosen without a budget. With less, students learn little
from what they are taught, and fewer of them are better."""
RESERVE = 1.1
"""Estimates are multiplied with it: a step also averages weights, copies images, and reports."""
START_SECONDS = 2.0
"""What a stage takes before its first and after its last image: about half of it here, with a
process of its own two or three times as long."""
SAMPLED = 20
"""Images that are loaded to measure what that takes."""
MEMORY = 0.9
"""Share of the memory that a measured step may need by its estimate: the training needs it too."""

Price = Callable[[float, int], float]
"""Seconds of a run with this share of its steps and this number of its students."""


def fit_budget(
    config: RunConfig, data: Corpora, *, workers: Workers, pool: Pool, passed: float
) -> Facts:
    """Measure a few steps as a training worker, and choose.

    Args:
        config: the run, with a budget.
        data: its images.
        workers, pool: what its trainings and labelings work with.
        passed: seconds that the run has taken so far.

    Returns:
        `steps`, `students` (see `config.BUDGET`), and `time`: what the run is about to take in
        words, with what has passed.

    Raises:
        ConfigError: the run takes longer than its budget whatever is chosen, or cannot be measured.
    """
    say(f"budget {config.budget}: measuring a few steps")
    first = data.labeled.shards[0]
    images = data.labeled.read(first, ["image"]).slice(0, SAMPLED)["image"].to_pylist()
    call = (config, Counts.packed(data), workers, pool, images, passed)
    measured = tasks.each(
        fitted,
        [call],
        here=workers.in_process,
        doing="measuring a few steps for the budget",
        cpus=workers.cpus,
        gpus=workers.gpus,
    )
    [(_, (found, notes))] = measured
    for note in notes:
        say(f"budget {config.budget}: {note}")
    return found


def fitted(
    config: RunConfig,
    counts: Counts,
    workers: Workers,
    pool: Pool,
    images: Sequence[bytes],
    passed: float,
) -> tuple[Facts, list[str]]:
    """What `fit_budget` returns, and what is to be said of it; works on the device it is about."""
    assert config.budget is not None
    if workers.device == "cpu":
        torch.set_num_threads(max(1, int(workers.cpus)))
    device = torch.device(workers.device)
    planner = Planner(config, counts, device, workers.gpus > 0, True, images, MEMORY)

    def price(steps: float, students: int) -> float:
        stages = planner.stages({"steps": steps, "students": students})
        return passed + RESERVE * sum(stage_seconds(stage, workers, pool) for stage in stages)

    most = len(config.students)
    fewest = most if "students" in config.model_fields_set else 1
    found = choose(price, seconds_of(config.budget), range(most, fewest - 1, -1))
    if found is None:
        least = duration(price(SHORTEST, fewest))
        raise ConfigError(
            f"budget={config.budget}: with the fewest steps this run takes about {least} here; "
            f"give it more, or lower {', '.join(_what_takes_long(config))}"
        )
    steps, students = found
    facts = {"steps": steps, "students": students, "time": duration(price(steps, students))}
    missing = [stage.name for stage in planner.stages(facts) if stage.rate is None]
    unknown = [f"not in these figures: {', '.join(missing)}"] if missing else []
    return facts, planner.notes + unknown


def choose(price: Price, seconds: float, students: Sequence[int]) -> tuple[float, int] | None:
    """The most students with the most steps that fit into a time.

    Args:
        price: what a run takes; for a number of students it grows evenly with the steps.
        seconds: the time.
        students: the numbers that may be chosen, the one without a budget first.

    Returns:
        Share of the steps, from SHORTEST to 1 in hundredths, and number of students; None where
        nothing fits.
    """
    for number in students:
        whole = price(1.0, number)
        if whole <= seconds:
            return 1.0, number
        least = price(SHORTEST, number)
        if least <= seconds:
            share = SHORTEST + (1 - SHORTEST) * (seconds - least) / (whole - least)
            return max(SHORTEST, floor(100 * share) / 100), number
    return None


def stage_seconds(stage: Stage, workers: Workers, pool: Pool) -> float:
    """What a stage takes with what it is going to work with; what wasn't measured counts nothing.

    Raises:
        ConfigError: a training's steps were not measured.
    """
    trains = stage.steps is not None
    if stage.rate is None:
        if not trains:
            return 0.0
        raise ConfigError(
            f"budget: a step of {stage.model} at {stage.size} px needs more memory than there is "
            "to be measured; leave budget out, or set a smaller train.batch_size"
        )
    work = 1 / stage.rate
    if trains:
        several, loaders, beside = float(workers.count), workers.loaders, not workers.in_turn
    else:
        share = pool.gpus if pool.gpus else pool.cpus / workers.cpus
        several, loaders, beside = pool.actors * share, int(pool.cpus), pool.gpus > 0
    loading = stage.loading / max(1, loaders)
    per_image = max(work, loading) if beside else work + loading
    return START_SECONDS + stage.images * per_image / several


def _what_takes_long(config: RunConfig) -> list[str]:
    """Settings of the run that could be lower, those that are set first."""
    models = {"teacher": config.teacher}
    models |= {f"students.{i}": student for i, student in enumerate(config.students)}
    found = ["train.epochs"] if "epochs" in config.train.model_fields_set else []
    found += [f"{place}.train.epochs" for place, m in models.items() if "epochs" in m.train]
    if "students" in config.model_fields_set and len(config.students) > 1:
        found.append("the number of students")
    if (config.label.teachers or 1) > 1:
        found.append("label.teachers")
    if config.control:
        found.append("control (false)")
    return [*found, "image_size", "the pile"]
