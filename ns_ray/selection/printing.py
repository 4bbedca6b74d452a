"""What was selected, for people: a table of classes, and a line of totals."""

from typing import Any

from rich.table import Table

from ns_ray import log
from ns_ray.store import Selection

SHOWN_CLASSES = 30
"""Most classes that are printed one by one."""


def selection_table(selection: Selection) -> Table:
    """What was selected per class, for people; many classes are cut to the rarest and the most
    common ones."""
    classes: list[dict[str, Any]] = selection.facts["table"]
    table = Table("Class", header_style="bold")
    for title in ("Labeled", "Pseudo-labeled", "Kept", "Copies", "Threshold"):
        table.add_column(title, justify="right")
    if len(classes) <= SHOWN_CLASSES:
        for row in classes:
            table.add_row(*_cells(row))
        return table
    by_rows = sorted(classes, key=lambda row: int(row["rows"]))
    for row in by_rows[:10]:
        table.add_row(*_cells(row))
    table.add_row(f"... {len(classes) - 20:,} more ...", end_section=True)
    for row in by_rows[-10:]:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    counts = [row["labeled"], row["rows"], row["kept"], row["copies"]]
    threshold = "-" if row["threshold"] is None else f"{row['threshold']:.4f}"
    return [str(row["class"]), *["-" if n is None else f"{n:,}" for n in counts], threshold]


def say(selection: Selection) -> None:
    """Print the table, and a line below it."""
    facts = selection.facts
    log.console.print(selection_table(selection))
    balance = f"{facts['per_class']:,} per class" if facts["per_class"] else "not balanced"
    how = "those of the last selection" if facts["reassigned"] else balance
    empty = sum(row["kept"] == 0 for row in facts["table"])
    log.say(
        f"select: kept {selection.kept:,} of {facts['rows']:,} rows "
        f"({facts['eligible']:,} above {facts['threshold']}), {how}; "
        f"{selection.copies:,} with copies" + (f"; {empty:,} classes got none" if empty else "")
    )
