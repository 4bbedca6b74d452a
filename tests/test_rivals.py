"""The rivals of `benchmarks/rivals.py`: how long they train, what is counted, what is printed."""

import csv
import sys
from pathlib import Path

import pytest
import rival_arms
import rivals
from rivals import DELIVERED, Line, table
from tiny import flat_folder, folder_per_class, write_config

from ns_ray import compute
from ns_ray.config.loading import load_recipe
from ns_ray.config.training import TrainConfig
from ns_ray.itinerary import steps
from ns_ray.store.bundles import Bundle
from ns_ray.store.evaluations import Evaluation
from ns_ray.training.job import total_steps

TRAIN = TrainConfig(epochs=10, warmup_epochs=1, batch_size=20)


@pytest.mark.parametrize("rows", [7, 30, 1000])
@pytest.mark.parametrize("count", [1, 3, 129, 4000])
def test_a_training_lasts_as_many_steps_as_it_is_told(rows: int, count: int) -> None:
    made = rival_arms.lasting(TRAIN, count, rows)
    assert total_steps(made, rows) == count
    assert made.warmup_epochs / made.epochs == pytest.approx(0.1)


def test_images_are_counted_step_by_step_with_their_pseudo_labels() -> None:
    plan = steps(load_recipe("ablation-digits"))
    counted = [
        sum(rival_arms.seen(step, 30) for step in arm.trainings)
        for arm in (plan.teacher, plan.students[0])
    ]
    # 100 epochs of 30 images, all in a batch; 45 in batches of 10 with six times as many others.
    assert counted == [100 * 30, 135 * (10 + 60)]


def model(what: str, top1: float) -> rival_arms.Trained:
    bundle = Bundle("", (), "", "")
    return rival_arms.Trained(what, "", bundle, 1, Evaluation("", {"top1": top1}, (), (), 0.0))


def test_the_better_on_validation_is_taken_and_the_first_of_equals() -> None:
    assert rival_arms.chosen([model("1x", 0.5), model("2x", 0.8), model("4x", 0.8)]).what == "2x"


def line(seed: int, arm: str, test: float | None) -> Line:
    return Line(seed, arm, "2x", 1000, 1.0, 0.5, 0.1, test, 0.05 if test is not None else None)


def test_differences_are_paired_by_seed() -> None:
    lines = [line(0, DELIVERED, 0.8), line(1, DELIVERED, 0.9)]
    lines += [line(1, "rival", 0.88), line(0, "rival", 0.78)]
    _, _, ours, other = table(lines)
    assert ours == "| delivered | 2x | 1,000 | 50.00 ± 0.00 | 85.00 ± 7.07 | 5.00 ± 0.00 |  |"
    # 7 points apart from seed to seed, 2 points between the arms in both.
    assert other.endswith("| 83.00 ± 7.07 | 5.00 ± 0.00 | 2.00 ± 0.00 |")


def test_without_test_validation_is_compared() -> None:
    head, _, _, other = table([line(0, DELIVERED, None), line(0, "rival", None)])
    assert "ECE, validation" in head
    assert other.endswith("| 50.00 ± 0.00 | - | 10.00 ± 0.00 | 0.00 ± 0.00 |")


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_all_rivals_of_a_tiny_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Test images are left alone first, and what has been made is not made again."""
    config = write_config(
        tmp_path / "tiny.yaml",
        {
            "data.labeled": str(folder_per_class(tmp_path / "labeled", 20)),
            "data.unlabeled": [str(flat_folder(tmp_path / "pile", 60, start=500))],
            "data.test": str(folder_per_class(tmp_path / "test", 10, start=300)),
            "control": True,
            "resources.loaders": 0,
        },
    )
    out = tmp_path / "out"
    monkeypatch.setattr(rivals, "prepare", compute.prepare)
    monkeypatch.setattr(rivals, "cluster", compute.cluster)
    command = ["rivals.py", "--config", str(config), "--out", str(out), "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", [*command, "--no-test"])
    rivals.main()
    assert not list(out.rglob("evaluation/test"))
    bundles = {path: path.stat().st_mtime_ns for path in out.rglob("bundle/model.safetensors")}
    monkeypatch.setattr(sys, "argv", command)
    rivals.main()
    again = {path: path.stat().st_mtime_ns for path in out.rglob("bundle/model.safetensors")}
    assert again == bundles
    assert "| fixmatch | " in capsys.readouterr().out
    with (out / "rivals.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    asked = {*rivals.NAMES} - {"probe"}  # nothing is pretrained
    assert {*rows} == {DELIVERED, "first teacher", "student 1", "control arm", *asked}
    assert all(0.0 <= float(row["test_top1"]) <= 1.0 for row in rows.values())
    assert rows["teacher-all-labels"]["validation_top1"] == ""
    # 30 labeled images, four epochs in batches of ten; the student has as many others.
    images = {arm: int(row["images"]) for arm, row in rows.items()}
    assert images["first teacher"] == 120
    assert images["student 1"] == images[DELIVERED] == images["control-filled"] == 360
    assert images["fixmatch"] == 360
