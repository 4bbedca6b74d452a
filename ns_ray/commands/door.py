"""What goes wrong in a command: one line, and an exit code. All commands go through here."""

import io
import os
import platform
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
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
READER_LEFT = 141
"""What a shell says of a program that a closed pipe has ended: 128 and the number of SIGPIPE."""

console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
"""What goes wrong is said on standard error: standard output may go to another program."""

P = ParamSpec("P")


def door(command: Callable[P, int | None]) -> Callable[P, None]:
    """A command that ends with an exit code: its own, or that of the error it met."""

    @wraps(command)
    def opened(*args: P.args, **options: P.kwargs) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Names of files and classes may be in letters that a terminal's encoding does not have.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            code = _ended(partial(command, *args, **options), options)
            sys.stdout.flush()
        except BrokenPipeError:
            if not _reader_left():
                raise
            code = READER_LEFT
        raise typer.Exit(code)

    return opened


def _ended(work: Callable[[], int | None], options: Mapping[str, object]) -> int:
    """The exit code of a command; its error is said."""
    try:
        with faults_go_to(None):
            return mended(work, options.get("out")) or 0
    except NsRayError as error:
        if options.get("debug"):
            traceback.print_exception(error)
        console.print(Text.assemble(("error:", "red"), f" {error}"))
        return error.exit_code
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues")
        return INTERRUPTED


def _reader_left() -> bool:
    """Whether nobody reads what is printed, as after `| head -1`. What is still to be written goes
    nowhere then: Python would complain of it at its end."""
    gone = []
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        gone += [stream.fileno() for _, event in poll.poll(0) if event & select.POLLERR]
    for number in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(gone)


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
