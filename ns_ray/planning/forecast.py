"""What a run is going to take, said and written when it begins, for its report to compare with.

The steps of `ns-ray plan`, measured where the models of the run are trained.
"""

from collections.abc import Sequence

import torch

from ns_ray import store
from ns_ray.compute import Pool, Workers, tasks
from ns_ray.config import RunConfig
from ns_ray.errors import DamagedFileError, NsRayError, first_line
from ns_ray.log import say
from ns_ray.planning.costs import Counts, Planner, Stage
from ns_ray.planning.estimates import disk_bytes, hours, in_words, stage_seconds, total
from ns_ray.store import Corpora, PlannedStage

SAMPLED = 20
"""Images that are loaded to measure what that takes."""
MEMORY = 0.9
"""Share of the memory that a measured step may need by its estimate: the training needs it too."""


def forecast_run(
    config: RunConfig, data: Corpora, *, workers: Workers, pool: Pool, out: str
) -> None:
    """Measure a few steps as a training worker, say what the run is going to take, and write it.

    A plan that is there stays: it is of when the run began. Where nothing can be measured, that is
    said, and the run goes on without a plan.

    Args:
        config: the run, with all that was chosen.
        data: its images.
        workers, pool: what its trainings and labelings work with.
        out: file of the plan.
    """
    try:
        if store.exists(out):
            store.read_plan(out)
            return
    except DamagedFileError as error:
        say(f"{error}; it is made again")
    try:
        [(_, (stages, notes))] = tasks.each(
            measured,
            [(config, Counts.packed(data), workers, sampled(data))],
            here=workers.in_process,
            doing="measuring a few steps for the plan",
            cpus=workers.cpus,
            gpus=workers.gpus,
        )
    except (NsRayError, RuntimeError) as error:  # the latter is torch's, such as for want of memory
        say(f"no plan: {first_line(error)}")
        return
    packed = [corpus for corpus in vars(data).values() if corpus is not None]
    images = sum(shard.bytes for corpus in packed for shard in corpus.shards)
    timed = [(stage, stage_seconds(stage, workers, pool)) for stage in stages]
    disk = disk_bytes(config, Counts.packed(data), timed, images)
    unknown = sorted({stage.model for stage in stages if stage.rate is None})
    words = in_words(total(stages, workers, pool), disk, config.prices)
    say(f"plan: {words}" + (f"; and what {', '.join(unknown)} takes" if unknown else ""))
    for note in notes:
        say(f"plan: {note}")
    store.write_plan(out, [_planned(stage, workers, pool) for stage in stages], disk)


def sampled(data: Corpora) -> list[bytes]:
    """A few labeled images, as they are packed."""
    first = data.labeled.shards[0]
    images = data.labeled.read(first, ["image"]).slice(0, SAMPLED)["image"]
    return [bytes(image) for image in images.to_pylist()]


def measured(
    config: RunConfig, counts: Counts, workers: Workers, images: Sequence[bytes]
) -> tuple[list[Stage], list[str]]:
    """The stages of a run and what is to be said of them; works on the device it is about."""
    planner = planner_at_work(config, counts, workers, images)
    return list(planner.stages()), planner.notes


def planner_at_work(
    config: RunConfig, counts: Counts, workers: Workers, images: Sequence[bytes]
) -> Planner:
    """A planner that measures in this process what a training worker has."""
    if workers.device == "cpu":
        torch.set_num_threads(max(1, int(workers.cpus)))
    device = torch.device(workers.device)
    return Planner(config, counts, device, workers.gpus > 0, True, images, MEMORY)


def _planned(stage: Stage, workers: Workers, pool: Pool) -> PlannedStage:
    held = hours(stage.kind, 3600.0, workers, pool)
    seconds = stage_seconds(stage, workers, pool)
    return PlannedStage(stage.id, stage.kind, stage.images, seconds, held.cpus, held.gpus)
