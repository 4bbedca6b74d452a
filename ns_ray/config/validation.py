"""Base of all settings, and their validation: a mistake is one line that names the setting.

Knows nothing about which settings there are.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ns_ray.errors import ConfigError, nearest

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

SHOWN = 200
"""Characters of a wrong value that are shown."""

UNITS = {"h": 3600, "m": 60, "s": 1}
"""Seconds of what a duration is made of, in this order."""


def seconds_of(duration: str) -> float:
    """Seconds of a duration such as 90s, 30m, 1.5h or 1h30m.

    Raises:
        ValueError: it is none, or no time at all.
    """
    form = "".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in UNITS)
    found = re.fullmatch(form, duration)
    parts = found.groups(default="0") if found else ()
    seconds = sum(float(n) * unit for n, unit in zip(parts, UNITS.values(), strict=False))
    if not seconds:
        raise ValueError("a duration above zero looks like 90s, 30m, 2h or 1h30m")
    return seconds


def _duration(value: Any) -> Any:
    if value is not None:
        seconds_of(str(value))
    return value


Duration = Annotated[str, BeforeValidator(_duration)]
"""Kept as it is written; see `seconds_of`."""


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Settings)


def validate(model: type[S], raw: Mapping[str, Any], *, origin: str = "") -> S:
    """Build settings from plain values.

    Raises:
        ConfigError: names every wrong setting, its value, and the nearest known key.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        items = error.errors(include_url=False)
        # A list with a bad item is also reported as too short; the item says it better.
        blamed = [i for i in items if not any(_inside(j["loc"], i["loc"]) for j in items)]
        lines = [_explain(model, dict(item)) for item in blamed]
        raise ConfigError((f"{origin}: " if origin else "") + "; ".join(lines)) from None


def _inside(loc: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _explain(model: type[BaseModel], item: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        key = str(item["loc"][-1])
        known = _fields_at(model, item["loc"][:-1])
        return f"unknown setting {where!r}{nearest(key, known)}; known: {', '.join(known)}"
    if item["type"] == "missing":
        return f"setting {where!r} is missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    if not where or isinstance(item["input"], dict):
        return f"{where}: {message}" if where else message
    shown = repr(item["input"]).replace("\n", " ")[:SHOWN]
    return f"{where}={shown}: {message}"


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        if field is None:
            return []
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
        if not nested:
            return []
        current = nested[0]
    return list(current.model_fields)
