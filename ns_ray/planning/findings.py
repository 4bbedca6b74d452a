"""What checks found, on one screen and as JSON."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ns_ray.errors import NsRayError


@dataclass(frozen=True)
class Finding:
    """What one check found: how it is, or the error that a run would end with.

    Attributes:
        unusual: whether it is worth a second look, though a run can start with it.
    """

    name: str
    detail: str
    error: NsRayError | None = None
    unusual: bool = False

    @property
    def state(self) -> str:
        """In a word."""
        return "failed" if self.error else "note" if self.unusual else "ok"


COLORS = {"failed": "red", "note": "yellow", "ok": "green"}


def tried(name: str, work: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a check finds, and last the error that it ends with, where it does."""
    try:
        yield from work()
    except NsRayError as error:
        yield Finding(name, str(error), error)


def findings_table(found: list[Finding]) -> Table:
    """The findings on one screen."""
    made = Table(box=box.SIMPLE_HEAD, show_header=False)
    made.add_column("name", no_wrap=True)
    made.add_column("state")
    made.add_column("detail", overflow="fold")
    for finding in found:
        made.add_row(finding.name, Text(finding.state, COLORS[finding.state]), finding.detail)
    return made


def findings_json(found: list[Finding]) -> dict[str, Any]:
    """The findings as plain values; `exit_code` is what a run would end with, or null."""
    return {
        "can_start": not any(finding.error for finding in found),
        "findings": [
            {
                "name": finding.name,
                "state": finding.state,
                "detail": finding.detail,
                "exit_code": finding.error.exit_code if finding.error else None,
            }
            for finding in found
        ],
    }
