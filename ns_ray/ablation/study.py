"""`ns-ray ablate`: a grid of runs that share all the work they have in common.

Every arm is a whole `self_train`, handed stages that publish under a name made of their inputs.
So two arms with the same images share the corpora, two with the same teacher train it once and
label with it once, grids share what other grids left in the same folder, and a killed ablation
goes on where it was.

    {out}/{grid}.md .csv .svg         the table, every single result, the plot
    {out}/runs/{grid}-{arm}-{seed}/   result.json of each run
    {out}/shared/                     what the stages published
"""

from collections.abc import Callable, Sequence

from ns_ray import log, store
from ns_ray.ablation import table as tables
from ns_ray.ablation.drawing import plot
from ns_ray.ablation.grid import Grid, arm_config, load_grid
from ns_ray.ablation.runs import Trial, measured_of, result_of, run_missing
from ns_ray.ablation.table import Measured
from ns_ray.config import RunConfig
from ns_ray.errors import ConfigError, StageError


def ablate(
    names: Sequence[str],
    load: Callable[[list[str]], RunConfig],
    *,
    out: str,
    seeds: Sequence[int],
    parallel: int | None = None,
) -> dict[str, list[Measured]]:
    """Run grids and leave their tables in a folder.

    Args:
        names: of grids, or YAML files.
        load: reads the recipe with some settings on top.
        out: folder or URI.
        seeds: each arm is run with each of them.
        parallel: runs at a time, which share a cluster evenly; None: as many as fit well.

    Returns:
        Of each grid, what its table is made of.

    Raises:
        ConfigError: a grid, an arm or the recipe is wrong; nothing was started.
        StageError: some runs failed. The others were finished, and the tables have them.
    """
    load([])  # a mistake in the recipe is no arm's
    grids = dict(load_grid(name) for name in names)
    trials = [
        Trial(name, arm, arm_config(load, name, grid, arm, seed))
        for seed in dict.fromkeys(seeds)
        for name, grid in grids.items()
        for arm in grid.arms
    ]
    if any(trial.config.budget for trial in trials):
        raise ConfigError("budget: an ablation compares runs of one length; leave it out")
    missing = [p for p in trials if result_of(p.config, out) is None]
    failed: list[Trial] = []
    if missing:
        with store.owned(out):
            failed = run_missing(missing, out, parallel)
    measured = {
        name: [measured_of(p, out) for p in trials if p.grid == name and p not in failed]
        for name in grids
    }
    for name, of_grid in measured.items():
        if of_grid:
            _publish(name, grids[name], of_grid, out)
    if failed:
        raise StageError(
            f"{len(failed)} of {len(trials)} runs failed, as said above: "
            f"{', '.join(p.config.name for p in failed[:5])}; the same command tries them again"
        )
    return measured


def _publish(name: str, grid: Grid, measured: Sequence[Measured], out: str) -> None:
    log.tabulate(tables.screen(name, grid, measured))
    files = {
        "md": tables.markdown(name, grid, measured).encode(),
        "csv": tables.as_csv(measured).encode(),
        "svg": plot(name, grid, measured),
    }
    for kind, data in files.items():
        store.write_bytes(store.join(out, f"{name}.{kind}"), data)
    log.say(f"Paper: {grid.paper}")
    log.say(f"{store.join(out, name)}.md, .csv, .svg")
