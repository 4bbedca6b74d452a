"""The stages one by one, as `ns-ray VERB`, each on what the one before left."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import flat_folder, folder_per_class, write_config
from typer.testing import CliRunner

from ns_ray.commands import app
from ns_ray.store.bundles import open_bundle
from ns_ray.store.corpora import open_corpus
from ns_ray.store.labels import open_labels, open_selection

pytestmark = pytest.mark.ray

PILE = 60


def call(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def work(ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a teacher, and the pile as a packed corpus."""
    place = tmp_path_factory.mktemp("verbs")
    folder_per_class(place / "labeled", 20)
    folder_per_class(place / "test", 10, start=200)
    flat_folder(place / "pile", PILE, start=500)
    write_config(place / "run.yaml", {"data.labeled": str(place / "labeled")})
    call("train", "--config", place / "run.yaml", "--out", place / "teacher")
    call("pack", "--data", place / "pile", "--out", place / "packed", "--set", ROWS)
    return place


ROWS = "data.rows_per_shard=25"


def test_label_select_train_evaluate(work: Path, tmp_path: Path) -> None:
    labels, selection, student = (tmp_path / n for n in ("labels", "selection", "student"))
    text = call("label", "--bundle", work / "teacher", "--data", work / "pile", "--out", labels)
    assert f"{PILE} images labeled, 0 rejected" in text
    text = call(
        "select", "--labels", labels, "--out", selection, "--set", "select.threshold=0.0",
        "--set", "select.per_class=null",
    )  # fmt: skip
    assert f"{PILE} images" in text
    assert open_selection(str(selection)).kept == PILE
    again = CliRunner().invoke(
        app,
        ["select", "--labels", str(labels), "--out", str(selection), "--json",
         "--set", "select.threshold=0.0", "--set", "select.per_class=null"],
    )  # fmt: skip
    found = json.loads(again.stdout)
    assert (found["path"], found["kept"]) == (str(selection), PILE)
    assert sum(row["kept"] for row in found["table"]) == PILE
    call(
        "train", "--config", work / "run.yaml", "--selection", selection, "--out", student,
        "--set", "train.epochs=1",
    )  # fmt: skip
    text = call("evaluate", "--bundle", student, "--data", work / "test", "--out", tmp_path / "s")
    assert "on 30 images" in text
    scores = json.loads((tmp_path / "s" / "evaluation.json").read_text())
    assert 0.0 <= scores["top1"] <= 1.0


@pytest.mark.usefixtures("without_ray")
def test_a_student_alone_starts_from_its_teacher_and_is_fine_tuned(
    work: Path, tmp_path: Path
) -> None:
    teacher, labels, selection = (tmp_path / n for n in ("teacher", "labels", "selection"))
    shutil.copytree(work / "teacher", teacher)
    call("label", "--bundle", teacher, "--data", work / "packed", "--out", labels)
    call("select", "--labels", labels, "--out", selection, "--set", "select.threshold=0.0")
    train = [
        *("train", "--config", str(work / "run.yaml"), "--selection", str(selection)),
        *("--set", "train.epochs=1", "--set", "students.0.init=teacher"),
    ]
    call(*train, "--out", tmp_path / "one")
    found = open_bundle(str(tmp_path / "one")).provenance
    assert found["teacher"] == open_bundle(str(teacher)).fingerprint
    assert found["pseudo"] == open_selection(str(selection)).fingerprint

    call(*train, "--set", "students.0.finetune={lr: 0.01}", "--out", tmp_path / "two")
    tuned = open_bundle(str(tmp_path / "two")).provenance
    first = open_bundle(str(tmp_path / "two" / "work" / "gen-01" / "pretrained"))
    assert first.provenance["teacher"] == found["teacher"]
    assert first.provenance["pseudo"] == found["pseudo"]
    assert tuned["teacher"] == first.fingerprint
    assert "pseudo" not in tuned

    shutil.rmtree(teacher)
    refused = CliRunner().invoke(app, [*train, "--out", str(tmp_path / "three")])
    assert refused.exit_code == 2
    assert "students.0.init=teacher" in refused.output
    assert "students.0.init=scratch" in " ".join(refused.output.split())


def test_a_packed_corpus_is_labeled_and_scored_where_it_is(work: Path, tmp_path: Path) -> None:
    packed = open_corpus(str(work / "packed"))
    text = call("label", "--bundle", work / "teacher", "--data", packed.path, "--out", tmp_path)
    assert not any(line.startswith("pack ") for line in text.splitlines())
    labels = open_labels(str(tmp_path))
    assert labels.facts["corpus"] == packed.path
    assert set(labels.files) == {shard.name for shard in packed.shards}
    call("pack", "--data", work / "test", "--out", tmp_path / "test", "--set", ROWS)
    for source, out in ((work / "test", "folder"), (tmp_path / "test", "corpus")):
        call("evaluate", "--bundle", work / "teacher", "--data", source, "--out", tmp_path / out)
    one, other = (
        json.loads((tmp_path / out / "evaluation.json").read_text()) for out in ("folder", "corpus")
    )
    assert one["top1"] == other["top1"]
    assert not list((tmp_path / "corpus" / "corpus").glob("shard-*"))


def test_packing_a_corpus_makes_another_one(work: Path, tmp_path: Path) -> None:
    call("pack", "--data", work / "packed", "--out", tmp_path / "again", "--set", ROWS)
    again = open_corpus(str(tmp_path / "again"))
    assert again.path == str(tmp_path / "again")
    assert again.rows == PILE


def test_small_work_does_not_wait_for_ray(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("pack", "--data", work / "test", "--out", tmp_path / "test", "--set", ROWS)

    def started(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ns_ray.commands.one_stage.ray_running", started)
    monkeypatch.setattr("ns_ray.api.preparing.ray_running", started)
    labels, selection = tmp_path / "labels", tmp_path / "selection"
    call("label", "--bundle", work / "teacher", "--data", work / "packed", "--out", labels)
    call("select", "--labels", labels, "--out", selection, "--set", "select.threshold=0.0")
    data = ("--data", tmp_path / "test")
    call("evaluate", "--bundle", work / "teacher", *data, "--out", tmp_path / "scores")
    assert open_labels(str(labels)).rows == PILE
    assert (tmp_path / "scores" / "evaluation.json").exists()


def test_a_model_is_fetched_and_another_exported(work: Path, tmp_path: Path) -> None:
    lite = ("--model", "tf_efficientnet_lite0", "--pretrained", "efficientnet-lite")
    text = call("fetch", *lite, "--out", tmp_path / "lite0")
    assert "tf_efficientnet_lite0, 1,000 classes" in text
    text = call("export", "--bundle", work / "teacher", "--out", tmp_path / "model.onnx")
    assert "top-1 agrees on 100%" in text
    assert (tmp_path / "model.onnx").stat().st_size > 1_000_000
