"""The best student made once more, with the validation images among the labeled ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_selftrain import Fakes, folder, run
from tiny import flat_folder, folder_per_class, write_config
from typer.testing import CliRunner

from ns_ray.commands import app
from ns_ray.compute.resources import Workers
from ns_ray.config.training import ModelConfig, TrainConfig
from ns_ray.data import pack, together
from ns_ray.model import Predictor
from ns_ray.report.accuracy import refit_rows
from ns_ray.report.facts import open_run
from ns_ray.report.page import tiles
from ns_ray.report.words import percent
from ns_ray.store import open_corpus
from ns_ray.training import fit

HERE = Workers(count=1, cpus=1, gpus=0, loaders=0, in_process=True)


def fitted(fakes: Fakes, title: str) -> dict[str, Any]:
    """What the training with this title was asked for."""
    titles = [what for stage, what in fakes.calls if stage == "fit"]
    return fakes.asked["fit"][titles.index(title)]


def test_the_whole_line_is_made_again_with_validation_images(tmp_path: Path) -> None:
    fakes = Fakes([20, 25, 30])
    settings = {"train": {"epochs": 30, "warmup_epochs": 3}, "label": {"teachers": 2}}
    result = run(tmp_path, fakes, refit=True, **settings)
    before = ["gen-00 train", "gen-00 train 2", "gen-01 train", "gen-02 train"]
    assert fakes.titles("fit") == [*before, *(f"refit {title}" for title in before)]
    for title in before:
        own, again = fitted(fakes, title), fitted(fakes, f"refit {title}")
        assert again["labeled"].rows == 60
        assert again["validation"] is None
        assert again["seed"] == own["seed"]
        # Three times the labels take as many more steps as their square root, in fewer passes.
        longer = again["step"].train
        assert longer.epochs * 60 == pytest.approx(own["step"].train.epochs * 20 * 3**0.5)
        assert longer.warmup_epochs / longer.epochs == pytest.approx(0.1)

    # The pile is labeled anew, by models of all labels, and thresholds are those of before.
    labelings, selections = fakes.asked["pseudo_label"], fakes.asked["select"]
    root = folder(tmp_path, "refit")
    assert labelings[2]["teacher"].path == f"{root}/gen-00/bundle"
    assert labelings[2]["others"][0].path == f"{root}/gen-00/teacher-02/bundle"
    assert labelings[3]["teacher"].path == f"{root}/gen-01/bundle"
    for own, again in zip(selections[:2], selections[2:], strict=True):
        assert again["evaluation"] == own["evaluation"]
        assert again["labeled_counts"] == (32, 28)
    taught = fitted(fakes, "refit gen-02 train")
    assert taught["pseudo"].path == f"{root}/gen-02/selection"
    assert taught["teacher"].path == f"{root}/gen-01/bundle"

    assert result["best_generation"] == 2
    assert result["refit"]["generations"] == [0, 1, 2]
    assert result["refit"]["labeled"] == 60
    assert result["refit"]["test_top1"] is not None
    assert result["refit"]["seconds"] == {"train": 49.4, "label": 9.1, "test": 1.0}
    assert result["best_bundle"] == f"{root}/gen-02/bundle"
    tests = [what for _, what in fakes.calls if what.endswith(" test")]
    assert tests == ["gen-00 test", "gen-01 test", "gen-02 test", "refit gen-02 test"]


def test_it_repeats_an_earlier_student_where_that_is_the_best(tmp_path: Path) -> None:
    fakes = Fakes([20, 32, 12])
    result = run(tmp_path, fakes, refit=True)
    assert result["best_generation"] == 1
    assert result["refit"]["generations"] == [0, 1]
    assert fakes.titles("fit")[-1] == "refit gen-01 train"


def test_it_leaves_out_a_student_that_was_refused(tmp_path: Path) -> None:
    fakes = Fakes([20, 15, 30])
    result = run(tmp_path, fakes, refit=True)
    assert result["refit"]["generations"] == [0, 2]
    assert fakes.titles("fit")[-2:] == ["refit gen-00 train", "refit gen-02 train"]
    assert fitted(fakes, "refit gen-02 train")["teacher"].path.endswith("refit/gen-00/bundle")


def test_a_teacher_from_elsewhere_stays_as_it_is(tmp_path: Path) -> None:
    fakes = Fakes([20, 30])
    run(tmp_path, fakes, refit=True, teacher={"bundle": "/theirs"})
    assert fakes.titles("fit") == ["gen-01 train", "refit gen-01 train"]
    assert fakes.asked["pseudo_label"][-1]["teacher"].path == "/theirs"


def test_it_takes_over_the_temperatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes([20, 25])
    plain, fitted_to = fakes.fit, {"gen-00 train": 0.9, "gen-01 train": 0.8}

    def warm(step: Any, **asked: Any) -> Any:
        temperature = step.temperature or fitted_to[step.title]
        asked["provenance"] = {**asked["provenance"], "temperature": temperature}
        return plain(step, **asked)

    monkeypatch.setattr(fakes, "fit", warm)
    run(tmp_path, fakes, refit=True)
    for title, temperature in fitted_to.items():
        assert fitted(fakes, title)["step"].temperature is None
        assert fitted(fakes, f"refit {title}")["step"].temperature == temperature


def test_without_a_student_nothing_is_trained_again(tmp_path: Path) -> None:
    fakes = Fakes([30, 12])
    result = run(tmp_path, fakes, refit=True)
    assert "refit" not in result
    assert fakes.titles("fit") == ["gen-00 train", "gen-01 train"]
    assert result["best_bundle"].endswith("gen-00/bundle")


def test_two_corpora_become_one(tmp_path: Path) -> None:
    names = ("first", "second")
    for i, name in enumerate(names):
        folder_per_class(tmp_path / name, 3, start=10 * i)
        pack(str(tmp_path / name), out=str(tmp_path / f"{name}.corpus"))
    first, second = (open_corpus(str(tmp_path / f"{name}.corpus")) for name in names)
    both = together(first, second, str(tmp_path / "both"))
    assert both.rows == first.rows + second.rows
    assert both.classes == first.classes
    images = {image for _, table in both.scan(["image"]) for image in table["image"].to_pylist()}
    assert len(images) == both.rows


@pytest.mark.slow
def test_a_given_temperature_divides_the_logits(tmp_path: Path) -> None:
    labeled = pack(str(folder_per_class(tmp_path / "images", 6)), out=str(tmp_path / "corpus"))
    probs = {}
    image = (tmp_path / "images" / "red" / "0000.png").read_bytes()
    for temperature in (None, 0.5):
        bundle = fit(
            ModelConfig(model="test_resnet", image_size=32),
            TrainConfig(epochs=2, batch_size=9, lr=0.01),
            labeled=labeled,
            temperature=temperature,
            seed=0,
            workers=HERE,
            checkpoints=str(tmp_path / f"{temperature}" / "checkpoints"),
            out=str(tmp_path / f"{temperature}" / "bundle"),
            title="student",
            provenance={},
        )
        assert bundle.provenance["temperature"] == (temperature or 1.0)
        (found,) = Predictor(bundle.path, device="cpu").predict([image])
        assert isinstance(found, np.ndarray)
        probs[temperature] = found
    sharper = probs[None] ** 2
    np.testing.assert_allclose(probs[0.5], sharper / sharper.sum(), rtol=1e-3)


@pytest.mark.slow
def test_a_run_delivers_it_and_says_so(tmp_path: Path, without_ray: None) -> None:
    folder_per_class(tmp_path / "labeled", 12)
    folder_per_class(tmp_path / "test", 10, start=300)
    flat_folder(tmp_path / "pile", 40, start=500)
    config = write_config(
        tmp_path / "tiny.yaml",
        {
            "storage": str(tmp_path / "runs"),
            "data.labeled": str(tmp_path / "labeled"),
            "data.unlabeled": [str(tmp_path / "pile")],
            "data.test": str(tmp_path / "test"),
            "data.validation_size": 0.25,
            "accept.max_p": 1.0,
            "refit": True,
            "resources.loaders": 0,
        },
    )
    run = ["run", "--config", str(config)]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.output
    (root,) = (tmp_path / "runs").iterdir()
    result = json.loads((root / "result.json").read_text())
    assert result["refit"]["labeled"] == 36
    assert "made once more with all 36 labels" in done.stdout
    name = f"gen-{result['best_generation']:02d}"
    delivered = (root / "model" / "model.safetensors").read_bytes()
    assert delivered == (root / "refit" / name / "bundle" / "model.safetensors").read_bytes()
    best = root / name / "bundle" / "model.safetensors"
    assert delivered != best.read_bytes()

    (row,) = refit_rows(open_run(str(root)))
    assert row["test"]["top1"] == result["refit"]["test_top1"]
    (said,) = [t["value"] for t in tiles(open_run(str(root))) if t["label"] == "calibration error"]
    assert said == percent(result["refit"]["scores"]["test"]["ece"])
    assert "On all 36 labels (delivered)" in (root / "report.html").read_text()

    status = CliRunner().invoke(app, ["status", "--config", str(config)])
    assert f"refit {name} train" in status.stdout
    assert "missing" not in status.stdout
    (root / "result.json").unlink()
    assert CliRunner().invoke(app, run).exit_code == 0
    again = json.loads((root / "result.json").read_text())
    assert again["refit"] == result["refit"]
