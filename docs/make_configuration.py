"""Writes `config.schema.json` and `configuration.md` from the settings in `ns_ray.config.run`.

    python docs/make_configuration.py

The docstring of a field is its description; a test fails while the two files are out of date.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ns_ray.config import RunConfig, Settings
from ns_ray.serving import ServeConfig

FOLDER = Path(__file__).resolve().parent
SCHEMA = FOLDER / "config.schema.json"
PAGE = FOLDER / "configuration.md"

INTRO = """\
# Configuration

<!-- Written by docs/make_configuration.py from ns_ray/config: edit the docstrings there. -->

A run is one YAML file. Every setting below can be left out unless it is marked **required**, and
every one can be set on the command line, through the same checks:

```
python -m ns_ray.run --config run.yaml --set train.epochs=20 --set students.0.model=efficientnet_b1
```

An unknown key is an error that suggests the nearest known one. The resolved settings, defaults
included, are written to `config.yaml` in the folder of the run. Complete examples are the
[recipes](../ns_ray/config/recipes) of the package.

Editors that know YAML schemas complete and check the file when its first line is

```yaml
# yaml-language-server: $schema=docs/config.schema.json
```
"""


SERVER = """These are no part of a run: `ns-ray serve --set serve.top_k=3`, or `args` in
[serve/config.yaml](../serve/config.yaml). [Serving](serving.md) says more."""


def schema() -> dict[str, Any]:
    """JSON Schema of a run."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RunConfig.model_json_schema(),
        "title": "ns-ray run",
    }


def page() -> str:
    """The settings as a page for people."""
    whole = schema()
    definitions = whole["$defs"]
    sections = [INTRO, *section("A run", {**whole, "description": ""})]
    for name, place in places(RunConfig).items():
        sections += section(" and ".join(f"`{p}`" for p in place), definitions[name])
    server = {**ServeConfig.model_json_schema(), "description": SERVER}
    sections += section("A server", server)
    return "\n".join(sections).rstrip() + "\n"


def places(model: type[Settings], prefix: str = "") -> dict[str, list[str]]:
    """Settings class -> where in the file it is used, in reading order."""
    found: dict[str, list[str]] = {}
    for name, field in model.model_fields.items():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, Settings):
                many = inner is not field.annotation
                path = f"{prefix}{name}" + ("[]" if many else "")
                found.setdefault(inner.__name__, []).append(path)
                for key, value in places(inner, f"{path}.").items():
                    found.setdefault(key, []).extend(value)
    return found


def section(title: str, node: Mapping[str, Any]) -> Iterator[str]:
    """Heading, description and table of one settings class."""
    yield f"## {title}\n"
    if node.get("description"):
        yield f"{' '.join(node['description'].split())}\n"
    yield "| setting | value | default | meaning |"
    yield "|---|---|---|---|"
    required = node.get("required", [])
    for key, value in node["properties"].items():
        meaning = cell(value.get("description", ""))
        if key in required:
            default = "**required**"
        elif "$ref" in value:
            default = ""
        else:
            default = f"`{plain(value.get('default', {}))}`"
        yield f"| `{key}` | {cell(kind(value))} | {default} | {meaning or see(value)} |"
    yield ""


def kind(node: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "anyOf" in node:
        return " or ".join(kind(option) for option in node["anyOf"])
    if "const" in node:
        return f"`{plain(node['const'])}`"
    if "enum" in node:
        return " or ".join(f"`{plain(value)}`" for value in node["enum"])
    if "$ref" in node:
        return "settings"
    if node.get("type") == "array":
        if "prefixItems" in node:
            return f"list of {len(node['prefixItems'])} numbers"
        return f"list of {kind(node['items'])}"
    words = {"object": "mapping", "string": "text", "boolean": "true or false", "null": "null"}
    text = words.get(str(node.get("type")), str(node.get("type", "any value")))
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {node[key]:g}" for key, sign in signs.items() if key in node]
    return f"{text} {', '.join(limits)}" if limits else text


def see(node: Mapping[str, Any]) -> str:
    """Where nested settings are described."""
    return "See below." if "$ref" in str(node) else ""


def plain(value: Any) -> str:
    """A value as it is written in YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def cell(text: str) -> str:
    """Text for one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def rendered() -> dict[Path, str]:
    """File -> what it must hold."""
    return {
        SCHEMA: json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
        PAGE: page(),
    }


def main() -> None:
    """Write both files."""
    for path, text in rendered().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
