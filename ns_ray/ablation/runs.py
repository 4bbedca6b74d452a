"""The runs of an ablation: one for each arm and seed, some at a time on a cluster."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ns_ray import log, store
from ns_ray.ablation.grid import Arm
from ns_ray.ablation.sharing import Shared, SharedStages
from ns_ray.ablation.table import Measured
from ns_ray.compute import Machine, resources
from ns_ray.config import RunConfig, config_hash
from ns_ray.errors import ConfigError, DamagedFileError, NsRayError
from ns_ray.store import Mending, RunLayout, mirrored


@dataclass(frozen=True)
class Trial:
    """One arm with one seed."""

    grid: str
    arm: Arm
    config: RunConfig


def _layout(config: RunConfig, out: str) -> RunLayout:
    return RunLayout(store.join(out, "runs", config.name))


def result_of(config: RunConfig, out: str) -> dict[str, Any] | None:
    """The result of a run that has ended already, with just these settings."""
    result = store.read_intact(_layout(config, out).result, store.read_result) or {}
    return result if result.get("config_hash") == config_hash(config) else None


def measured_of(trial: Trial, out: str) -> Measured:
    """What the table says of a run that has ended."""
    result = result_of(trial.config, out)
    assert result is not None
    teacher, *students = result["generations"]
    row = {"student": students[-1], "teacher": teacher, "control": result["control"]}[trial.arm.row]
    pseudo = row["pseudo_labels"] or {"kept": None, "copies": None}
    return Measured(
        arm=trial.arm.name,
        seed=trial.config.seed,
        model=row["model"],
        parameters=row["parameters"],
        validation=row["val_top1"],
        test=row["test_top1"],
        teacher_validation=teacher["val_top1"],
        teacher_test=teacher["test_top1"],
        kept=pseudo["kept"],
        copies=pseudo["copies"],
    )


def run_missing(missing: Sequence[Trial], out: str, parallel: int | None) -> list[Trial]:
    """Run what is missing; the runs that failed."""
    from ns_ray.compute import cluster, prepare

    prepare()
    from ns_ray.planning import check_models, check_shared

    config = missing[0].config.resources
    with (
        mirrored(out, ["ray.log", "log.txt"]) as folder,
        cluster(config, f"{folder}/ray.log") as machine,
        log.to_file(f"{folder}/log.txt") as say,
    ):
        check_shared(machine, out, "--out")
        parallel = _parallel(missing, machine, parallel)
        share = machine.share(parallel)
        shared = Shared(store.join(out, "shared"))
        for name in dict.fromkeys(p.grid for p in missing):  # mistakes show before the first run
            for trial in {p.arm.name: p for p in missing if p.grid == name}.values():
                check_models(trial.config)
        say(f"{len(missing)} runs, {parallel} at a time; what they do is in {out}/log.txt")
        work = partial(_run_or_say, out=out, shared=shared, share=share, say=say)
        if parallel == 1:
            return [p for p in missing if not work(p)]
        pool = ThreadPoolExecutor(parallel, thread_name_prefix="run")
        try:
            return [p for p, well in zip(missing, pool.map(work, missing), strict=True) if not well]
        finally:  # not waited for when interrupted: without Ray they end by themselves
            pool.shutdown(wait=False, cancel_futures=True)


def _parallel(missing: Sequence[Trial], machine: Machine, parallel: int | None) -> int:
    """Runs at a time.

    Raises:
        ConfigError: more than one on a machine of our own, whose runs take turns.
    """
    if machine.local and (parallel or 1) > 1:
        raise ConfigError(
            f"--parallel={parallel} is for a running cluster (RAY_ADDRESS); on one machine runs "
            "take turns"
        )
    if parallel is None:
        parallel = 1 if machine.local else resources.runs(missing[0].config.resources, machine)
    return max(1, min(parallel, len(missing)))


def _run_or_say(trial: Trial, *, say: Callable[[str], None], **inputs: Any) -> bool:
    """Whether a run ended well; one that didn't must not cost the others."""
    try:
        _run_one(trial, say=say, **inputs)
    except NsRayError as error:
        say(f"{trial.config.name} failed: {error}")
        return False
    return True


def _run_one(
    trial: Trial, *, out: str, shared: Shared, share: Machine, say: Callable[[str], None]
) -> None:
    """Run an arm to its end and leave its result."""
    from ns_ray.selftrain import self_train
    from ns_ray.stages import open_stages

    start, config = time.monotonic(), trial.config
    log.say(f"== {config.name}")
    layout = _layout(config, out)
    stages = SharedStages(open_stages(config, share), shared, config.name)
    mending, result = Mending(out), None
    while result is None:
        try:
            result = self_train(config, layout, stages).result
        except DamagedFileError as error:
            mending.mend(error)
    store.write_json(layout.result, result)
    got = measured_of(trial, out)
    score = f"validation {got.validation:.4f}"
    score += "" if got.test is None else f", test {got.test:.4f}"
    say(f"{config.name}: {score}, {time.monotonic() - start:.0f} s")
