"""`ns-ray ablate`: a grid of runs that share all the work they have in common.

Every arm is a whole `self_train`, handed stages that publish under a name made of their inputs.
So two arms with the same images share the corpora, two with the same teacher train it once and
label with it once, grids share what other grids left in the same folder, and a killed ablation
goes on where it was.

    {out}/{grid}.md .csv .svg         the table, every single result, the plot
    {out}/runs/{grid}-{arm}-{seed}/   result.json of each run
    {out}/shared/                     what the stages published
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ns_ray import log, store
from ns_ray.ablation import table as tables
from ns_ray.ablation.grid import Arm, Grid, arm_config, load_grid
from ns_ray.ablation.sharing import Shared, SharedStages
from ns_ray.ablation.table import Measured
from ns_ray.compute import Machine, resources
from ns_ray.config import RunConfig, config_hash
from ns_ray.errors import ConfigError, NsRayError, StageError
from ns_ray.store import RunLayout, mirrored


@dataclass(frozen=True)
class Planned:
    """One arm with one seed."""

    grid: str
    arm: Arm
    config: RunConfig


def ablate(
    names: Sequence[str],
    load: Callable[[list[str]], RunConfig],
    *,
    out: str,
    seeds: Sequence[int],
    jobs: int | None = None,
) -> None:
    """Run grids and leave their tables in a folder.

    Args:
        names: of grids, or YAML files.
        load: reads the recipe with some settings on top.
        out: folder or URI.
        seeds: each arm is run with each of them.
        jobs: runs at a time, which share a cluster evenly; None: as many as fit well.

    Raises:
        ConfigError: a grid, an arm or the recipe is wrong; nothing was started.
        StageError: some runs failed. The others were finished, and the tables have them.
    """
    load([])  # a mistake in the recipe is no arm's
    grids = dict(load_grid(name) for name in names)
    plan = [
        Planned(name, arm, arm_config(load, name, grid, arm, seed))
        for seed in dict.fromkeys(seeds)
        for name, grid in grids.items()
        for arm in grid.arms
    ]
    missing = [p for p in plan if _result(p.config, out) is None]
    failed = _run(missing, out, jobs) if missing else []
    for name, grid in grids.items():
        of_grid = [p for p in plan if p.grid == name and p not in failed]
        if of_grid:
            _publish(name, grid, [_measured(p, out) for p in of_grid], out)
    if failed:
        raise StageError(
            f"{len(failed)} of {len(plan)} runs failed, as said above: "
            f"{', '.join(p.config.name for p in failed[:5])}; the same command tries them again"
        )


def _layout(config: RunConfig, out: str) -> RunLayout:
    return RunLayout(store.join(out, "runs", config.name))


def _result(config: RunConfig, out: str) -> dict[str, Any] | None:
    """The result of a run that has ended already, with just these settings."""
    path = _layout(config, out).result
    result = store.read_json(path) if store.exists(path) else {}
    return result if result.get("config_hash") == config_hash(config) else None


def _run(missing: Sequence[Planned], out: str, jobs: int | None) -> list[Planned]:
    """Run what is missing; the runs that failed."""
    from ns_ray.compute import cluster, prepare

    prepare()
    from ns_ray.planning import check_models

    config = missing[0].config.resources
    with (
        mirrored(out, ["ray.log", "log.txt"]) as folder,
        cluster(config, f"{folder}/ray.log") as machine,
        log.to_file(f"{folder}/log.txt") as say,
    ):
        jobs = _jobs(missing, machine, jobs)
        share = Machine(machine.cpus // jobs, machine.gpus // jobs, machine.local)
        shared = Shared(store.join(out, "shared"))
        for name in dict.fromkeys(p.grid for p in missing):  # mistakes show before the first run
            for planned in {p.arm.name: p for p in missing if p.grid == name}.values():
                check_models(planned.config)
        say(f"{len(missing)} runs, {jobs} at a time; what they do is in {out}/log.txt")
        work = partial(_run_or_say, out=out, shared=shared, share=share, say=say)
        if jobs == 1:
            return [p for p in missing if not work(p)]
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="run")
        try:
            return [p for p, well in zip(missing, pool.map(work, missing), strict=True) if not well]
        finally:  # not waited for when interrupted: without Ray they end by themselves
            pool.shutdown(wait=False, cancel_futures=True)


def _jobs(missing: Sequence[Planned], machine: Machine, jobs: int | None) -> int:
    """Runs at a time.

    Raises:
        ConfigError: more than one on a machine of our own, whose runs take turns.
    """
    if machine.local and (jobs or 1) > 1:
        raise ConfigError(
            f"--jobs={jobs} is for a running cluster (RAY_ADDRESS); on one machine runs take turns"
        )
    if jobs is None:
        jobs = 1 if machine.local else resources.runs(missing[0].config.resources, machine)
    return max(1, min(jobs, len(missing)))


def _run_or_say(planned: Planned, *, say: Callable[[str], None], **inputs: Any) -> bool:
    """Whether a run ended well; one that didn't must not cost the others."""
    try:
        _run_one(planned, say=say, **inputs)
    except NsRayError as error:
        say(f"{planned.config.name} failed: {error}")
        return False
    return True


def _run_one(
    planned: Planned, *, out: str, shared: Shared, share: Machine, say: Callable[[str], None]
) -> None:
    """Run an arm to its end and leave its result."""
    from ns_ray.selftrain import self_train
    from ns_ray.stages import open_stages

    start, config = time.monotonic(), planned.config
    log.say(f"== {config.name}")
    layout = _layout(config, out)
    stages = SharedStages(open_stages(config, share), shared, config.name)
    store.write_json(layout.result, self_train(config, layout, stages).result)
    got = _measured(planned, out)
    score = f"validation {got.validation:.4f}"
    score += "" if got.test is None else f", test {got.test:.4f}"
    say(f"{config.name}: {score}, {time.monotonic() - start:.0f} s")


def _measured(planned: Planned, out: str) -> Measured:
    result = _result(planned.config, out)
    assert result is not None
    teacher, *students = result["generations"]
    row = {"student": students[-1], "teacher": teacher, "control": result["control"]}[
        planned.arm.row
    ]
    pseudo = row["pseudo_labels"] or {"kept": None, "copies": None}
    return Measured(
        arm=planned.arm.name,
        seed=planned.config.seed,
        model=row["model"],
        parameters=row["parameters"],
        validation=row["val_top1"],
        test=row["test_top1"],
        teacher_validation=teacher["val_top1"],
        teacher_test=teacher["test_top1"],
        kept=pseudo["kept"],
        copies=pseudo["copies"],
    )


def _publish(name: str, grid: Grid, measured: Sequence[Measured], out: str) -> None:
    log.console.print(tables.screen(name, grid, measured))
    files = {
        "md": tables.markdown(name, grid, measured).encode(),
        "csv": tables.as_csv(measured).encode(),
        "svg": tables.plot(name, grid, measured),
    }
    for kind, data in files.items():
        store.write_bytes(store.join(out, f"{name}.{kind}"), data)
    log.say(f"Paper: {grid.paper}")
    log.say(f"{store.join(out, name)}.md, .csv, .svg")
