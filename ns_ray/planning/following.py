"""The status of a run, shown until it has ended."""

import time
from collections.abc import Iterator
from contextlib import suppress

from rich.console import Group
from rich.live import Live
from rich.text import Text

from ns_ray.config import RunConfig
from ns_ray.errors import StorageError
from ns_ray.log import console, say
from ns_ray.planning.status import Status, run_status, status_table
from ns_ray.store import STALE_SECONDS, RunLayout, heartbeat

SECONDS = 2.0
"""Between two looks, on a terminal."""
PLAIN_SECONDS = 10.0
"""The same where there is no terminal: what has changed is a new line."""
AROUND = 7
"""Lines of a terminal that are not for steps: the table's head, the verdict."""


def follow(config: RunConfig, layout: RunLayout) -> None:
    """Show the status of a run until it has ended, well or not: a table that changes on a terminal,
    a line for each step that has changed elsewhere.

    Raises:
        StorageError: its folder can't be read. Later on, that may pass.
    """
    if console.is_terminal:
        _show(config, layout)
    else:
        _say(config, layout)


def _show(config: RunConfig, layout: RunLayout) -> None:
    with Live(console=console, auto_refresh=False) as live:
        for found in _looks(config, layout, SECONDS):
            rows = max(1, console.height - AROUND)
            verdict = Text(found.verdict)
            live.update(Group(status_table(found, rows), verdict), refresh=True)
        live.update(Group(status_table(found), verdict), refresh=True)


def _say(config: RunConfig, layout: RunLayout) -> None:
    said: dict[str, str] = {}
    for found in _looks(config, layout, PLAIN_SECONDS):
        for line in found.lines:
            text = ", ".join(filter(None, (f"{line.name}: {line.state}", line.detail)))
            if line.state != "missing" and said.get(line.name) != text:
                say(text)
                said[line.name] = text
    say(found.verdict)


def _looks(config: RunConfig, layout: RunLayout, seconds: float) -> Iterator[Status]:
    """One now, and others until the run has ended, or the process that was at work on it has: it
    failed, was interrupted, or stood still for long. One that nobody works on yet is waited for."""
    beat, since = heartbeat(layout.root), time.monotonic()
    found = run_status(config, layout)
    yield found
    while not found.ended:
        time.sleep(seconds)
        before = beat
        with suppress(StorageError):
            beat = heartbeat(layout.root)  # looked at first: what it has left last is seen, too
            found = run_status(config, layout)
        if beat != before:
            since = time.monotonic()
        yield found
        stands_still = beat is not None and time.monotonic() - since > STALE_SECONDS
        if stands_still or (beat is None and before is not None):
            return
