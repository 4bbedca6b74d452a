"""What checks found, on one screen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
    def state(self) -> Text:
        """In a word."""
        if self.error:
            return Text("failed", "red")
        return Text("note", "yellow") if self.unusual else Text("ok", "green")


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
        made.add_row(finding.name, finding.state, finding.detail)
    return made
