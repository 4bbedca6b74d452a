"""The page of a run that has not finished: what is done, and what comes."""

from typing import Any

from ns_ray import store
from ns_ray.config import parse
from ns_ray.errors import DamagedFileError
from ns_ray.planning import run_status
from ns_ray.report import words
from ns_ray.report.facts import Run
from ns_ray.report.rendering import render


def begun_page(run: Run) -> str:
    """The page of a run that has no model yet, as HTML."""
    return render(
        "begun.html",
        run=run,
        coming=coming(run),
        config=store.read_bytes(run.layout.config).decode(),
        versions=run.config.get("versions") or {},
    )


def coming(run: Run) -> dict[str, Any]:
    """The steps of a run, those that are done, and what the others take by its plan.

    Raises:
        ConfigError: its settings are those of another version.
    """
    config = parse(store.read_bytes(run.layout.config).decode(), origin=run.layout.config)
    lines = run_status(config, run.layout).lines
    planned = _planned(run)
    rows = [{"line": line, "planned": planned.get(line.id)} for line in lines]
    done = [line for line in lines if line.state == "done"]
    left = [planned[line.id] for line in lines if line.state != "done" and line.id in planned]
    text = f"{len(done)} of {len(lines)} steps are done"
    if left:
        text += f"; the others take about {words.seconds(sum(left))} by the plan"
    last = max((line.finished for line in done), default="")
    return {"rows": rows, "words": text, "at": words.minute(last)}


def _planned(run: Run) -> dict[str, float]:
    """Seconds that each step was going to take, by its id; those that are not known left out."""
    try:
        stages = store.read_plan(run.layout.plan)[0] if store.exists(run.layout.plan) else ()
    except DamagedFileError:
        return {}  # the run is none the worse for it
    found: dict[str, float] = {}
    for stage in stages:
        if stage.seconds is not None:
            found[stage.id] = found.get(stage.id, 0.0) + stage.seconds
    return found
