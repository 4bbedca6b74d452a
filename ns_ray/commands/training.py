"""`ns-ray train`: one training, for people who need only that."""

from dataclasses import replace
from typing import Annotated

import typer

from ns_ray import store
from ns_ray.commands.options import Config, Debug, Out, Recipe, Set
from ns_ray.commands.preparing import ray_running
from ns_ray.compute import Machine
from ns_ray.config import RunConfig, load_either
from ns_ray.errors import ConfigError, NsRayError
from ns_ray.log import say
from ns_ray.steps import Arm, steps
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
    settings = load_either(config, recipe, set_)
    chosen = None if selection is None else open_selection(selection)
    place = store.absolute(out)
    plan = steps(settings, RunLayout(store.join(place, "work")))
    arm = plan.teacher if chosen is None else plan.students[0]
    if not arm.trainings:
        raise ConfigError(
            f"teacher.bundle={arm.model.bundle}: there is nothing to train; set a `model`"
        )
    teacher = _teacher(chosen) if chosen and arm.model.init == "teacher" else None
    with ray_running(settings.resources) as machine:
        trained = _fit(settings, arm, chosen, teacher, machine, place)
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
    arm: Arm,
    chosen: Selection | None,
    teacher: Model | None,
    machine: Machine,
    out: str,
) -> Model:
    """The trainings of one model of a run; the last one leaves its bundle in `out`."""
    from ns_ray.data import ingest
    from ns_ray.selftrain import train_model
    from ns_ray.stages import open_stages

    trainings = [
        replace(step, title=step.title.removeprefix(f"{arm.name} ")) for step in arm.trainings
    ]
    trainings[-1] = replace(trainings[-1], out=out)
    layout = RunLayout(store.join(out, "work"))
    data = ingest(settings.data, seed=settings.seed, out=layout, pile=False)
    return train_model(
        settings,
        open_stages(settings, machine),
        trainings,
        labeled=data.labeled,
        seed=settings.seed,
        pseudo=chosen,
        teacher=teacher,
    )
