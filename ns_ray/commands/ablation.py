"""`ns-ray ablate`: grids of runs."""

from typing import Annotated

import typer

from ns_ray import store
from ns_ray.commands.options import Config, Debug, Out, Recipe, Set
from ns_ray.config import load_either
from ns_ray.errors import ConfigError


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
    debug: Debug = False,
) -> None:
    """Compare settings: a grid of runs over seeds, as a table beside the paper's numbers."""
    from ns_ray.ablation import ablate as compare

    compare(
        names,
        lambda more: load_either(config, recipe, [*(set_ or []), *more]),
        out=store.kept(out, "--out"),
        seeds=_seeds(seeds),
        parallel=parallel,
    )


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
