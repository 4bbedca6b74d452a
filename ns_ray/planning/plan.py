"""The plan of a run, before it costs anything: all of its stages on one screen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table

from ns_ray.compute import Machine, Pool, Workers, resources
from ns_ray.config import PricesConfig, ResourcesConfig, RunConfig
from ns_ray.errors import ConfigError
from ns_ray.planning.costs import Counts, Planner, Stage
from ns_ray.planning.estimates import (
    amount,
    disk_bytes,
    duration,
    in_words,
    memory,
    stage_seconds,
    total,
)
from ns_ray.planning.models import smaller_students


@dataclass(frozen=True)
class Plan:
    """All stages of a run, and what it is to run on.

    Attributes:
        disk: bytes that it takes at its end.
        images_known: whether its images are counted among them.
    """

    name: str
    stages: tuple[Stage, ...]
    counts: Counts
    machine: Machine
    workers: Workers
    pool: Pool
    disk: int
    images_known: bool
    prices: PricesConfig
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Of all stages one after the other; None where one was not measured."""
        times = [stage_seconds(stage, self.workers, self.pool) for stage in self.stages]
        known = [time for time in times if time is not None]
        return sum(known) if len(known) == len(times) else None


def make_plan(
    config: RunConfig,
    counts: Counts,
    machine: Machine,
    *,
    measure: bool = True,
    images: Sequence[bytes] = (),
    image_bytes: int | None = None,
) -> Plan:
    """Count, replay and measure.

    Args:
        config: the run.
        counts: its images.
        machine: what there is.
        measure: whether to do a few steps here.
        images: some of the run's, to measure what loading takes.
        image_bytes: of all its images; None: not known.

    Raises:
        ConfigError: a model cannot be built, or a batch cannot be shared among the workers.
    """
    notes = []
    try:
        workers = resources.workers(config.resources, machine)
        pool = resources.pool(config.resources, machine)
    except ConfigError as error:
        workers, pool = _as_wished(config.resources, machine)
        notes.append(f"not on this machine: {error}")
    if config.budget:
        notes.append(
            f"budget={config.budget} is fitted when the run starts, by a few steps measured there; "
            "the figures are those of a run without it"
        )
    on_gpu = workers.gpus > 0
    there = bool(machine.gpus and on_gpu)
    device = torch.device("cuda" if there and torch.cuda.is_available() else "cpu")
    if measure and there and device.type == "cpu":
        measure = False
        notes.append(
            "times are not known: the run's GPUs are not on this machine; plan on one of theirs"
        )
    planner = Planner(config, counts, device, on_gpu, measure, images)
    stages = tuple(planner.stages())
    timed = [(stage, stage_seconds(stage, workers, pool)) for stage in stages]
    disk = disk_bytes(config, counts, timed, image_bytes or 0)
    return Plan(
        name=config.name,
        stages=stages,
        counts=counts,
        machine=machine,
        workers=workers,
        pool=pool,
        disk=disk,
        images_known=image_bytes is not None,
        prices=config.prices,
        notes=(*notes, *planner.notes, *smaller_students(config)),
    )


def _as_wished(wanted: ResourcesConfig, machine: Machine) -> tuple[Workers, Pool]:
    """What a run asks for on machines like this one, whether there are enough of them or not."""
    gpus = 1.0 if wanted.gpus_per_worker is None else wanted.gpus_per_worker
    cpus = wanted.cpus_per_worker or float(max(1, machine.cpus))
    loaders = max(1, machine.cpus) if wanted.loaders is None else wanted.loaders
    workers = Workers(wanted.num_workers, cpus, gpus, loaders, in_turn=not gpus)
    pool = Pool(
        wanted.label_actors or wanted.num_workers,
        wanted.cpus_per_actor or cpus,
        gpus if wanted.gpus_per_actor is None else wanted.gpus_per_actor,
    )
    return workers, pool


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
            memory(cost.bytes(plan.workers.gpus > 0)) if cost else "",
            f"{stage.rate:,.1f}" if stage.rate else "",
            duration(stage_seconds(stage, plan.workers, plan.pool)),
        )
    return made


def plan_lines(plan: Plan) -> list[str]:
    """What goes with the table."""
    counts, machine, workers, pool = plan.counts, plan.machine, plan.workers, plan.pool
    gpus = int(workers.count * workers.gpus)
    unknown = sorted({s.name for s in plan.stages if s.rate is None})
    besides = "" if plan.images_known else " besides the images"
    needed = total(plan.stages, workers, pool)
    times = f"all stages one after the other, on machines like this one ({machine.cpus} CPUs and "
    times += f"{machine.gpus} GPUs): {in_words(needed, plan.disk, plan.prices, besides)}"
    if unknown:
        times += f"; and what isn't measured: {', '.join(unknown)}"
    return [
        f"images: {counts.labeled:,} labeled in {counts.classes:,} classes, {counts.unlabeled:,} "
        f"unlabeled, {counts.validation:,} for validation, {counts.test:,} for test",
        f"training: {workers.count} workers, {gpus} GPUs; memory is the estimate for one of them, "
        "with `batch` images a forward pass" + (", on a GPU in bfloat16" if gpus else ""),
        times,
        *plan.notes,
    ]


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: seconds, bytes, hours and counts; null where nothing was measured
    or nothing is trained. What was not measured is not in the total."""
    workers, pool = plan.workers, plan.pool
    needed = total(plan.stages, workers, pool)
    return {
        "name": plan.name,
        "images": asdict(plan.counts),
        "machine": {"cpus": plan.machine.cpus, "gpus": plan.machine.gpus},
        "workers": {"count": workers.count, "cpus": workers.cpus, "gpus": workers.gpus},
        "stages": [_stage_json(stage, plan) for stage in plan.stages],
        "total": {
            "seconds": needed.seconds,
            "cpu_hours": needed.cpus,
            "gpu_hours": needed.gpus,
            "disk_bytes": plan.disk,
            "disk_has_images": plan.images_known,
            "money": needed.money(plan.prices),
            "currency": plan.prices.currency,
        },
        "notes": list(plan.notes),
    }


def _stage_json(stage: Stage, plan: Plan) -> dict[str, Any]:
    cost = stage.cost
    return {
        "id": stage.id,
        "kind": stage.kind,
        "name": stage.name,
        "model": stage.model,
        "image_size": stage.size,
        "images": stage.images,
        "steps": stage.steps,
        "parameters": cost.parameters if cost else None,
        "flops": cost.flops if cost else None,
        "batch": cost.rows if cost else None,
        "memory_bytes": cost.bytes(plan.workers.gpus > 0) if cost else None,
        "images_per_second": stage.rate,
        "seconds": stage_seconds(stage, plan.workers, plan.pool),
    }
