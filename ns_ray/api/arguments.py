"""Arguments of Python, as the plain values that settings are made of."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ns_ray.errors import ConfigError


def plain(value: Any) -> Any:
    """Paths in settings as text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def section(settings: Mapping[str, Any], name: str, example: str) -> dict[str, Any]:
    """A section of settings, empty where it is not given.

    Raises:
        ConfigError: it is none.
    """
    given = settings.get(name, {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name}={given!r}: give settings, such as {name}={example}")
    return dict(given)


def not_twice(settings: Mapping[str, Any], arguments: Mapping[str, str], prefix: str = "") -> None:
    """Fail where settings say what an argument says, too.

    Args:
        settings: of a section, or of all of them.
        arguments: by the settings that they stand for.
        prefix: of the section.

    Raises:
        ConfigError: names both.
    """
    for key, argument in arguments.items():
        if key in settings:
            raise ConfigError(
                f"{prefix}{key} is given twice: in settings, and by the argument {argument}"
            )


def places(given: Any, name: str) -> list[str]:
    """A path, or several, as texts.

    Raises:
        ConfigError: there are none, or they are something else.
    """
    some = list(given) if isinstance(given, list | tuple | Iterator) else [given]
    odd = [one for one in some if not isinstance(one, str | os.PathLike)]
    if odd:
        raise ConfigError(f"{name}: {type(odd[0]).__name__} is no path; give one or several")
    if not some:
        raise ConfigError(f"{name} is an empty list; give a path, or several")
    return [os.fspath(one) for one in some]


def models(given: Any, name: str) -> list[dict[str, Any]]:
    """Settings of a model, or of several.

    Raises:
        ConfigError: one is something else.
    """
    return [model(one, name) for one in (given if isinstance(given, list | tuple) else [given])]


def model(given: Any, name: str) -> dict[str, Any]:
    """Settings of a model, from its name, the path of its bundle, or settings.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str):
        return {"model": given}
    if isinstance(given, os.PathLike):
        return {"bundle": os.fspath(given)}
    raise ConfigError(
        f"{name}: {type(given).__name__} is no model; give a name of timm, the Path of a bundle, "
        "or settings, such as {'model': 'efficientnet_b0', 'image_size': 192}"
    )
