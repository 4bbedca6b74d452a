"""Settings from YAML files and recipes, with `--set a.b=c` on top, and back to YAML.

Everything goes through the same validation. Knows nothing about torch or Ray.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from ns_ray.config.run import RunConfig
from ns_ray.config.validation import S, Settings, validate
from ns_ray.errors import ConfigError, nearest

EXPONENT = r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"
"""Numbers such as 1e-3, which YAML 1.1 reads as text."""

MOST_VALUES = 1_000_000
"""Values that the YAML of a file may stand for: with aliases, a few lines can be billions."""

RECORDED = ("config_hash", "versions", "chosen")
"""What the config.yaml in the folder of a run says beside its settings."""


def recipe_names() -> list[str]:
    """Names of the YAML recipes inside the package, such as digits or paper/efficientnet-b0."""
    return sorted(_recipes(resources.files("ns_ray.config") / "recipes"))


def _recipes(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _recipes(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")


def load_recipe(name: str, overrides: Iterable[str] = ()) -> RunConfig:
    """A recipe of the package, with `--set` overrides on top.

    Raises:
        ConfigError: no such recipe, or a bad override.
    """
    return parse(_recipe_text(name, "--recipe"), overrides, origin=f"recipe {name}")


def _recipe_text(name: str, setting: str) -> str:
    if name not in recipe_names():
        raise ConfigError(
            f"recipe {name!r} does not exist{nearest(name, recipe_names())}; "
            f"{setting} takes one of: {', '.join(recipe_names())}"
        )
    recipes = resources.files("ns_ray.config") / "recipes"
    return recipes.joinpath(*f"{name}.yaml".split("/")).read_text()


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """A user's YAML file, with `--set` overrides on top.

    Raises:
        ConfigError: the file is missing or not YAML, or a setting is wrong.
    """
    return parse(_text_of(path, "--config"), overrides, origin=str(path))


def _text_of(path: str | Path, setting: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{setting} {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{setting} {path} is not a text file; give a YAML file") from None


def load_either(config: str | None, recipe: str | None, overrides: list[str] | None) -> RunConfig:
    """A user's YAML file or a recipe of the package, whichever is given.

    Raises:
        ConfigError: none or both are, or as `load_config` and `load_recipe`.
    """
    if (config is None) == (recipe is None):
        raise ConfigError("give either --config or --recipe")
    if config is not None:
        return load_config(config, overrides or [])
    return load_recipe(str(recipe), overrides or [])


def configured(
    changes: Mapping[str, Any],
    *,
    config: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
) -> RunConfig:
    """Settings as plain values, on top of a user's YAML file or a recipe where one is given.

    Args:
        changes: nested settings; lists take the place of those of the file.
        config, recipe: as `load_config` and `load_recipe` take them; both may be None.

    Raises:
        ConfigError: both are given, or as `load_config` and `load_recipe`.
    """
    if config is not None and recipe is not None:
        raise ConfigError("give either config or recipe")
    raw: dict[str, Any] = {}
    origin = ""
    if config is not None:
        origin = os.fspath(config)
        raw = _values_of(_text_of(origin, "config"), origin)
    elif recipe is not None:
        origin = f"recipe {recipe}"
        raw = _values_of(_recipe_text(recipe, "recipe"), origin)
    return validate(RunConfig, _on_top(raw, changes), origin=origin)


def _on_top(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        inner = merged.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            value = _on_top(inner, value)
        merged[key] = value
    return merged


def parse(text: str, overrides: Iterable[str] = (), *, origin: str = "config") -> RunConfig:
    """YAML text and `a.b=c` overrides, through one validation. The text may be what a run wrote."""
    raw = _values_of(text, origin)
    for override in overrides:
        set_value(raw, override)
    return validate(RunConfig, raw, origin=origin)


def _values_of(text: str, origin: str) -> dict[str, Any]:
    raw = read_yaml(text, origin)
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin} must be a mapping of settings, not {type(raw).__name__}")
    return {key: value for key, value in raw.items() if key not in RECORDED}


def parse_sections(
    model: type[S], overrides: Iterable[str] | None, **given: Mapping[str, Any]
) -> S:
    """The settings of one command: sections of a run's, as a model that has them as fields.

    Args:
        model: the sections.
        overrides: `section.key=value`, on top of what is given.
        given: plain values of some sections, from options of the command.

    Raises:
        ConfigError: the command has no such section, or a setting is wrong.
    """
    raw: dict[str, Any] = {name: dict(values) for name, values in given.items()}
    for override in overrides or ():
        set_value(raw, override)
    return validate(model, raw, origin="--set")


def read_yaml(text: str | bytes, origin: str) -> Any:
    """Plain values of YAML, none of which is shared by several places: setting one leaves the
    others alone.

    Args:
        text: as `yaml.safe_load` takes it.
        origin: where it is from, for messages.

    Raises:
        ConfigError: it is not YAML, a key is no text, it contains itself, or its aliases stand for
            more than MOST_VALUES values.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _values(node, {})
        return _unshared(loader.construct_document(node))
    except RecursionError:
        raise ConfigError(f"{origin} is not valid YAML: it is nested too deeply") from None
    except Exception as error:  # of all kinds: what Python says of a date, a number, a key
        raise ConfigError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def _values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a part of a YAML file stands for, those counted again that aliases repeat.

    Args:
        node: the part.
        known: what was counted before; 0 for the parts around it.

    Raises:
        ValueError: they are too many, or endless.
    """
    if node not in known:
        known[node] = 0
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
        known[node] = 1 + sum(_values(part, known) for part in parts)
    elif not known[node]:
        raise ValueError("a value contains itself")
    if known[node] > MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")
    return known[node]


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"the key {odd[0]!r} must be text; put it in quotes")
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def set_value(raw: dict[str, Any], override: str) -> None:
    """Apply one `a.b.0.c=value` to nested settings; the value is YAML."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r} must look like train.epochs=20")
    value = read_yaml(text, f"--set {override!r}: the value")
    if isinstance(value, str) and re.fullmatch(EXPONENT, text.strip()):
        value = float(value)
    node: Any = raw
    *parents, last = path.split(".")
    for key in parents:
        if isinstance(node, list):
            node = node[_index(node, key, override)]
        else:
            if not isinstance(_mapping(node, override).get(key), dict | list):
                node[key] = {}
            node = node[key]
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        _mapping(node, override)[last] = value


def _mapping(node: Any, override: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ConfigError(f"--set {override!r}: {node!r} is a single value with nothing inside it")
    return node


def _index(items: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(
            f"--set {override!r}: {key!r} must be an index from 0 to {len(items) - 1}"
        )
    return int(key)


def dump(config: Settings) -> str:
    """Settings as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dump_chosen(chosen: Mapping[str, Mapping[str, Any]]) -> str:
    """What a run has left open and what was chosen, by model, as the end of its config.yaml."""
    return yaml.safe_dump({"chosen": dict(chosen)}, sort_keys=False, allow_unicode=True)


def chosen_in(text: bytes) -> dict[str, dict[str, Any]]:
    """What the config.yaml of a run says was chosen; nothing before its images were counted."""
    chosen = (recorded(text) or {}).get("chosen")
    whole = isinstance(chosen, dict) and all(isinstance(part, dict) for part in chosen.values())
    return dict(chosen) if chosen and whole else {}


def recorded(text: bytes) -> dict[str, Any] | None:
    """All that the config.yaml of a run says; None where it is damaged."""
    try:
        found = read_yaml(text, "config.yaml")
    except ConfigError:
        return None
    return found if isinstance(found, dict) else None


def in_words(values: Mapping[str, Any], prefix: str = "") -> str:
    """Nested settings on one line: `lr=0.001, noise.dropout=0.2`."""
    words = []
    for name, value in values.items():
        inner = isinstance(value, Mapping)
        words.append(
            in_words(value, f"{prefix}{name}.") if inner else f"{prefix}{name}={plain(value)}"
        )
    return ", ".join(words)


def plain(value: Any) -> str:
    """A value as YAML has it: null, 0.001, [0.3, 1.0]."""
    text: str = yaml.safe_dump(value, default_flow_style=True)
    return text.removesuffix("...\n").strip()


WITHOUT_EFFECT = ("storage", "resources", "prices", "trackers", "label.decode")
"""Settings that do not change what a run makes: they say where it is stored, what works, what that
costs, and who is told of it."""


def config_hash(config: Settings | Mapping[str, Any]) -> str:
    """Twelve hex digits that change with anything that changes the result of a run."""
    whole = dict(config.model_dump(mode="json") if isinstance(config, Settings) else config)
    plain = without_effect_left_out(whole)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def without_effect_left_out(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A plain config, but for the settings that change nothing."""
    return {
        key: without_effect_left_out(value, f"{prefix}{key}.")
        if isinstance(value, Mapping)
        else value
        for key, value in values.items()
        if f"{prefix}{key}" not in WITHOUT_EFFECT
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`a.b: old -> new` for every setting in which two plain configs differ."""
    found = []
    for key in sorted({*old, *new}):
        a, b, path = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{path}.")
        elif a != b:
            found.append(f"{path}: {a!r} -> {b!r}")
    return found
