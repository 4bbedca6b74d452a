"""`ns-ray init | check | plan | status | report`: looking at a run without running it."""

from typing import Annotated

import typer

from ns_ray import store
from ns_ray.commands.options import Budget, Config, Debug, Json, Recipe, Set
from ns_ray.config import RunConfig, load_either, parse
from ns_ray.errors import ConfigError
from ns_ray.log import aside, print_json, say, tabulate
from ns_ray.store import RunLayout

Pile = Annotated[
    int | None,
    typer.Option(
        min=0, help="Unlabeled images, with --images; 0 if not given.", show_default=False
    ),
]
Classes = Annotated[
    int | None,
    typer.Option(min=2, help="Classes, with --images; 1000 if not given.", show_default=False),
]


def init(
    folder: Annotated[
        str,
        typer.Argument(
            help="Labeled images: a folder per class, or anything else that --data takes; or a "
            "folder with train, and perhaps pile, val and test in it.",
            show_default=False,
        ),
    ],
    pile: Annotated[str | None, typer.Option(help="Unlabeled images.", show_default=False)] = None,
    validation: Annotated[
        str | None, typer.Option(help="Labeled images to choose on.", show_default=False)
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Labeled images to score at the end.", show_default=False)
    ] = None,
    budget: Budget = None,
    out: Annotated[str, typer.Option(help="The file to write.")] = "run.yaml",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write it also where there is one.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at images, and write the settings of a run for them and for this machine."""
    file = store.kept_file(out, "--out")
    if store.exists(file) and not overwrite:
        raise ConfigError(f"--out {out} exists; name another file, or pass --overwrite")
    from ns_ray.compute import keep_memory, machine

    keep_memory()
    from ns_ray.planning import (
        Parts,
        parts_in,
        plan_json,
        plan_lines,
        plan_table,
        propose,
        run_name,
    )

    with aside(json):
        parts = parts_in(folder, Parts(folder, pile, validation, test))
        text, made = propose(run_name(folder), parts, machine(), budget)
        store.write_bytes(file, text.encode())
    if json:
        print_json({"config": out, "plan": plan_json(made)})
        return
    tabulate(plan_table(made))
    for line in plan_lines(made):
        say(line)
    say(f"\n{text}\n{out} is written; start it: python -m ns_ray.run --config {out}")


def check(
    config: Config = None,
    recipe: Recipe = None,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Try settings, images, models, machine and storage of a run, without starting it."""
    settings = load_either(config, recipe, set_)
    from ns_ray.compute import keep_memory, machine

    keep_memory()
    from ns_ray.planning import check_run, findings_json, findings_table

    with aside(json):
        found = check_run(settings, machine())
    errors = [finding.error for finding in found if finding.error]
    if json:
        print_json(findings_json(found))
    else:
        tabulate(findings_table(found))
        say(f"{len(errors)} of {len(found)} failed" if errors else "a run can start")
    return errors[0].exit_code if errors else 0


def plan(
    config: Config = None,
    recipe: Recipe = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Labeled images to train on: plan without the data.", show_default=False
        ),
    ] = None,
    pile: Pile = None,
    classes: Classes = None,
    measure: Annotated[bool, typer.Option(help="Time a few steps on this machine.")] = True,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say how many images, steps, bytes and hours each stage of a run will take, and what of the
    disk and of your money (`prices`) they do together."""
    if images is None and (pile, classes) != (None, None):
        raise ConfigError("--pile and --classes go with --images; without it the data is counted")
    settings = load_either(config, recipe, set_)
    from ns_ray.compute import keep_memory, machine

    keep_memory()
    from ns_ray.data import list_all
    from ns_ray.planning import (
        Counts,
        image_bytes,
        make_plan,
        plan_json,
        plan_lines,
        plan_table,
        sampled,
    )

    with aside(json):
        if images is None:
            found = list_all(settings.data, seed=settings.seed)
            made = make_plan(
                settings,
                Counts.of(found),
                machine(),
                measure=measure,
                images=sampled(found.labeled, settings.seed) if measure else (),
                image_bytes=image_bytes(found),
            )
        else:
            counts = Counts(classes or 1000, images, pile or 0, 0, 0)
            made = make_plan(settings, counts, machine(), measure=measure)
    if json:
        print_json(plan_json(made))
        return
    tabulate(plan_table(made))
    for line in plan_lines(made):
        say(line)


def status(
    run: Annotated[
        str | None,
        typer.Argument(help="A run's folder or URI; or --config.", show_default=False),
    ] = None,
    config: Config = None,
    recipe: Recipe = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on showing it until the run has ended.")
    ] = False,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what of a run is done, in progress and missing."""
    from ns_ray import planning

    if follow and json:
        raise ConfigError("--follow and --json: give one of them")
    settings, layout = _run(run, config, recipe, set_)
    if follow:
        planning.follow(settings, layout)
        return
    with aside(json):
        found = planning.run_status(settings, layout)
    if json:
        print_json(planning.status_json(found))
        return
    tabulate(planning.status_table(found))
    say(found.verdict)


def _run(
    run: str | None, config: str | None, recipe: str | None, set_: list[str] | None
) -> tuple[RunConfig, RunLayout]:
    """A run by its folder, or by its settings."""
    if run is None and config is None and recipe is None:
        raise ConfigError("give the folder of a run, or --config, or --recipe")
    if run is None:
        settings = load_either(config, recipe, set_)
        return settings, RunLayout.of(settings)
    if config is not None or recipe is not None or set_:
        raise ConfigError(f"{run} has its settings: leave out --config, --recipe and --set")
    layout = RunLayout(store.absolute(run))
    if not store.exists(layout.config):
        raise ConfigError(f"{layout.root} is no run: it has no config.yaml; give a run's folder")
    text = store.read_bytes(layout.config).decode(errors="replace")
    return parse(text, origin=layout.config), layout


def report(
    run: Annotated[str, typer.Argument(help="A run's folder or URI.", show_default=False)],
    other: Annotated[
        str | None, typer.Argument(help="Another run: compare the two.", show_default=False)
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="File of the comparison; if not given, it is in the second run's folder.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the report of a run again, finished or not, or a page that compares two that are."""
    from ns_ray import report as pages

    if other is None and out is not None:
        raise ConfigError(f"--out {out}: the report of one run is always RUN/report.html")
    file = None if out is None else store.kept_file(out, "--out")
    say(pages.write(run) if other is None else pages.compare(run, other, file))
