"""Before a run: `ns-ray check` and `ns-ray plan`; while and after it: `ns-ray status`."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import MODEL, flat_folder, folder_per_class, settings
from typer.testing import CliRunner, Result

from ns_ray.commands import app
from ns_ray.compute.resources import Machine
from ns_ray.config.run import RunConfig
from ns_ray.config.training import ModelConfig
from ns_ray.config.validation import validate
from ns_ray.data.packing import pack
from ns_ray.model.bundle import save
from ns_ray.model.networks import build
from ns_ray.planning import estimates, plan
from ns_ray.planning.costs import Counts
from ns_ray.planning.plan import Plan, make_plan
from ns_ray.planning.status import run_status

Ask = Callable[..., Result]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    folder_per_class(folder / "labeled", 20)
    flat_folder(folder / "pile", 50, start=500)
    return folder


@pytest.fixture
def ask(images: Path, tmp_path: Path) -> Ask:
    """Runs a verb on a config with changes."""

    def run(verb: str, *arguments: str, **changes: Any) -> Result:
        plain = settings(
            {
                "storage": str(tmp_path / "runs"),
                "data.labeled": str(images / "labeled"),
                "data.unlabeled": [str(images / "pile")],
                **{name.replace("__", "."): value for name, value in changes.items()},
            }
        )
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(plain))
        return CliRunner().invoke(app, [verb, "--config", str(path), *arguments])

    return run


# --------------------------------------------------------------------------------------- check


def test_models_are_tried_as_a_run_would_make_them(ask: Ask, tmp_path: Path) -> None:
    made = build(ModelConfig.model_validate(MODEL), 3)
    teacher = str(tmp_path / "teacher")
    save(made, teacher, classes=["a", "b", "c"], fingerprint="f", provenance={})
    fixres = {"image_size": 64, "lr": 0.1, "epochs": 1, "trained_groups": 2}
    student = {**MODEL, "fixres": fixres}
    changes = {"train__grad_checkpointing": True, "students": [student]}
    result = ask("check", teacher={"bundle": teacher}, **changes)
    assert result.exit_code == 0, result.output
    assert "/teacher, 3 classes" in " ".join(result.output.split())


def test_a_good_config_can_start(ask: Ask, tmp_path: Path) -> None:
    result = ask("check")
    assert result.exit_code == 0, result.output
    assert "a run can start" in result.output
    assert "30 images in 3 classes; 20 tried, all can be read" in result.output
    assert "50 images; 20 tried" in result.output
    assert "test_resnet, 0.4 M parameters" in result.output
    assert "all can be read: PNG, " in result.output
    assert "of pseudo-labels, besides models" in result.output
    assert "uneven" not in result.output
    assert not list((tmp_path / "runs").iterdir())  # the file that was tried is gone


def test_uneven_classes_and_a_disk_without_room_are_noted(
    ask: Ask, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uneven = shutil.copytree(images / "labeled", tmp_path / "uneven")
    for path in sorted((uneven / "red").iterdir())[1:]:
        path.unlink()
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    result = ask("check", data__labeled=str(uneven), data__validation=str(images / "labeled"))
    shown = " ".join(result.output.split())
    assert result.exit_code == 0, shown
    assert "'red' 1; top-1 hides how the small ones fare" in shown
    assert re.search(r"room note .* MB of images and .*; 0\.0 MB are free", shown)


def test_a_batch_that_is_chosen_can_be_shared(ask: Ask) -> None:
    assert ask("check", train={"accumulate": 3}).exit_code == 0
    refused = ask("check", train={"accumulate": 3, "batch_size": 64})
    assert refused.exit_code == 2
    assert "make it a multiple of 3" in " ".join(refused.output.split())


def test_packed_corpora_are_tried_too(ask: Ask, images: Path, tmp_path: Path) -> None:
    labeled = pack(str(images / "labeled"), out=str(tmp_path / "labeled"), rows_per_shard=50)
    pile = pack(str(images / "pile"), out=str(tmp_path / "pile"), rows_per_shard=30)
    result = ask("check", data__labeled=labeled.path, data__unlabeled=[pile.path])
    assert result.exit_code == 0, result.output
    assert "30 images in 3 classes; 20 tried, all can be read" in result.output
    assert "50 images; 20 tried, all can be read" in result.output


def test_everything_that_is_wrong_is_said_at_once(ask: Ask, images: Path, tmp_path: Path) -> None:
    broken = folder_per_class(tmp_path / "broken", 10)
    for path in broken.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "file").write_text("not a folder")
    result = ask(
        "check",
        data__validation=str(broken),
        teacher={"model": "resnet19"},
        students=[{**MODEL, "fixres": {"image_size": 64, "lr": 0.1, "trained_groups": 2}}],
        resources__num_workers=999,
        storage=str(tmp_path / "file"),
    )
    assert result.exit_code == 3  # the first that failed: data
    for part in (
        "20 of 20 images tried cannot be read",
        "truncated",
        "'resnet19' is not known to timm",
        "resources.num_workers=999",
        "storage=",
        "5 of 12 failed",
    ):
        assert part in " ".join(result.output.split()), result.output
    assert "Traceback" not in result.output


LARGE, SMALL = ({**MODEL, "model_args": {"channels": c}} for c in ([64, 64, 64, 96], [8, 8, 8, 16]))


def test_a_smaller_student_is_noted_and_can_start(ask: Ask) -> None:
    result = ask("check", students=[LARGE, MODEL, MODEL])
    assert result.exit_code == 0, result.output
    shown = " ".join(result.output.split())
    assert "note students.1 is smaller than students.0: 373,658 parameters, 548,666 there" in shown
    assert shown.count("is smaller than") == 1
    assert "a run can start" in shown
    assert "is smaller" not in ask("check", students=[MODEL, LARGE]).output


def test_a_student_smaller_than_a_given_teacher_is_noted(ask: Ask, tmp_path: Path) -> None:
    teacher = str(tmp_path / "teacher")
    made = build(ModelConfig.model_validate(MODEL), 3)
    save(made, teacher, classes=["a", "b", "c"], fingerprint="f", provenance={})
    given = {"teacher": {"bundle": teacher}}
    assert "is smaller" not in ask("check", **given).output  # the same model with as many classes
    shown = " ".join(ask("check", students=[SMALL], **given).output.split())
    assert "students.0 is smaller than teacher" in shown
    for file in ("ns_ray.json", "_DONE.json"):  # somebody else's, which says no number
        (tmp_path / "teacher" / file).unlink()
    assert "students.0 is smaller" in " ".join(
        ask("check", students=[SMALL], **given).output.split()
    )


# ---------------------------------------------------------------------------------------- plan


def test_a_plan_counts_what_a_run_will_do(ask: Ask) -> None:
    result = ask("plan")
    assert result.exit_code == 0, result.output
    rows = {" ".join(line.split()[:2]): line for line in result.output.splitlines() if line.strip()}
    # 30 images for 4 epochs in batches of 10, and as many pseudo-labeled ones.
    assert {"120", "12"} <= {*rows["gen-00 train"].split()}
    assert {"240", "12", "20"} <= {*rows["gen-01 train"].split()}
    assert "50" in rows["gen-01 label"].split()
    assert "30 labeled in 3 classes, 50 unlabeled, 30 for validation" in result.output


GPU_NODE = Machine(cpus=16, gpus=8, local=True)


def planned(changes: dict[str, Any], machine: Machine = GPU_NODE) -> Plan:
    config = validate(RunConfig, settings({"data.labeled": "digits", **changes}))
    return make_plan(config, Counts(10, 1000, 5000, 100, 100), machine, measure=False)


def test_a_plan_follows_the_settings() -> None:
    fixres = {"image_size": 64, "lr": 0.1, "epochs": 1, "trained_groups": 2}
    found = planned(
        {
            "students": [{**MODEL, "fixres": fixres}],
            "train.accumulate": 2,
            "train.batch_size": 20,
            "train.unlabeled_ratio": 3,
            "control": True,
            "resources.num_workers": 2,
        }
    )
    stages = {stage.name: stage for stage in found.stages}
    student, fine = stages["gen-01 train"], stages["gen-01 train fixres"]
    assert (student.steps, student.images) == (200, 200 * 80)
    assert student.cost is not None
    assert student.cost.rows == 20  # 80 images, two workers, two passes
    assert (fine.steps, fine.images, fine.size) == (50, 1000, 64)
    assert stages["gen-01 validation"].size == 64
    assert stages["gen-01 label"].size == 32
    assert stages["control train"].images == 200 * 20
    assert found.workers.gpus == 1.0
    assert "2 workers, 2 GPUs" in plan.plan_lines(found)[1]
    assert not found.notes


def test_a_plan_counts_every_first_teacher() -> None:
    student = {"students": [MODEL, MODEL]}
    one = {stage.name: stage for stage in planned(student).stages}
    three = {stage.name: stage for stage in planned({**student, "label.teachers": 3}).stages}
    assert three.keys() - one.keys() == {"gen-00 train 2", "gen-00 train 3", "gen-00 average"}
    assert three["gen-00 train 3"].images == one["gen-00 train"].images
    assert three["gen-00 average"].images == 3 * one["gen-00 validation"].images
    assert three["gen-01 label"].images == 3 * one["gen-01 label"].images
    assert three["gen-02 label"].images == one["gen-02 label"].images


def test_a_plan_notes_a_student_that_is_smaller_than_its_teacher() -> None:
    (note,) = planned({"students": [SMALL]}).notes
    assert note.startswith("students.0 is smaller than teacher: 20,922 parameters")


def test_a_cluster_whose_gpus_are_elsewhere_is_planned_without_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As from the head of a cluster, or a laptop: nothing can be measured there."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = validate(RunConfig, settings({"data.labeled": "photos"}))
    counts = Counts(classes=3, labeled=100, unlabeled=1000, validation=0, test=0)
    made = make_plan(config, counts, Machine(cpus=32, gpus=4, local=False))
    assert {stage.rate for stage in made.stages} == {None}
    assert made.seconds is None
    assert any("the run's GPUs are not on this machine" in note for note in made.notes)


def test_a_machine_that_is_too_small_is_a_note_not_an_end() -> None:
    found = planned({"resources": {"num_workers": 2, "gpus_per_worker": 1}}, Machine(2, 0, True))
    assert "not on this machine: 2 training workers with 1 GPUs each" in found.notes[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "?"), (40, "40 s"), (720, "12 min"), (12_600, "3.5 h"), (1_728_000, "20 days")],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert estimates.duration(seconds) == words


# -------------------------------------------------------------------------------------- status


@pytest.mark.ray
@pytest.mark.slow
def test_status_follows_a_run(whole: Any, tmp_path: Path) -> None:
    """A whole run; the same without its result; killed in training; and never started."""
    plain = yaml.safe_load(whole.config.read_text())
    shutil.copytree(whole.root, tmp_path / "tiny")
    plain["storage"] = str(tmp_path)
    config = validate(RunConfig, plain)

    def states() -> dict[str, str]:
        return {row.name: row.state for row in run_status(config).lines}

    found = run_status(config)
    assert set(states().values()) == {"done"}
    assert found.verdict.startswith("finished: ")
    details = {row.name: row.detail for row in found.lines}
    assert details["unlabeled corpus"].startswith(f"{len(whole.good)} images")
    assert "parameters" in details["gen-01 train"]

    shown = CliRunner().invoke(app, ["status", "--config", str(whole.config)])
    assert shown.exit_code == 0
    for line in found.lines:
        assert re.search(rf"{line.name} +{line.state} ", shown.output), line.name

    (tmp_path / "tiny" / "result.json").unlink()
    shutil.rmtree(tmp_path / "tiny" / "gen-01" / "bundle")
    shutil.rmtree(tmp_path / "tiny" / "model")
    shutil.rmtree(tmp_path / "tiny" / "gen-01" / "evaluation" / "test")
    (tmp_path / "tiny" / "gen-01" / "pseudo_labels" / "_DONE.json").unlink()
    found = run_status(config)
    assert states()["gen-01 train"] == states()["gen-01 label"] == "in progress"
    assert states()["model"] == states()["gen-01 test"] == "missing"
    details = {row.name: row.detail for row in found.lines}
    assert "step" in details["gen-01 train"]
    assert " shards" in details["gen-01 label"]
    assert "last written" in found.verdict

    other = config.model_copy(update={"seed": 7})
    assert "made with other settings" in run_status(other).verdict
    new = config.model_copy(update={"name": "new"})
    assert {row.state for row in run_status(new).lines} == {"missing"}
    assert run_status(new).verdict.endswith("not started")
