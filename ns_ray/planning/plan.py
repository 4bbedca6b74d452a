"""The plan of a run, before it costs anything: all of its stages on one screen."""

from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table

from ns_ray.compute import Machine, resources
from ns_ray.config import RunConfig
from ns_ray.errors import ConfigError
from ns_ray.planning.costs import Counts, Planner, Stage
from ns_ray.planning.models import smaller_students


@dataclass(frozen=True)
class Plan:
    """All stages of a run, and what it is to run on."""

    name: str
    stages: tuple[Stage, ...]
    counts: Counts
    machine: Machine
    workers: int
    gpus_per_worker: float
    notes: tuple[str, ...]


def make_plan(config: RunConfig, counts: Counts, machine: Machine, *, measure: bool = True) -> Plan:
    """Count, replay and measure.

    Args:
        config: the run.
        counts: its images.
        machine: what there is.
        measure: whether to do a few steps here.

    Raises:
        ConfigError: a model cannot be built, or a batch cannot be shared among the workers.
    """
    wanted = config.resources
    notes = []
    try:
        workers = resources.workers(wanted, machine)
        gpus, on_gpu = workers.gpus, workers.gpus > 0
    except ConfigError as error:
        gpus = 1.0 if wanted.gpus_per_worker is None else wanted.gpus_per_worker
        on_gpu = gpus > 0
        notes.append(f"not on this machine: {error}")
    if config.budget:
        notes.append(
            f"budget={config.budget} is fitted when the run starts, by a few steps measured there; "
            "the figures are those of a run without it"
        )
    device = torch.device("cuda" if machine.gpus and on_gpu else "cpu")
    planner = Planner(config, counts, device, on_gpu, measure)
    stages = tuple(planner.stages())
    notes += [*planner.notes, *smaller_students(config)]
    return Plan(config.name, stages, counts, machine, wanted.num_workers, gpus, tuple(notes))


def plan_table(plan: Plan) -> Table:
    """The plan on one screen."""
    made = Table(
        title=f"plan of {plan.name}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("stage", "model"):
        made.add_column(name, no_wrap=True)
    columns = ("px", "images", "steps", "weights", "GFLOPs", "batch", "memory", "img/s", "time")
    for name in columns:
        made.add_column(name, justify="right", no_wrap=True)
    for stage in plan.stages:
        cost = stage.cost
        made.add_row(
            stage.name,
            stage.model,
            str(stage.size),
            amount(stage.images),
            "" if stage.steps is None else f"{stage.steps:,}",
            amount(cost.parameters) if cost else "",
            f"{cost.flops / 1e9:,.3g}" if cost else "",
            f"{cost.rows:,}" if cost else "",
            memory(cost.bytes(plan.gpus_per_worker > 0)) if cost else "",
            f"{stage.rate:,.1f}" if stage.rate else "",
            duration(stage.seconds),
        )
    return made


def plan_lines(plan: Plan) -> list[str]:
    """What goes with the table."""
    counts, machine = plan.counts, plan.machine
    gpus = int(plan.workers * plan.gpus_per_worker)
    known = [stage.seconds for stage in plan.stages]
    total = sum(seconds or 0.0 for seconds in known)
    here = f"{machine.cpus} CPUs and {machine.gpus} GPUs"
    times = f"all stages one after the other on a worker like this machine ({here}): "
    times += duration(total) if None not in known else f"{duration(total)} and what isn't measured"
    return [
        f"images: {counts.labeled:,} labeled in {counts.classes:,} classes, {counts.unlabeled:,} "
        f"unlabeled, {counts.validation:,} for validation, {counts.test:,} for test",
        f"training: {plan.workers} workers, {gpus} GPUs; memory is the estimate for one of them, "
        "with `batch` images a forward pass" + (", on a GPU in bfloat16" if gpus else ""),
        times,
        *plan.notes,
    ]


def amount(number: int) -> str:
    """A count in words: 58,000 or 1,779.6 M."""
    return f"{number:,}" if number < 10**6 else f"{number / 1e6:,.1f} M"


def memory(size: int) -> str:
    """Bytes in words: 35 MB, 27.6 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def duration(seconds: float | None) -> str:
    """In words: 40 s, 12 min, 3.5 h, 20 days."""
    if seconds is None:
        return "?"
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if name == 'h' else 0}f} {name}"
    days = seconds / 86_400
    return f"{days:,.0f} days" if days < 1000 else f"{days / 365:,.0f} years"
