"""The verdict of a run on the console: what it says plainly besides its table."""

from pathlib import Path

import pytest
from reported import WRONG, write_run

from ns_ray import store
from ns_ray.api.verdict import show
from ns_ray.store.layout import RunLayout


def shown(root: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    """What is printed of a run whose result has been changed."""
    layout = RunLayout(str(root))
    show({**store.read_json(layout.result), **changes}, layout)
    return capsys.readouterr().out.partition("best: generation")[2]


@pytest.fixture
def beaten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose control arm has all images right, and generation 2 all but two."""
    monkeypatch.setitem(WRONG, "control", 0)
    root = write_run(tmp_path)
    path = f"{root}/control/evaluation.json"
    paired = {"gen-00": {"p": 0.001}, "gen-02": {"p": 0.125}}
    store.write_json(path, {**store.read_json(path), "paired": paired})
    return root


def test_a_control_arm_that_is_ahead_is_named(
    beaten: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "labels alone did better: the control arm is ahead of the delivered model on test, "
    assert f"{line}1.0000 against 0.9500 (paired p = 0.125)" in shown(beaten, capsys)
    assert f"{line}1.0000 against 0.7000 (paired p = 0.001)" in shown(
        beaten, capsys, best_generation=0
    )
    # Not in what older programs wrote.
    assert "(paired p = unknown)" in shown(beaten, capsys, best_generation=1)


def test_without_test_images_validation_decides(
    beaten: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = store.read_json(f"{beaten}/result.json")
    rows = [{**row, "test_top1": None} for row in result["generations"]]
    control = {**result["control"], "test_top1": None, "val_top1": 0.99}
    said = shown(beaten, capsys, generations=rows, control=control)
    assert "on validation, 0.9900 against 0.9333" in said


def test_a_control_arm_that_is_behind_or_missing_is_not_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_run(tmp_path)
    assert "labels alone" not in shown(root, capsys)
    assert "labels alone" not in shown(root, capsys, control=None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"best_generation": 0}, "no student has helped: the first teacher beats them"),
        (
            {"best_generation": 0, "status": "no_student_accepted"},
            "no student was better than the first teacher (see accept.max_p), which is delivered",
        ),
    ],
)
def test_a_first_teacher_that_is_delivered_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    said: str | None,
) -> None:
    found = shown(write_run(tmp_path), capsys, **changes)
    assert said in found if said else "first teacher" not in found
