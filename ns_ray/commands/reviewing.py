"""`ns-ray label-next | suspects`: what a person should look at."""

from typing import Annotated

import typer

from ns_ray import store
from ns_ray.api import owning, ray_running
from ns_ray.commands.options import Config, Debug, Out, Recipe, Set
from ns_ray.compute import resources
from ns_ray.config import load_either
from ns_ray.errors import ConfigError
from ns_ray.log import say


def label_next(
    run: Annotated[
        str, typer.Argument(help="Folder or URI of a run, finished or not.", show_default=False)
    ],
    out: Out,
    count: Annotated[int, typer.Option(help="Images to label.", min=1)] = 100,
    debug: Debug = False,
) -> None:
    """Choose the images of the pile that a person should label, and a page to label them on."""
    from ns_ray.review import TABLE
    from ns_ray.review import label_next as write

    place = store.kept_folder(out, "--out")
    with owning(place, TABLE):
        made = write(run, count=count, out=place)
    say(f"{made.table}: {made.images:,} of {made.pile:,} images; label them on {made.page}")


def suspects(
    out: Out, config: Config = None, recipe: Recipe = None, set_: Set = None, debug: Debug = False
) -> None:
    """Say which labels are probably wrong, by models that have not seen the images."""
    settings, place = load_either(config, recipe, set_), store.kept_folder(out, "--out")
    if settings.teacher.bundle is not None:
        raise ConfigError(
            f"teacher.bundle={settings.teacher.bundle}: a model that has seen the images may have "
            "learnt their labels; set a `model`, such as teacher={model: efficientnet_b0}"
        )
    from ns_ray.review import SUSPECTS, find_suspects

    with owning(place, SUSPECTS), ray_running(settings.resources, place) as machine:
        from ns_ray.stages import open_stages

        stages = open_stages(settings, machine)
        device = resources.workers(settings.resources, machine).device
        found = find_suspects(settings, stages, device=device, out=place)
    say(f"{found.table}: {found.suspects:,} of {found.images:,} labels are suspect; {found.page}")
