"""Options that several commands take, and how they are read."""

from typing import Annotated, Any

import typer

from ns_ray.commands.completing import bundles, recipes
from ns_ray.config import Settings

Bundle = Annotated[
    str,
    typer.Option(
        help="A run folder, a bundle, or a timm local-dir.",
        autocompletion=bundles,
        show_default=False,
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="Folder per class, flat folder, CSV, JSON, Parquet or Arrow table, WebDataset tars, "
        "zip archives, IDX files, a packed corpus, or a named set (digits, fashion-mnist, cifar10, "
        "svhn).",
        show_default=False,
    ),
]
Out = Annotated[str, typer.Option(help="Folder or URI of the result.", show_default=False)]
Config = Annotated[
    str | None, typer.Option(help="The YAML file of a run; this or --recipe.", show_default=False)
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="A recipe of the package, such as digits.",
        autocompletion=recipes,
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="Change one setting, such as train.epochs=20. Can be repeated.",
        show_default=False,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Fit the run into this time, such as 30m or 2h; the same as --set budget=30m.",
        show_default=False,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON (docs/shell.md), and all that is for people on standard error."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def set_of(model: type[Settings]) -> Any:
    """`--set` of a command that takes these sections."""
    *some, last = model.model_fields
    names = f"{', '.join(some)} or {last}" if some else last
    return typer.Option(
        "--set",
        metavar="A.B=C",
        help=f"Change one setting of {names} (docs/configuration.md). Can be repeated.",
        show_default=False,
    )
