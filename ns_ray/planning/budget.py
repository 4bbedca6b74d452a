"""How much of a run fits into its `budget`: by a few steps measured where its models are trained.

First the models take fewer steps, then there are fewer students. Only what the run leaves open is
changed; what it sets stays, and where that takes too long the run ends before it has begun.
"""

from collections.abc import Callable, Sequence
from math import floor

from ns_ray.compute import Pool, Workers, tasks
from ns_ray.config import Images, RunConfig, seconds_of, settle
from ns_ray.errors import ConfigError
from ns_ray.log import say
from ns_ray.planning.costs import Counts, Stage
from ns_ray.planning.estimates import duration, stage_seconds
from ns_ray.planning.forecast import planner_at_work, sampled
from ns_ray.store import Corpora, Facts

SHORTEST = 0.25
"""Least share of the steps that would be chosen without a budget. With less, students learn little
from what they are taught, and fewer of them are better."""
RESERVE = 1.1
"""Estimates are multiplied with it: a step also averages weights, copies images, and reports."""

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
    call = (config, Counts.packed(data), workers, pool, sampled(data), passed)
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
    planner = planner_at_work(config, counts, workers, images)

    def price(steps: float, students: int) -> float:
        stages = planner.stages({"steps": steps, "students": students})
        return passed + RESERVE * sum(_seconds(stage, workers, pool) for stage in stages)

    most = len(config.students)
    fewest = most if "students" in config.model_fields_set else 1
    found = choose(price, seconds_of(config.budget), range(most, fewest - 1, -1))
    if found is None:
        least = duration(price(SHORTEST, fewest))
        settled, _ = settle(config, Images(counts.labeled, counts.unlabeled))
        long = _what_takes_long(config, settled.label.teachers or 1)
        raise ConfigError(
            f"budget={config.budget}: with the fewest steps this run takes about {least} here; "
            f"give it more, or lower {', '.join(long)}"
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


def _seconds(stage: Stage, workers: Workers, pool: Pool) -> float:
    """What a stage takes; a labeling or scoring that wasn't measured counts nothing.

    Raises:
        ConfigError: a training's steps were not measured.
    """
    seconds = stage_seconds(stage, workers, pool)
    if seconds is None and stage.kind == "train":
        raise ConfigError(
            f"budget: a step of {stage.model} at {stage.size} px needs more memory than there is "
            "to be measured; leave budget out, or set a smaller train.batch_size"
        )
    return seconds or 0.0


def _what_takes_long(config: RunConfig, teachers: int) -> list[str]:
    """Settings of the run that could be lower, those that are set first; `teachers` is how many
    first teachers it has, which may have been chosen."""
    models = {"teacher": config.teacher}
    models |= {f"students.{i}": student for i, student in enumerate(config.students)}
    found = ["train.epochs"] if "epochs" in config.train.model_fields_set else []
    found += [f"{place}.train.epochs" for place, m in models.items() if "epochs" in m.train]
    if "students" in config.model_fields_set and len(config.students) > 1:
        found.append("the number of students")
    if teachers > 1:
        found.append(f"label.teachers (now {teachers})")
    if config.control:
        found.append("control (false)")
    return [*found, "image_size", "the pile"]
