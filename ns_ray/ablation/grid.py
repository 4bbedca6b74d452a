"""Grids of an ablation: named lists of settings to compare, as YAML files in `ablations/`.

    title: ...
    paper: what the paper's numbers are, and where they stand
    columns: [names of the paper's columns]
    set: [settings of all arms]
    arms:
      - {name: ..., set: [train.epochs=10], paper: [a number per column]}

Settings are written as after `--set`. Knows nothing about torch or ray.
"""

import re
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ns_ray.config import AcceptConfig, RunConfig, Settings, read_yaml, validate
from ns_ray.errors import ConfigError, nearest


class Arm(Settings):
    """One line of the table."""

    name: str
    """What is different."""
    set: tuple[str, ...] = ()
    """Settings on top of those of the recipe and the grid."""
    students: int = Field(default=1, ge=1)
    """Generations after the first teacher: the recipe's first student, so many times."""
    last: tuple[str, ...] = ()
    """Settings of the last student on top, such as train.epochs=10."""
    row: Literal["student", "teacher", "control"] = "student"
    """Which model of the run is scored: the last student, the first teacher, or the control arm."""
    paper: tuple[float | str | None, ...] = ()
    """The paper's numbers, one for each of the grid's columns."""


class Grid(Settings):
    """Arms that are compared with the first of them."""

    title: str
    """What is compared."""
    paper: str
    """What the paper's numbers are, and where they stand."""
    columns: tuple[str, ...] = ()
    """Names of the paper's columns."""
    set: tuple[str, ...] = ()
    """Settings of all arms."""
    arms: tuple[Arm, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _a_table(self) -> "Grid":
        slugs = [slug(arm.name) for arm in self.arms]
        for arm in self.arms:
            if slugs.count(slug(arm.name)) > 1:
                raise ValueError(f"two arms are named like {arm.name!r}")
            if arm.paper and len(arm.paper) != len(self.columns):
                raise ValueError(
                    f"arm {arm.name!r} has {len(arm.paper)} numbers of the paper for "
                    f"{len(self.columns)} columns"
                )
        return self


def slug(name: str) -> str:
    """A name as a part of file names."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


def grid_names() -> list[str]:
    """Names of the grids inside the package."""
    folder = resources.files("ns_ray.ablation") / "grids"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir())


def load_grid(name: str) -> tuple[str, Grid]:
    """A grid of the package, or of a YAML file, and its name.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"ablation {name}: {error}") from None
        origin, name = name, Path(name).stem
    elif name in grid_names():
        text = (resources.files("ns_ray.ablation") / "grids" / f"{name}.yaml").read_text()
        origin = f"ablation {name}"
    else:
        raise ConfigError(
            f"ablation {name!r} does not exist{nearest(name, grid_names())}; give a YAML file, or "
            f"one of: {', '.join(grid_names())}"
        )
    raw = read_yaml(text, origin)
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin} must be a mapping, not {type(raw).__name__}")
    return slug(name), validate(Grid, raw, origin=origin)


def arm_config(
    load: Callable[[list[str]], RunConfig], name: str, grid: Grid, arm: Arm, seed: int
) -> RunConfig:
    """The run of an arm.

    Args:
        load: reads the recipe with some settings on top.
        name: of the grid.
        grid, arm: what is compared.
        seed: of the run.

    Raises:
        ConfigError: a setting of the arm is wrong.
    """
    run = f"{name}-{slug(arm.name)}-{seed}"
    settings = [*_settings(grid, arm), f"seed={seed}", f"name={run}"]
    try:
        config = load(settings)
        last = load([*settings, *(f"students.0.{setting}" for setting in arm.last)])
    except ConfigError as error:
        raise ConfigError(f"ablation {name}, arm {arm.name!r}: {error}") from None
    # A student teaches whether it is better or not: what is compared must not depend on a gate.
    students = config.students[:1] * (arm.students - 1) + last.students[:1]
    return config.model_copy(update={"students": students, "accept": AcceptConfig(max_p=1.0)})


def _settings(grid: Grid, arm: Arm) -> Iterable[str]:
    return [*grid.set, *arm.set, *(["control=true"] if arm.row == "control" else [])]
