"""`ns-ray init`: from folders of images to a run.yaml that starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import folder_per_class
from typer.testing import CliRunner

from ns_ray.commands import app
from ns_ray.compute import Machine
from ns_ray.config.loading import load_config
from ns_ray.errors import ConfigError
from ns_ray.planning.proposal import Parts, model_for, parts_in, propose, run_name

TWO_CPUS = Machine(cpus=2, gpus=0, local=True)


def photos(folder: Path, count: int, side: int = 60) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As people have it: train with its classes, a pile, and a test set."""
    root = tmp_path_factory.mktemp("sets") / "my birds"
    folder_per_class(root / "train", 10)
    folder_per_class(root / "test", 2, start=50)
    photos(root / "pile", 7, side=16)
    return root


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["init", *(str(argument) for argument in arguments)])


@pytest.mark.slow
def test_a_folder_becomes_settings_with_their_reasons(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(birds, "--budget", "30m")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "run.yaml").read_text()
    assert text in done.output
    assert "plan of my-birds" in done.output
    assert "python -m ns_ray.run --config run.yaml" in done.output
    assert len(text.splitlines()) <= 15
    assert "3 classes, 8 images of each to train on" in text
    assert "# 7 images" in text
    assert "6 labeled images are held out to choose models; with so few, more labels" in text
    assert "# 6 images, scored once, at the end" in text
    made = load_config("run.yaml")
    assert made.name == "my-birds"
    assert made.budget == "30m"
    assert made.data.labeled == str(birds / "train")
    assert made.data.unlabeled == (str(birds / "pile"),)
    assert made.data.test == str(birds / "test")
    assert made.data.validation_size == 0.2
    assert (made.teacher.model, made.teacher.image_size) == ("test_resnet", 32)

    again = call(birds)
    assert again.exit_code == ConfigError.exit_code
    assert "run.yaml exists" in again.output
    assert (tmp_path / "run.yaml").read_text() == text


@pytest.mark.parametrize(("budget", "side"), [("1000h", 128), ("1s", 96)])
@pytest.mark.slow
def test_the_input_is_as_large_as_images_and_time_allow(
    birds: Path, tmp_path: Path, budget: str, side: int
) -> None:
    labeled = tmp_path / "train"
    for name in ("a", "b"):
        photos(labeled / name, 4, side=90)
    parts = Parts(str(labeled), unlabeled=str(birds / "pile"))
    text, plan = propose("run", parts, TWO_CPUS, budget)
    assert f"image_size: {side}}}" in text
    assert {stage.size for stage in plan.stages} == {side}


def test_parts_are_found_by_their_names(birds: Path, tmp_path: Path) -> None:
    found = parts_in(str(birds), Parts(""))
    assert found == Parts(f"{birds}/train", f"{birds}/pile", None, f"{birds}/test")
    mine = parts_in(str(birds), Parts("", unlabeled="elsewhere", validation="held"))
    assert (mine.unlabeled, mine.validation, mine.test) == ("elsewhere", "held", f"{birds}/test")
    classes = str(birds / "train")
    assert parts_in(classes, Parts("", unlabeled="p")) == Parts(classes, "p")
    with pytest.raises(ConfigError, match=r"Give --pile FOLDER, or put them into .*/unlabeled"):
        parts_in(classes, Parts(""))
    with pytest.raises(ConfigError, match="nowhere: there is no such file or folder"):
        parts_in("nowhere", Parts(""))
    (tmp_path / "mixed" / "jay").mkdir(parents=True)
    (tmp_path / "mixed" / "pile").mkdir()
    with pytest.raises(ConfigError, match=r"holds .*/mixed/pile, but no folder train"):
        parts_in(str(tmp_path / "mixed"), Parts(""))


def test_parts_may_be_archives(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for name in ("Train.zip", "pile.zip", "test.zip"):
        (tmp_path / name).touch()
    train, pile, test = (str(tmp_path / name) for name in ("Train.zip", "pile.zip", "test"))
    assert parts_in(str(tmp_path), Parts("")) == Parts(train, pile, None, test)


def test_the_model_fits_images_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "image_size: 32" in model_for(28, gpus=0).settings
    assert "image_size: 48" in model_for(40, gpus=1).settings
    assert "efficientnet_b0" in model_for(400, gpus=1).settings
    assert "pretrained: efficientnet-lite" in model_for(400, gpus=0).settings
    assert model_for(400, gpus=0).sides == (224, 160, 128, 96)
    assert model_for(60, gpus=0).sides == (96,)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert 'pretrained: "true"' in model_for(400, gpus=0).settings


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/a/birds/train", "birds"),
        ("/a/data/train/", "a"),
        ("/x/my birds (new)", "my-birds-new"),
        ("/train", "run"),
        ("/x/.hidden", "hidden"),
        ("/x/birds.zip", "birds"),
        ("/x/birds.zip/train", "birds"),
    ],
)
def test_a_run_is_named_after_its_folder(folder: str, name: str) -> None:
    assert run_name(folder) == name
