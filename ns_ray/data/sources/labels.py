"""What stands in a source for the class of an image, as the name of that class."""

import math
from collections.abc import Sequence
from typing import Any

from ns_ray.errors import DataError

LABEL_COLUMNS = ("label", "class")

NOT_LABELED = frozenset({"-1", "_unlabeled", "unlabeled", "unlabelled", "nan", "none", "null"})
"""What people write for "no label", in lower case. It may be a class all the same."""


def column_named(table_names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted columns that there is, in any case."""
    by_lower = {name.strip().lower(): name for name in reversed(table_names)}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def labels_of(values: Sequence[Any], names: Sequence[str], where: str) -> list[str | None]:
    """Class names of a column's values.

    Args:
        values: of a table's column, one per image.
        names: of Hugging Face's ClassLabel, whose values are indices of these.
        where: the table and its column, for the message.

    Raises:
        DataError: one is no single class.
    """
    found: list[str | None] = []
    for row, value in enumerate(values, 1):
        try:
            found.append(label_of(value, names))
        except ValueError as error:
            raise DataError(f"{where} holds {_short(value)} in row {row:,}: {error}") from None
    return found


def label_of(value: Any, names: Sequence[str] = ()) -> str | None:
    """The class that a value names; None where it names none: empty, blank, NaN, and the -1 of
    Hugging Face's ClassLabel.

    Raises:
        ValueError: it is no single class.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    if isinstance(value, dict | list | tuple):
        raise ValueError("an image has one class here, which is a name or a whole number")
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            raise ValueError("a class is a name or a whole number")
        value = int(value)
    if names and isinstance(value, int):
        if value >= len(names):
            raise ValueError(f"there are {len(names)} class names, counted from 0")
        return names[value] if value >= 0 else None
    return str(value).strip() or None


def suspects(classes: Sequence[str]) -> list[str]:
    """What a person should know about the names of classes: those that say they are none, and those
    that differ in upper and lower case only."""
    said = []
    if none := [repr(name) for name in classes if name.lower() in NOT_LABELED]:
        said.append(f"{', '.join(none)} is a class here; an empty label stands for none")
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(name.casefold(), []).append(name)
    said += [f"{' and '.join(map(repr, n))} are two classes" for n in alike.values() if len(n) > 1]
    return said


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
