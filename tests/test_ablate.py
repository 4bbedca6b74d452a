"""Grids of runs: what they share, what a killed one does again, and their tables."""

import csv
import json
import re
import shutil
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import folder_per_class, settings, user_environment
from typer.testing import CliRunner

from ns_ray.ablation import table as tables
from ns_ray.ablation.drawing import plot
from ns_ray.ablation.grid import Grid, arm_config, grid_names, load_grid
from ns_ray.ablation.study import ablate
from ns_ray.ablation.table import Measured
from ns_ray.commands import app
from ns_ray.config.loading import config_hash, load_config, load_recipe
from ns_ray.config.run import RunConfig
from ns_ray.config.training import train_config
from ns_ray.errors import ConfigError, StageError

NAMED = {
    *("noise", "iterations", "teacher-size", "unlabeled-size", "soft-hard", "student-size"),
    *("balancing", "joint-vs-finetune", "batch-ratio", "init", "models", "mixing", "teachers"),
    *("thresholds", "rare-classes"),
}

GRID: dict[str, Any] = {
    "title": "soft or hard",
    "paper": "made up.",
    "columns": ["B0"],
    "arms": [
        {"name": "Soft targets", "set": ["select.targets=soft"], "paper": [78.1]},
        {"name": "hard", "set": ["select.targets=hard"], "paper": ["about 77"]},
        {"name": "none", "row": "teacher"},
    ],
}


# ------------------------------------------------------------------------------------------- grids


def recipe(more: list[str]) -> RunConfig:
    return load_recipe("ablation-digits", more)


def test_every_grid_is_there_and_each_of_its_arms_is_a_run_of_its_own() -> None:
    assert set(grid_names()) == NAMED
    for found in grid_names():
        name, grid = load_grid(found)
        configs = [arm_config(recipe, name, grid, arm, 3) for arm in grid.arms]
        assert {config.seed for config in configs} == {3}
        seen = [config.model_dump(exclude={"name"}) for config in configs]
        students = [(a.row, s) for a, s in zip(grid.arms, seen, strict=True)]
        assert all(students.count(one) == 1 for one in students), name


def test_arms_share_their_teacher_unless_it_is_what_they_compare() -> None:
    for found in set(grid_names()) - {"teacher-size", "models", "rare-classes"}:
        name, grid = load_grid(found)
        configs = [arm_config(recipe, name, grid, arm, 0) for arm in grid.arms]
        assert len({c.teacher.model_dump_json() + c.train.model_dump_json() for c in configs}) == 1


def test_the_students_of_an_arm_are_the_first_one_again() -> None:
    name, grid = load_grid("iterations")
    three = arm_config(recipe, name, grid, grid.arms[2], 0)
    assert three.students == recipe([]).students * 3
    assert three.accept.max_p == 1


def test_the_last_student_of_an_arm_has_the_paper_s_share_of_unlabeled_images() -> None:
    name, grid = load_grid("iterations")
    plain, doubled = (arm_config(recipe, name, grid, arm, 0) for arm in grid.arms[2:4])
    ratios = [train_config(doubled.train, s).unlabeled_ratio for s in doubled.students]
    assert [ratio / ratios[0] for ratio in ratios] == [14 / 14, 14 / 14, 28 / 14]
    assert doubled.students[:2] == plain.students[:2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"set": ["train.epoch=3"]}, r"arm 'Soft targets'.*did you mean 'epochs'"),
        (
            {"arms": [{"name": "a"}, {"name": "b", "last": ["epochs=3"]}]},
            r"arm 'b'.*students\.0\.epochs",
        ),
        ({"set": ["data.labels=1"]}, r"arm 'Soft targets'.*data\.labels=1"),
        ({"arms": [{"name": "a"}, {"name": "A!"}]}, "two arms are named like 'a'"),
        ({"arms": [{"name": "a", "paper": [1, 2]}, {"name": "b"}]}, "2 numbers .* 1 columns"),
        ({"arms": [{"name": "a"}]}, "at least 2"),
        ({"rows": 3}, "unknown setting 'rows'"),
    ],
)
def test_a_mistake_in_a_grid_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**GRID, **change}))
    with pytest.raises(ConfigError, match=says):
        ablate([str(file)], recipe, out=str(tmp_path), seeds=[0])


def test_an_unknown_grid_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'noize' does not exist.*did you mean 'noise'"):
        load_grid("noize")


# ------------------------------------------------------------------------------------------ tables


def measured(arm: str, seed: int, test: float) -> Measured:
    return Measured(arm, seed, "net", 10, 0.5, test, 0.4, 0.25, 100, 120)


RESULTS = [
    *(measured("Soft targets", seed, test) for seed, test in enumerate([0.80, 0.82, 0.84])),
    *(measured("hard", seed, test) for seed, test in enumerate([0.79, 0.80, 0.84])),
    *(measured("none", seed, 0.25) for seed in range(3)),
]


def test_the_table_has_mean_and_spread_differences_by_seed_and_the_paper_s_row() -> None:
    grid = Grid.model_validate(GRID)
    titles, rows = tables.cells(grid, RESULTS)
    assert titles[-2:] == ["against Soft targets", "paper: B0"]
    assert rows[0] == ["Soft targets", "3", "25.0 ± 0.0", "50.0 ± 0.0", "82.0 ± 2.0", "", "78.1"]
    error = statistics.stdev([-1, -2, 0]) / 3**0.5
    assert rows[1][4:] == ["81.0 ± 2.6", f"-1.0 ± {error:.1f}", "about 77"]
    assert rows[2][-1] == ""
    lines = tables.markdown("mine", grid, RESULTS).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert [cell.strip() for cell in table[2].split("|")[1:-1]] == rows[0]
    assert len({line.count("|") for line in table}) == 1
    assert lines[-1] == "Paper: made up."


def test_the_csv_has_every_single_result() -> None:
    rows = list(csv.DictReader(tables.as_csv(RESULTS).splitlines()))
    assert [(r["arm"], int(r["seed"]), float(r["test"])) for r in rows] == [
        (m.arm, m.seed, m.test) for m in RESULTS
    ]


def test_the_plot_names_every_arm() -> None:
    image = plot("mine", Grid.model_validate(GRID), RESULTS)
    assert ET.fromstring(image).tag.endswith("svg")
    for arm in GRID["arms"]:
        assert f">{arm['name']}</text>".encode() in image


# -------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run's config and a grid."""
    folder = tmp_path_factory.mktemp("ablate")
    folder_per_class(folder / "labeled", 20)
    folder_per_class(folder / "pile", 20, start=500)
    folder_per_class(folder / "test", 10, start=300)
    changes = {
        "data.labeled": str(folder / "labeled"),
        "data.unlabeled": [str(folder / "pile")],
        "data.test": str(folder / "test"),
        "train.epochs": 2,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings(changes)))
    (folder / "mine.yaml").write_text(yaml.safe_dump(GRID))
    return folder


def times(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def test_what_an_ablation_has_found_as_json(small: Path, tmp_path: Path) -> None:
    """Of runs that have all ended, so that nothing has to be done."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(GRID))
    file, config = str(tmp_path / "mine.yaml"), str(small / "run.yaml")
    name, grid = load_grid(file)
    for arm in grid.arms:
        made = arm_config(lambda more: load_config(config, more), name, grid, arm, 4)
        row = {"model": "net", "parameters": 10, "val_top1": 0.5, "test_top1": None, "role": "x"}
        row |= {"pseudo_labels": None, "accepted": True, "seconds": {}, "images_per_second": {}}
        generations = [{**row, "generation": 0}, {**row, "generation": 1, "val_top1": 0.75}]
        known: dict[str, Any] = {
            "name": made.name,
            "status": "done",
            "config_hash": config_hash(made),
        }
        known |= {"best_generation": 1, "generations": generations, "control": None}
        folder = tmp_path / "runs" / made.name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(known))
    command = ["ablate", file, "--config", config, "--out", str(tmp_path), "--seeds", "4"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["path"] == str(tmp_path)
    assert [one["name"] for one in found["grids"]] == ["mine"]
    results = found["grids"][0]["results"]
    assert [(r["arm"], r["seed"]) for r in results] == [(a["name"], 4) for a in GRID["arms"]]
    assert [r["validation"] for r in results] == [0.75, 0.75, 0.5]
    assert [r["test"] for r in results] == [None] * 3
    with (tmp_path / "mine.csv").open() as table:
        assert next(csv.DictReader(table)).keys() == results[0].keys()
    assert "soft or hard" in done.stderr  # the table for people


@pytest.mark.ray
@pytest.mark.slow
def test_an_ablation_shares_what_arms_have_in_common_and_goes_on_where_it_was(
    small: Path, ray_local: Any
) -> None:
    out = small / "out"
    command = [sys.executable, "-m", "ns_ray", "ablate", str(small / "mine.yaml")]
    command += ["--config", str(small / "run.yaml"), "--out", str(out), "--seeds", "4"]
    done = subprocess.run(command, env=user_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(r"^mine-hard-4: validation [01]\.\d+, test [01]\.\d+", done.stdout, re.M)
    assert "paper: B0" in done.stdout
    models = sorted(path.name for path in (out / "shared" / "models").iterdir())
    assert len(models) == 3, "a teacher and two students"
    assert len(list((out / "shared" / "labels").iterdir())) == 1
    first = (out / "mine.csv").read_text()
    assert len(first.splitlines()) == 4

    # A killed one, continued on a cluster: runs without a result, a student without its weights.
    before = times(out / "shared")
    hard = next(p for p in (out / "shared" / "models").iterdir() if is_student(p))
    shutil.rmtree(hard)
    for arm in ("soft-targets", "hard"):
        (out / "runs" / f"mine-{arm}-4" / "result.json").unlink()

    def load(more: list[str]) -> RunConfig:
        return load_config(small / "run.yaml", more)

    # Meanwhile the grid has got an arm that cannot work.
    sure = {"name": "sure", "set": ["select.threshold=1.0"]}
    arms = [*GRID["arms"], sure]
    (small / "mine.yaml").write_text(yaml.safe_dump({**GRID, "arms": arms}))
    with pytest.raises(StageError, match=r"1 of 4 runs failed.*mine-sure-4"):
        ablate([str(small / "mine.yaml")], load, out=str(out), seeds=[4], parallel=2)
    after = times(out / "shared")
    again = {path for path, at in after.items() if before.get(path) != at}
    assert {path.split("/")[0] for path in again} <= {"models"}
    assert {path.split("/")[1] for path in again} == {hard.name}
    assert (out / "mine.csv").read_text() == first


def is_student(folder: Path) -> bool:
    return '"role": "student"' in (folder / "bundle" / "ns_ray.json").read_text()
