"""What stands in a source for the class of an image, as the name of that class."""

import ast
import datetime
import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from ns_ray.errors import DataError

LABEL_COLUMNS = ("label", "class")
PLURAL = "labels"
"""A column that is taken where nothing else says the labels and it holds whole numbers: others may
name several classes of an image."""

NOT_LABELED = frozenset(
    {"-1", "_unlabeled", "unlabeled", "unlabelled", "unknown", "undefined"}
    | {"nan", "nat", "none", "null", "na", "n/a", "#n/a", "<na>", "?"}
)
"""What people write for "no label", in lower case. It may be a class all the same."""

UNSEEN = "\0\ufeff\u200b\u200c\u200d\u2060"
"""Characters that nobody sees around a name: what pads texts of one length, and a byte-order mark
or a joiner that came along."""

BETWEEN = ("|", ";", ",")
"""What people put between the classes of an image that has several."""


def column_named(table_names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted columns that there is, in any case; spelled so, if there is one."""
    by_lower = {name.strip().lower(): name for name in reversed(table_names)}
    by_lower |= {name: name for name in table_names}
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
    known: dict[str | int, str | None] = {}  # of text and numbers there are few
    for row, value in enumerate(values, 1):
        plain = type(value) in (str, int)
        if plain and value in known:
            found.append(known[value])
            continue
        try:
            found.append(label_of(value, names))
        except ValueError as error:
            raise DataError(f"{where} holds {short(value)} in row {row:,}: {error}") from None
        if plain:
            known[value] = found[-1]
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
        return _named(value or "")
    if isinstance(value, dict | list | tuple):
        raise ValueError("an image has one class here, which is a name or a whole number")
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        raise ValueError("a class is a name or a whole number; a date that is one must be text")
    if isinstance(value, float | Decimal):
        if math.isnan(value):
            return None
        if not math.isfinite(value) or value != int(value):
            raise ValueError("a class is a name or a whole number")
        value = int(value)
    if names and isinstance(value, int):
        if value >= len(names):
            raise ValueError(f"there are {len(names)} class names, counted from 0")
        return names[value] if value >= 0 else None
    return _named(str(value))


def _named(text: str) -> str | None:
    name = text.strip().strip(UNSEEN).strip()
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise ValueError("a class is a name on one line")
    if name[:1] + name[-1:] in ("[]", "{}", "()") and _is_several(name):
        raise ValueError("an image has one class here, which is a name or a whole number")
    return name or None


def _is_several(text: str) -> bool:
    """Whether a text is how Python, JSON or NumPy write a list or a dictionary."""
    if re.fullmatch(r"\[[-+.\d\s]*\]", text):
        return True
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(value, list | tuple | dict | set)


def check_joined(classes: Sequence[str], where: str) -> None:
    """
    Raises:
        DataError: the name of one class is several others, such as `cat|dog`.
    """
    known = {*classes}
    for name in classes:
        for sign in BETWEEN:
            parts = [part.strip() for part in name.split(sign)]
            if len(parts) > 1 and known.issuperset(parts):
                raise DataError(
                    f"{where} has the label {name!r}, whose parts are classes too: an image has "
                    f"one class here; write the name of a class of its own without {sign!r}"
                )


def suspects(classes: Sequence[str]) -> list[str]:
    """What a person should know about the names of classes: those that say they are none, and those
    that differ in how they are written only: upper and lower case, blanks and the like, accents,
    leading zeros."""
    said = []
    if none := [repr(name) for name in classes if not name.strip() or name.lower() in NOT_LABELED]:
        said.append(f"{', '.join(none)} is a class here; an empty label stands for none")
    if several := [repr(name) for name in classes if {"|", ";"} & {*name}]:
        more = f" and {len(several) - 3:,} more" if len(several) > 3 else ""
        said.append(f"{', '.join(several[:3])}{more}: one class each, not several")
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(_plain(name), []).append(name)
    written = [some for some in alike.values() if len(some) > 1]
    for some in written[:3]:
        seen = {unicodedata.normalize("NFC", name) for name in some}
        write = repr if len(seen) == len(some) else ascii
        said.append(f"{' and '.join(map(write, some))} are {_number(len(some))} classes")
    if len(written) > 3:
        said.append(f"so are {len(written) - 3:,} more groups of classes that are written alike")
    return said


def _number(count: int) -> str:
    return "two" if count == 2 else str(count)


def _plain(name: str) -> str:
    """What names have in common that a person takes for one: `Red-fox`, `red  fox `, `red_fox`."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"(?<=\d)\.0*$", "", text))
    return re.sub(r"(?<=\w)[\s_.-]+", " ", text).strip().strip(UNSEEN)


def short(value: Any) -> str:
    """A value as Python writes it, not too long for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
