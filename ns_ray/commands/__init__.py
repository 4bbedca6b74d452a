"""The doors.

In go the words a user types; out come a call of the driver or of one stage, a line that says what
there is now, and an exit code. Knows nothing about the method, nor about what goes wrong: `door`
catches that, for all commands.
"""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Literal

import typer

from ns_ray import __version__
from ns_ray.commands import (
    ablation,
    evaluating,
    hub,
    looking,
    models,
    one_stage,
    reviewing,
    training,
    whole,
)
from ns_ray.commands.door import door
from ns_ray.log import say

__all__ = ["app", "main", "run_app"]

GROUPS: dict[str, tuple[Callable[..., int | None], ...]] = {
    "A run": (looking.init, whole.run, looking.check, looking.plan, looking.status, looking.report),
    "One stage": (
        one_stage.pack,
        one_stage.label,
        one_stage.select,
        training.train,
        evaluating.evaluate,
    ),
    "A model": (
        models.predict,
        models.serve,
        models.swap,
        models.export,
        models.fetch,
        hub.push,
    ),
    "Many runs": (ablation.ablate,),
    "By hand": (reviewing.label_next, reviewing.suspects),
}
"""The commands of `ns-ray`, in the order of its help."""

for stream in ("stdout", "stderr"):
    if getattr(sys, stream) is None:  # closed by who started this, as a shell does by >&-
        setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))

MARKUP: Literal["rich"] | None = "rich" if sys.stdout.isatty() and sys.stderr.isatty() else None
"""Boxes and colors of help and usage errors are for terminals: elsewhere they are plain text."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=MARKUP)
run_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=MARKUP)
"""`python -m ns_ray.run`, which is `ns-ray run`."""

for panel, commands in GROUPS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(door(command))
run_app.command()(door(whole.run))


def _version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Noisy Student self-training for image classification, distributed with Ray."""


def main() -> None:
    """The `ns-ray` command."""
    app()
