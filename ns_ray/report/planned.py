"""What a run was going to take when it began, beside what it took."""

from typing import Any

from ns_ray import store
from ns_ray.config import PricesConfig, validate
from ns_ray.errors import ConfigError, DamagedFileError
from ns_ray.report import words
from ns_ray.report.facts import Run
from ns_ray.store import Hours, PlannedStage, arm_name

KINDS = {"train": "Training", "label": "Labeling", "score": "Scoring"}


def planned(run: Run) -> dict[str, Any] | None:
    """Time, CPU- and GPU-hours, money and disk, planned and taken; None without a plan.

    Only what the run did is counted: it may have ended before its last student. CPU- and GPU-hours
    are of what each stage was going to hold.
    """
    try:
        if not store.exists(run.layout.plan):
            return None
        stages, disk = store.read_plan(run.layout.plan)
    except DamagedFileError:
        return None  # the run is none the worse for it
    took = _took(run)
    rows = []
    before, after = Hours(), Hours()
    for kind, name in KINDS.items():
        done = {(arm, kind): seconds for (arm, k), seconds in took.items() if k == kind}
        known = [s for s in stages if (_arm(run, s), s.kind) in done and s.seconds is not None]
        if not known:
            continue
        held = known[0]
        arms = {(_arm(run, stage), kind) for stage in known}
        was_going_to = _hours(held, sum(stage.seconds or 0.0 for stage in known))
        did = _hours(held, sum(done[place] for place in arms))
        rows.append(_row(name, was_going_to, did))
        before, after = before + was_going_to, after + did
    if not rows:
        return None
    prices = _prices(run)
    money = [hours.money(prices) for hours in (before, after)]
    return {
        "rows": [*rows, _row("All", before, after)],
        "gpus": before.gpus > 0,
        "disk": [words.size(disk), words.size(store.size(run.layout.root))],
        "money": [f"{m:,.2f} {prices.currency}" for m in money if m is not None],
    }


def _took(run: Run) -> dict[tuple[str, str], float]:
    """Seconds of each model of the run and kind of stage."""
    found: dict[tuple[str, str], float] = {}
    rows = {model.folder: model.row.get("seconds") or {} for model in run.models}
    for arm, seconds in (rows | {"refit": run.refit.get("seconds", {})}).items():
        for stage, value in seconds.items():
            place = (arm, stage if stage in KINDS else "score")
            found[place] = found.get(place, 0.0) + float(value)
    return found


def _arm(run: Run, stage: PlannedStage) -> str:
    """The model that a stage is of; all of a refit that were made are one."""
    arm = stage.id.partition("/")[0]
    again = {f"refit {arm_name(g)}" for g in run.refit.get("generations", ())}
    return "refit" if arm in again else arm


def _hours(held: PlannedStage, seconds: float) -> Hours:
    return Hours(seconds, held.cpus * seconds / 3600, held.gpus * seconds / 3600)


def _row(name: str, before: Hours, after: Hours) -> dict[str, Any]:
    ratio = after.seconds / before.seconds if before.seconds else None
    return {"name": name, "planned": before, "took": after, "ratio": ratio}


def _prices(run: Run) -> PricesConfig:
    try:
        return validate(PricesConfig, run.config.get("prices") or {})
    except ConfigError:  # of another version
        return PricesConfig()
