"""The itinerary, and that those who read it agree with what is done."""

from pathlib import Path
from typing import Any

import pytest
from test_selftrain import Fakes
from tiny import MODEL, settings

from ns_ray import store
from ns_ray.compute.resources import Machine
from ns_ray.config.labeling import AcceptConfig
from ns_ray.config.run import RunConfig
from ns_ray.config.validation import validate
from ns_ray.itinerary import steps
from ns_ray.planning.costs import Counts
from ns_ray.planning.plan import make_plan
from ns_ray.planning.status import run_status
from ns_ray.selftrain import self_train
from ns_ray.steps import Label, Pack, Publish, Robustness, Score, Step, Train, teachers
from ns_ray.store.layout import RunLayout

TUNED = {**MODEL, "finetune": {"lr": 0.01}}
FIXRES = {**MODEL, "fixres": {"image_size": 64, "lr": 0.1}}
AROUND = ("forecast", "ingest", "symmetric", "tell", "together", "open_bundle")
"""What the driver asks for besides the steps."""
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "test": {"data.test": "t", "students": [MODEL, MODEL]},
    "control": {"control": True, "data.test": "t"},
    "finetune": {"students": [MODEL, TUNED]},
    "finetune and control": {"students": [TUNED], "control": True},
    "fixres": {"students": [FIXRES], "control": True},
    "a teacher from elsewhere": {"teacher": {"bundle": "/theirs"}, "control": True},
    "teachers": {"label.teachers": 3, "students": [MODEL, MODEL]},
    "refit": {"refit": True, "data.test": "t", "students": [MODEL, TUNED]},
    "robustness": {"evaluate.robustness": {}, "data.test": "t"},
}


def config(folder: Path, changes: dict[str, Any]) -> RunConfig:
    plain = {"storage": str(folder), "data.labeled": "l", "label.teachers": 1, **changes}
    return validate(RunConfig, settings(plain))


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_the_driver_takes_the_steps_of_the_itinerary(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    asked = config(tmp_path, changes)
    fakes = Fakes([20, 25, 30, 35], has_test=asked.data.test is not None)
    self_train(asked, RunLayout.of(asked), fakes)

    def noted(step: Step) -> str:
        if isinstance(step, Robustness):
            return "test"  # the images
        return step.title if isinstance(step, Train | Score) else step.out

    expected = [noted(step) for step in steps(asked) if not isinstance(step, Pack | Publish)]
    done = [what for stage, what in fakes.calls if stage not in AROUND]
    assert done == expected


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_status_waits_for_the_steps_of_the_itinerary(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    asked = config(tmp_path, changes)
    assert [row.name for row in run_status(asked).lines] == [step.title for step in steps(asked)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("a teacher")])
def test_a_plan_prices_the_steps_of_the_itinerary(tmp_path: Path, name: str) -> None:
    asked = config(tmp_path, RUNS[name])
    found = make_plan(
        asked, Counts(10, 1000, 5000, 100, 100), Machine(16, 8, local=True), measure=False
    )
    priced = []
    for step in steps(asked):
        if isinstance(step, Train):
            priced += [part.title for part in step.parts]
        elif isinstance(step, Label | Score):
            priced.append(step.title)
    assert [stage.name for stage in found.stages] == priced
    assert any("damaged" in note for note in found.notes) == (name == "robustness")


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_step_has_its_own_name_and_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = list(steps(config(tmp_path, changes)))
    assert len({step.id for step in found}) == len(found)
    assert len({step.out for step in found}) == len(found)
    assert all(step.out.startswith(str(tmp_path)) for step in found)


def test_a_run_that_ended_early_has_fewer_steps(tmp_path: Path) -> None:
    other = {**MODEL, "model": "test_vit"}
    asked = config(tmp_path, {"students": [MODEL, other], "control": True})
    whole, ended = steps(asked), steps(asked, students=1)
    assert [arm.name for arm in whole.arms] == ["gen-00", "gen-01", "gen-02", "control"]
    assert [arm.name for arm in ended.arms] == ["gen-00", "gen-01", "control"]
    assert whole.arms[-1].model.model == "test_vit"
    assert ended.arms[-1].model.model == MODEL["model"]


def test_status_does_not_wait_for_what_an_ended_run_left_out(tmp_path: Path) -> None:
    asked = config(tmp_path, {"students": [MODEL, MODEL], "accept": {"otherwise": "stop"}})
    assert "gen-02 train" in [row.name for row in run_status(asked).lines]
    layout = RunLayout.of(asked)
    ended = self_train(asked, layout, Fakes([20, 15, 30], has_test=False)).result
    store.write_json(layout.result, ended)
    assert [row.name for row in run_status(asked).lines][-1] == "model"
    assert not [row for row in run_status(asked).lines if row.name.startswith("gen-02")]


@pytest.mark.parametrize(
    ("accepted", "otherwise", "expected"),
    [
        ([True, True, True], "keep_teacher", [0, 1, 2]),
        ([False, True, False], "keep_teacher", [0, 0, 2]),
        ([False, True, False], "continue", [0, 1, 2]),
        ([True, False], "stop", [0, 1]),
    ],
)
def test_who_taught_whom(accepted: list[bool], otherwise: str, expected: list[int]) -> None:
    assert teachers(accepted, validate(AcceptConfig, {"otherwise": otherwise})) == expected


def test_status_waits_for_no_student_that_a_refit_leaves_out(tmp_path: Path) -> None:
    changes = {"students": [MODEL, MODEL, MODEL], "refit": True, "accept": {"max_p": 0.5}}
    asked = config(tmp_path, changes)
    layout = RunLayout.of(asked)
    refused = self_train(asked, layout, Fakes([20, 15, 30, 35], has_test=False)).result
    store.write_json(layout.result, refused)
    again = [row.name for row in run_status(asked).lines if row.name.startswith("refit")]
    assert [name for name in again if name.endswith("train")] == [
        "refit gen-00 train",
        "refit gen-02 train",
        "refit gen-03 train",
    ]
