"""`ns-ray check | plan | status`: looking at a run without running it."""

from typing import Annotated

import typer

from ns_ray import run as whole
from ns_ray.log import console, say
from ns_ray.settings import load_either

Config = Annotated[str | None, typer.Option(help="A YAML file of a run.")]
Recipe = Annotated[str | None, typer.Option(help="A recipe of the package.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting.")
]
Debug = Annotated[bool, typer.Option(help="Show tracebacks.")]


def check(
    config: Config = None, recipe: Recipe = None, set_: Set = None, debug: Debug = False
) -> None:
    """Try settings, images, models, machine and storage of a run, without starting it."""

    def work() -> int:
        settings = load_either(config, recipe, set_)
        from ns_ray.runtime import keep_memory, machine

        keep_memory()
        from ns_ray.check import check as try_all
        from ns_ray.check import table

        found = try_all(settings, machine())
        console.print(table(found))
        errors = [finding.error for finding in found if finding.error]
        say(f"{len(errors)} of {len(found)} failed" if errors else "a run can start")
        return errors[0].exit_code if errors else 0

    raise typer.Exit(whole.guard(debug, work))


def plan(
    config: Config = None,
    recipe: Recipe = None,
    images: Annotated[
        int | None, typer.Option(help="Labeled images to train on: plan without the data.")
    ] = None,
    pile: Annotated[int, typer.Option(help="Unlabeled images, with --images.")] = 0,
    classes: Annotated[int, typer.Option(help="Classes, with --images.")] = 1000,
    measure: Annotated[bool, typer.Option(help="Time a few steps on this machine.")] = True,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Images, steps, memory and time of each stage of a run, before it starts."""

    def work() -> None:
        settings = load_either(config, recipe, set_)
        from ns_ray.runtime import keep_memory, machine

        keep_memory()
        from ns_ray.ingest import list_all
        from ns_ray.plan import Counts, lines, make_plan, table

        if images is None:
            counts = Counts.of(list_all(settings.data, seed=settings.seed))
        else:
            counts = Counts(classes, images, pile, 0, 0)
        made = make_plan(settings, counts, machine(), measure=measure)
        console.print(table(made))
        for line in lines(made):
            say(line)

    raise typer.Exit(whole.guard(debug, work))


def status(
    config: Config = None, recipe: Recipe = None, set_: Set = None, debug: Debug = False
) -> None:
    """What of a run is done, in progress and missing."""

    def work() -> None:
        from ns_ray.status import status as look
        from ns_ray.status import table

        found = look(load_either(config, recipe, set_))
        console.print(table(found))
        say(found.verdict)

    raise typer.Exit(whole.guard(debug, work))
