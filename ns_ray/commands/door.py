"""What goes wrong in a command: one line, and an exit code. All commands go through here."""

import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from ns_ray import __version__, store
from ns_ray.api import mended
from ns_ray.errors import ConfigError, FaultError, NsRayError, first_line

INTERRUPTED = 130

console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
"""What goes wrong is said on standard error: standard output may go to another program."""

P = ParamSpec("P")


def door(command: Callable[P, int | None]) -> Callable[P, None]:
    """A command that ends with an exit code: its own, or that of the error it met."""

    @wraps(command)
    def opened(*args: P.args, **options: P.kwargs) -> None:
        try:
            with faults_go_to(None):
                code = mended(partial(command, *args, **options), options.get("out")) or 0
        except NsRayError as error:
            if options.get("debug"):
                traceback.print_exception(error)
            console.print(Text.assemble(("error:", "red"), f" {error}"))
            code = error.exit_code
        except KeyboardInterrupt:
            console.print("interrupted; the same command continues")
            code = INTERRUPTED
        raise typer.Exit(code)

    return opened


@contextmanager
def faults_go_to(folder: str | None) -> Iterator[None]:
    """Say where the traceback of a fault of ours goes: a run's folder; None: a temporary file.

    Raises:
        StorageError: a disk is full; that is no fault, whoever met it.
        ConfigError: a package is not installed.
        FaultError: for all but errors of ours, the end of the program, and a reader that has left.
    """
    try:
        yield
    except (NsRayError, typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if (full := store.full_disk(error)) is not None:
            raise full from error
        missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
        if missing.partition(".")[0] not in ("", "ns_ray"):
            raise ConfigError(
                f"the Python module {missing} is missing: pip install ns-ray brings all that it "
                "needs (serve/requirements.txt only what labels and serves)"
            ) from error
        name, says = type(error).__name__, first_line(error)
        what = name if says == name else f"{name}: {says}"
        place = _write(error, folder)
        raise FaultError(
            f"a fault of ns-ray ({what}); the traceback is {place}; please report it"
        ) from error


def _write(error: Exception, folder: str | None) -> str:
    """Write what a report of a fault needs; where that is."""
    about = f"ns-ray {__version__}, Python {platform.python_version()}, {platform.platform()}"
    lines = [about, " ".join(sys.argv), "", *traceback.format_exception(error)]
    text = "\n".join(line.rstrip("\n") for line in lines) + "\n"
    if folder is not None:
        with suppress(Exception):  # that storage may be what is at fault
            file = store.join(folder, "fault.txt")
            store.write_bytes(file, text.encode())
            return f"in {file}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ns-ray-fault-", suffix=".txt", delete=False, encoding="utf-8"
        ) as temporary:
            temporary.write(text)
        return f"in {temporary.name}"
    except OSError:  # a full disk
        console.print(text)
        return "above"
