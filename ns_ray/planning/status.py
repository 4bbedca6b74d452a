"""What of a run is done, in progress and missing, from the files in its folder.

Works while the run does, and after it was killed; reads a few small files.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ns_ray import store
from ns_ray.config import RunConfig, config_hash, recorded
from ns_ray.planning.progress import Line, Look, State, result_of
from ns_ray.store import RunLayout

COLORS: dict[State, str] = {"done": "green", "in progress": "yellow", "missing": "dim"}


@dataclass(frozen=True)
class Status:
    """All of a run.

    Attributes:
        root: its folder.
        lines: what it makes, in order.
        verdict: one line about the whole.
        ended: whether there is nothing left to do.
    """

    root: str
    lines: tuple[Line, ...]
    verdict: str
    ended: bool


def run_status(config: RunConfig, layout: RunLayout | None = None) -> Status:
    """Look at what a run has left so far.

    Args:
        config: the run.
        layout: where it lives; None: where the config says.

    Raises:
        DataError: a file in its folder cannot be read.
    """
    layout = layout or RunLayout.of(config)
    lines = tuple(Look(config, layout).lines())
    ended = result_of(config, layout) is not None
    return Status(layout.root, lines, _verdict(config, layout, lines), ended)


def _verdict(config: RunConfig, layout: RunLayout, lines: tuple[Line, ...]) -> str:
    if not store.exists(layout.config):
        return f"{layout.root}: not started"
    old = recorded(store.read_bytes(layout.config))
    if old is None:
        return f"{layout.config} is damaged; the command that started the run writes it again"
    found = old.get("config_hash")
    if found != config_hash(config):
        return (
            f"{layout.root} was made with other settings (hash {found}, these are "
            f"{config_hash(config)}); a run with these would be refused without --overwrite"
        )
    result = result_of(config, layout)
    if result is not None:
        return (
            f"finished: {result['status']}, best generation {result['best_generation']}, "
            f"model in {layout.model}"
        )
    done = sum(line.state == "done" for line in lines)
    written = store.changed(layout.root)
    ago = f", last written {max(0.0, time.time() - written):,.0f} s ago" if written else ""
    return f"{done} of {len(lines)} done{ago}; the command that started the run continues it"


def status_table(found: Status, rows: int | None = None) -> Table:
    """The status on one screen.

    Args:
        found: what there is.
        rows: most of them; where there are more, the first ones that are done are one, and the last
            ones that come. None: all.
    """
    made = Table(box=box.SIMPLE_HEAD)
    for name in ("stage", "state", "detail"):
        made.add_column(name, no_wrap=name != "detail")
    made.add_column("seconds", justify="right")
    made.add_column("finished (UTC)", no_wrap=True)
    lines = found.lines
    first, last = 0, len(lines)
    if rows is not None and last > rows:
        unfinished = (i for i, line in enumerate(lines) if line.state != "done")
        first = min(last - rows + 1, next(unfinished, last))
        room = rows - 1 if first else rows
        last = last if last - first <= room else first + room - 1
    if first:
        made.add_row(f"the first {first}", Text("done", COLORS["done"]))
    for line in lines[first:last]:
        seconds = "" if line.seconds is None else f"{line.seconds:,.1f}"
        finished = line.finished.replace("T", " ").removesuffix("Z")
        state = Text(line.state, COLORS[line.state])
        made.add_row(line.name, state, line.detail, seconds, finished)
    if last < len(lines):
        made.add_row(f"{len(lines) - last} more")
    return made


def status_json(found: Status) -> dict[str, Any]:
    """The status as plain values."""
    return {
        "root": found.root,
        "verdict": found.verdict,
        "stages": [asdict(line) for line in found.lines],
    }
