"""`ns-ray train`: one training, for people who need only that."""

from dataclasses import replace
from typing import Annotated

import typer

from ns_ray import store
from ns_ray.api import owning, ray_running
from ns_ray.commands.options import Config, Debug, Out, Recipe, Set
from ns_ray.compute import Machine
from ns_ray.config import Images, RunConfig, load_either, settle
from ns_ray.errors import ConfigError, NsRayError
from ns_ray.itinerary import steps
from ns_ray.log import say
from ns_ray.store import Bundle as Model
from ns_ray.store import RunLayout, Selection, open_bundle, open_labels, open_selection


def train(
    out: Out,
    config: Config = None,
    recipe: Recipe = None,
    selection: Annotated[
        str | None,
        typer.Option(
            help="Folder of a selection: train the first student with it, not the teacher.",
            show_default=False,
        ),
    ] = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Train one model on labeled images and, if given, on selected pseudo-labeled ones."""
    settings, place = load_either(config, recipe, set_), store.kept_folder(out, "--out")
    chosen = None if selection is None else open_selection(selection)
    if chosen is None and settings.teacher.bundle is not None:
        raise ConfigError(
            f"teacher.bundle={settings.teacher.bundle}: there is nothing to train; set a `model`"
        )
    start = settings.students[0].init == "teacher" if chosen else False
    teacher = _teacher(chosen) if chosen and start else None
    with owning(place), ray_running(settings.resources, place) as machine:
        trained = _fit(settings, chosen, teacher, machine, place)
    say(f"{trained.path}: {trained.parameters:,} parameters")


def _teacher(selection: Selection) -> Model:
    """The model whose labels were selected from."""
    try:
        return open_bundle(open_labels(selection.labels).teacher)
    except NsRayError as error:
        raise ConfigError(
            f"students.0.init=teacher: the teacher of {selection.path} cannot be opened "
            f"({error}); put it back, or set students.0.init=scratch"
        ) from None


def _fit(
    settings: RunConfig,
    chosen: Selection | None,
    teacher: Model | None,
    machine: Machine,
    out: str,
) -> Model:
    """The trainings of one model of a run; the last one leaves its bundle in `out`."""
    from ns_ray.data import ingest, symmetric
    from ns_ray.selftrain import train_model
    from ns_ray.stages import open_stages

    layout = RunLayout(store.join(out, "work"))
    data = ingest(settings.data, seed=settings.seed, out=layout, pile=False)
    pile = int(chosen.facts["rows"]) if chosen else 0
    images = Images(data.labeled.rows, pile, symmetric(data.labeled))
    plan = steps(settle(settings, images)[0], layout)
    arm = plan.students[0] if chosen else plan.teacher
    trainings = [
        replace(step, title=step.title.removeprefix(f"{arm.name} ")) for step in arm.trainings
    ]
    trainings[-1] = replace(trainings[-1], out=out)
    return train_model(
        settings,
        open_stages(settings, machine),
        trainings,
        labeled=data.labeled,
        validation=data.validation,
        seed=settings.seed,
        pseudo=chosen,
        teacher=teacher,
    )
