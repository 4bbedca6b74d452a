"""`ns-ray run`, which is `python -m ns_ray.run`: a whole run from one config.

Running the same command again continues; a changed config under the same name is refused.
"""

from typing import Annotated

import typer

from ns_ray import __version__
from ns_ray.api import execute
from ns_ray.commands.completing import recipes
from ns_ray.commands.door import faults_go_to
from ns_ray.commands.options import Budget, Debug, Json, Set
from ns_ray.config import load_either
from ns_ray.log import aside, print_json, say
from ns_ray.store import RunLayout

NO_STUDENT = 5
DEFAULT_RECIPE = "digits"


def run(
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"A recipe of the package; {DEFAULT_RECIPE} when nothing is given.",
            autocompletion=recipes,
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="A YAML file of your own.", show_default=False)
    ] = None,
    budget: Budget = None,
    set_: Set = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Redo what other settings under the same name left."),
    ] = False,
    json: Json = False,
    debug: Debug = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> int:
    """Run Noisy Student self-training: teacher, pseudo-labels, noised student, and again.

    The same command again continues where it was.
    """
    if version:
        say(__version__)
        return 0
    if recipe is None and config is None:
        recipe = DEFAULT_RECIPE
    fitted = [f"budget={budget}"] if budget is not None else []
    settings = load_either(config, recipe, [*(set_ or []), *fitted])
    with faults_go_to(RunLayout.of(settings).root), aside(json):
        result = execute(settings, overwrite=overwrite)
    if json:
        print_json(result)
    return 0 if result["status"] == "done" else NO_STUDENT
