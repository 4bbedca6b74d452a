"""What a person sees while a run works, and the metrics that a machine reads afterwards.

One live line per stage on a terminal (done/total, images/s, time left, share of time spent waiting
for input), a plain line now and then elsewhere. Knows nothing about the method.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 10_000
"""Columns of tables when the output is not a terminal: enough that nothing is cut or folded."""
PLAIN_SECONDS = 10.0
"""Least time between two lines of a stage when the output is not a terminal."""
FLUSH_SECONDS = 10.0
"""How far TensorBoard's file may be behind."""

running: list["Meter"] = []
"""Stages of this process that have begun and not ended."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """A reader that has left is met by the door of all commands, not here."""
        raise


_LINES: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
_PLAIN: dict[str, Any] = {**_LINES, "force_jupyter": False, "force_terminal": False}
console = _Console(**_LINES)
if console.is_jupyter or not console.is_terminal:
    # In a notebook too, whose FORCE_COLOR would make it a terminal: rich makes a box of each line.
    console = _Console(**_PLAIN, width=PLAIN_WIDTH)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], style="dim")


class Meter:
    """Counts what a stage has done; the line on the screen follows.

    Attributes:
        name, total, unit: of the stage: `label gen-01`, 58_000, `images`.
        done: units that are finished, those of earlier runs included.
        begun: others that are worked on; they are shown, and may have to be done again.
        skipped: of these, what earlier runs have done.
        waited: seconds that went into waiting for input.
        restarts: times that the stage began again because it had lost a worker.
        images_rate: images/s, where the unit is another one and the stage knows it.
    """

    def __init__(self, name: str, total: int, unit: str, progress: Progress | None) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.begun = 0
        self.waited = 0.0
        self.skipped = 0
        self.restarts = 0
        self.images_rate: float | None = None
        self._start = self._printed = time.monotonic()
        self._progress = progress
        self._task = progress.add_task(name, total=total, note="") if progress else None

    def skip(self, amount: int) -> None:
        """Count work that an earlier, interrupted run has done."""
        self.skipped += amount
        self.add(amount)

    def add(self, amount: int, *, waited: float = 0.0) -> None:
        """Count finished work, and the seconds of it that went into waiting for input."""
        self.done += amount
        self.waited += waited
        self._show()

    def begin(self, amount: int) -> None:
        """Show so much work on what is not finished, in place of what was shown of it before."""
        self.begun = amount
        self._show()

    def _show(self) -> None:
        done = self.done + self.begun
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=self.note())
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            left = self.seconds * (self.total - done) / max(done - self.skipped, 1)
            say(f"{self.name}: {done:,}/{self.total:,} {self.note()}, {left:.0f} s left")

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Units per second, work of earlier runs not counted."""
        return (self.done + self.begun - self.skipped) / max(self.seconds, 1e-9)

    @property
    def waiting(self) -> float:
        """Share of the time since the stage began that went into waiting for input."""
        return self.waited / max(self.seconds, 1e-9)

    def note(self) -> str:
        """Rate, and the share of time spent waiting for input when it matters."""
        waiting = f", {self.waiting:.0%} waiting for input" if self.waiting >= 0.05 else ""
        rate = f"{self.rate:.2g}" if self.rate < 10 else f"{self.rate:,.0f}"
        return f"{rate} {self.unit}/s{waiting}"


@contextmanager
def progress(name: str, total: int, unit: str = "images") -> Iterator[Meter]:
    """A line for one stage: `with progress("label gen-01", 58_000) as meter: meter.add(64)`."""
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    terminal = console.is_terminal
    with Progress(*columns, console=console, transient=True) if terminal else nullcontext() as bars:
        meter = Meter(name, total, unit, bars)
        running.append(meter)
        try:
            yield meter
        finally:
            running.remove(meter)
    say(f"{name}: {meter.done:,} {unit} in {meter.seconds:.1f} s, {meter.note()}")


def say(text: str) -> None:
    """Print a line for people."""
    console.print(text, soft_wrap=True)


def tabulate(table: Table) -> None:
    """Print a table: with rules and colors on a terminal, else as `plain` has it."""
    if console.is_terminal:
        console.print(table)
    else:
        say(plain(table).removesuffix("\n"))


def plain(table: Table) -> str:
    """A table for other programs and for files: a line for each of its own, columns two blanks
    apart, nothing cut."""
    table.box, table.pad_edge, table.padding = None, False, (0, 2, 0, 0)
    text = io.StringIO()
    Console(file=text, width=PLAIN_WIDTH, **_PLAIN).print(table)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


@contextmanager
def aside(wanted: bool) -> Iterator[None]:
    """Where it is wanted, say what is said on standard error: standard output is for JSON."""
    console.stderr = wanted
    try:
        yield
    finally:
        console.stderr = False


def print_json(value: Mapping[str, Any]) -> None:
    """Print what a program reads."""
    sys.stdout.write(as_json(value, sys.stdout, indent=2) + "\n")


def as_json(value: Any, out: TextIO, indent: int | None = None) -> str:
    """JSON that a stream can take: with its letters as they are, or escaped where it is not of
    Unicode."""
    plain = (out.encoding or "utf-8").lower().startswith("utf")
    return json.dumps(value, indent=indent, ensure_ascii=not plain)


@contextmanager
def to_file(path: str | os.PathLike[str]) -> Iterator[Callable[[str], None]]:
    """Send what is said meanwhile to the end of a file. What is yielded prints the few lines that
    people wait for."""
    screen = console.file

    def say_aloud(text: str) -> None:
        screen.write(text + "\n")
        screen.flush()

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a", buffering=1) as file:
        console.file = file
        try:
            yield say_aloud
        finally:
            console.file = cast(IO[str], None)  # sys.stdout again, whatever that is by then


class Metrics:
    """Appends to `metrics.jsonl`, and to TensorBoard events in a folder for each stage beside it.
    Local folders only: `mirror.mirrored` copies them to an object store.

    Args:
        path: of `metrics.jsonl`.
        also: is told each row, too: its stage, step and values.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        also: Callable[[str, int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self._path = Path(path)
        self._also = also
        self._events: Any = None
        self._stage = ""
        self._flushed = time.monotonic()
        self._failed = False

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One row: `{"time", "stage", "step", name: value, ...}`. Where it cannot be written, that
        is said once: a run is worth more than its metrics."""
        row = {"time": round(time.time(), 3), "stage": stage, "step": step, **values}
        try:
            self._append(row)
            self._tell_tensorboard(stage, step, values)
        except OSError as error:
            if not self._failed:
                say(f"metrics are lost: cannot write {self._path}: {error.strerror or error}")
            self._failed = True
        if self._also is not None:
            self._also(stage, step, values)

    def _append(self, row: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            torn = file.read(1) not in (b"", b"\n")  # what a killed process or a full disk left
            file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")

    def _tell_tensorboard(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if stage != self._stage:
            self.close()
            self._events = EventFileWriter(str(self._path.parent / "tensorboard" / stage))
            self._stage = stage
            # Steps from here on that a killed run has taken are done again: TensorBoard drops them,
            # in all of a folder, which is why each stage has its own.
            start = SessionLog(status=SessionLog.START)
            self._events.add_event(Event(wall_time=time.time(), step=step, session_log=start))
        summary = Summary(
            value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        )
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._events.flush()

    def close(self) -> None:
        """Flush the TensorBoard events."""
        if self._events is not None:
            self._events.close()
            self._events, self._stage = None, ""
