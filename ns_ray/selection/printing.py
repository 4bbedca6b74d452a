"""What was selected, for people: a table of classes, and a line of totals."""

from typing import Any

from rich.table import Table

from ns_ray import log
from ns_ray.store import Selection

MOST_FOREIGN = 0.5
"""Share of the pile from which on foreign images are most of it."""
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
    log.tabulate(selection_table(selection))
    balance = f"{facts['per_class']:,} per class" if facts["per_class"] else "not balanced"
    if "precision" in facts:
        log.say(_thresholds(facts))
    if facts.get("temperature_fitted"):
        log.say(f"select: temperature {facts['temperature']:g} fits validation images best")
    how = "those of the last selection" if facts["reassigned"] else balance
    empty = sum(row["kept"] == 0 for row in facts["table"])
    if "weights" in facts:
        mean, spread = facts["weights"]["mean"], facts["weights"]["variance"] ** 0.5
        log.say(
            f"select: weight 1 from confidence {mean:.4f} on, less below (deviation {spread:.4f})"
        )
    if "foreign" in facts:
        log.say(f"select: {foreign_words(facts['foreign'])}")
        if facts["foreign"]["least"] > MOST_FOREIGN:
            log.say(
                "select: WARNING: most of the pile is foreign: look at the images in the report; "
                "select.max_foreign=1 leaves them out"
            )
    above = "their class's threshold" if "precision" in facts else facts["threshold"]
    log.say(
        f"select: kept {selection.kept:,} of {facts['rows']:,} rows "
        f"({facts['eligible']:,} above {above}), {how}; "
        f"{selection.copies:,} with copies" + (f"; {empty:,} classes got none" if empty else "")
    )


def foreign_words(found: dict[str, Any]) -> str:
    """How much of the pile is foreign, in a sentence without its end."""
    share = found["rows"] / max(found["of"], 1)
    return (
        f"{share:.1%} of the pile is foreign, farther from all labeled images than "
        f"{1 - found['expected']:.0%} of the validation images; of images of the classes alone it "
        f"would be {found['expected']:.0%}"
    )


def _thresholds(facts: dict[str, Any]) -> str:
    """The thresholds of `select.precision`, those that are not the classes' own, and the classes
    that are empty on their account."""
    found = facts["precision"]
    names = [str(row["class"]) for row in facts["table"]]
    each = [f"{name} {least:.4f}" for name, least in zip(names, found["least"], strict=True)]
    if len(each) > SHOWN_CLASSES:
        order = sorted(range(len(each)), key=lambda i: float(found["least"][i]))
        each = [*(each[i] for i in order[:5]), "...", *(each[i] for i in order[-5:])]
    line = f"select: thresholds for a precision of {found['target']:g}: {', '.join(each)}"
    few = [name for name, own in zip(names, found["own"], strict=True) if not own]
    if few:
        line += (
            f"; at least that of all classes, {found['pooled']:.4f}, where validation images are "
        )
        line += f"too few or too often wrong: {_listed(few)}"
        if found["reached"] < found["target"]:
            line += f" (all classes only reach {found['reached']:.3f})"
    empty = [row["class"] for row in facts["table"] if row["rows"] and not row["eligible"]]
    if empty:
        line += f"; NO rows are left of {_listed(empty)}"
    return line


def _listed(names: list[str]) -> str:
    """Names in a line; of many, the first."""
    more = len(names) - SHOWN_CLASSES
    return ", ".join(names[:SHOWN_CLASSES]) + (f" and {more:,} more" if more > 0 else "")
