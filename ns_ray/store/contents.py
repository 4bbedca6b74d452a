"""What our JSON files must hold, checked as they are read: a file that a wrong program has written
is told where it is read, and not wherever one of its values is used."""

import os
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from ns_ray.errors import DamagedFileError

T = TypeVar("T")

SHOWN = 60
"""Characters of a wrong value that are shown."""


def _inside(name: str) -> str:
    """A file of a folder: what lists files must not lead out of it, where they are removed."""
    if not name or "\0" in name or os.path.isabs(name) or ".." in name.split("/"):
        raise ValueError("must name a file in this folder")
    return name


def _place(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError("must be a path")
    return path


FileName = Annotated[str, AfterValidator(_inside)]
"""A file beside the one that names it, or below."""
Place = Annotated[str, AfterValidator(_place)]
"""A folder or URI."""
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def holding(kind: type[T], value: Any, path: str) -> T:
    """What a file says, as the type that says what it must hold; what it says besides is left out.

    Args:
        kind: a dataclass, or a type such as dict[str, int].
        value: plain values, as they come from JSON.
        path: of the file.

    Raises:
        DamagedFileError: it holds something else; names the first place and the value there.
    """
    try:
        found: T = _adapter(kind).validate_python(value)  # type: ignore[arg-type]
        return found
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in wrong["loc"])[:SHOWN]
        what = str(wrong["msg"]).removeprefix("Value error, ")
        shown = "" if wrong["type"] == "missing" else f" {repr(wrong['input'])[:SHOWN]}"
        raise DamagedFileError(path, f"{where or 'its content'}{shown}: {what}") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
