"""The published schema and the page of settings say what the program accepts."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from ns_ray.config.loading import load_recipe, recipe_names
from ns_ray.config.run import RunConfig
from ns_ray.config.validation import validate
from ns_ray.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
SMALLEST = {
    "name": "x",
    "data": {"labeled": "digits"},
    "teacher": {"model": "resnet18"},
    "students": [{"model": "resnet18"}],
}


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """`docs/make_configuration.py`, which is a script and not part of the package."""
    path = ROOT / "docs" / "make_configuration.py"
    spec = importlib.util.spec_from_file_location("make_configuration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads((ROOT / "docs" / "config.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_files_are_up_to_date(maker: ModuleType) -> None:
    stale = [
        path.name
        for path, text in maker.rendered().items()
        if not path.exists() or path.read_text() != text
    ]
    assert stale == [], "run `make schema`"


def test_every_setting_is_on_the_page() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    schema = RunConfig.model_json_schema()
    nodes = [schema, *schema["$defs"].values()]
    names = {name for node in nodes for name in node.get("properties", {})}
    assert {name for name in names if f"| `{name}` |" not in page} == set()


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_follow_the_schema(name: str, validator: Any) -> None:
    text = (ROOT / "ns_ray" / "config" / "recipes" / f"{name}.yaml").read_text()
    assert list(validator.iter_errors(yaml.safe_load(text))) == []
    assert list(validator.iter_errors(load_recipe(name).model_dump(mode="json"))) == []


def test_the_smallest_config_follows_the_schema(validator: Any) -> None:
    assert list(validator.iter_errors(SMALLEST)) == []
    assert validate(RunConfig, SMALLEST).name == SMALLEST["name"]


@pytest.mark.parametrize(
    "change",
    [
        {"nmae": "x"},
        {"name": ""},
        {"students": []},
        {"seed": -1},
        {"train": {"epochs": "many"}},
        {"select": {"threshold": 30}},
        {"accept": {"otherwise": "maybe"}},
    ],
)
def test_schema_and_program_refuse_the_same(change: dict[str, Any], validator: Any) -> None:
    config = {**SMALLEST, **change}
    assert not validator.is_valid(config)
    with pytest.raises(ConfigError):
        validate(RunConfig, config)
