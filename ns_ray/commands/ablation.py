"""`ns-ray ablate`: grids of runs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ns_ray import store
from ns_ray.commands.options import Config, Debug, Json, Out, Recipe, Set
from ns_ray.config import load_either
from ns_ray.errors import ConfigError
from ns_ray.log import aside, print_json

if TYPE_CHECKING:
    from ns_ray.ablation import Measured


def ablate(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="Grids (see ns_ray/ablation/grids), or YAML files.",
            show_default=False,
        ),
    ],
    out: Out,
    config: Config = None,
    recipe: Recipe = None,
    seeds: Annotated[
        str, typer.Option(metavar="N,N,...", help="Each arm is run with each of these seeds.")
    ] = "0,1,2",
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at a time on a cluster; if not given, what fits.", show_default=False
        ),
    ] = None,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare settings: a grid of runs over seeds, as a table beside the paper's numbers."""
    from ns_ray.ablation import ablate as compare

    place = store.kept_folder(out, "--out")
    with aside(json):
        measured = compare(
            names,
            lambda more: load_either(config, recipe, [*(set_ or []), *more]),
            out=place,
            seeds=_seeds(seeds),
            parallel=parallel,
        )
    if json:
        print_json({"path": place, "grids": [_grid(*found) for found in measured.items()]})


def _grid(name: str, measured: "Sequence[Measured]") -> dict[str, Any]:
    """A grid as plain values: what NAME.csv has."""
    return {"name": name, "results": [asdict(one) for one in measured]}


def _seeds(text: str) -> list[int]:
    """The seeds of `0,1,2`.

    Raises:
        ConfigError: it isn't whole numbers with commas between them.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--seeds {text!r} must be whole numbers with commas between them, such as 0,1,2"
        ) from None
