"""`ns-ray check` on what a pile hides: copies of held-out images, and images of no class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from broken_files import encoded
from packed import fill
from PIL import Image
from test_leaks import CHANGES, sources
from tiny import MODEL, flat_folder, folder_per_class, settings
from typer.testing import CliRunner

from ns_ray.commands import app
from ns_ray.config.training import ModelConfig
from ns_ray.data.images import encode_png
from ns_ray.model.bundle import save
from ns_ray.model.networks import build
from ns_ray.planning import pile


def check(folder: Path, changes: dict[str, Any]) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings({"storage": str(folder / "runs"), **changes})))
    result = CliRunner().invoke(app, ["check", "--config", str(path)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture
def leaking(tmp_path: Path) -> dict[str, Any]:
    """Settings of sources with copies of test and validation images; see test_leaks.py."""
    found = sources(tmp_path) | {"unlabeled": [str(tmp_path / "pile")]}
    return {f"data.{name}": value for name, value in found.items()}


def test_copies_of_held_out_images_are_found_before_a_run(
    leaking: dict[str, Any], tmp_path: Path
) -> None:
    said = check(tmp_path, leaking)
    assert "data.unlabeled note 6 of 36 tried are copies of 12 of 12 validation and test" in said
    assert "data.labeled note 1 of 13 tried are copies" in said
    whole = said.replace(" ", "")  # a long path is folded
    assert any(f"copies/{name}.jpg;arunleavesthemout" in whole for name in CHANGES)
    exact = check(tmp_path, leaking | {"data.leaks": "exact"})
    assert "data.unlabeled ok 0 of 36 tried are copies" in exact


def test_a_large_pile_is_sampled(
    leaking: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pile, "LOOKED_AT", 20)
    monkeypatch.setattr(pile, "HELD_OUT", 8)
    assert " of 20 tried are copies of 8 of 12 validation and test" in check(tmp_path, leaking)
    monkeypatch.setattr(pile, "BATCH", 3)
    monkeypatch.setattr(pile, "SECONDS", 0.0)
    assert " of 3 tried are copies of 6 of 12 validation and test" in check(tmp_path, leaking)


def test_a_part_of_a_named_set_is_no_copy_of_another(tmp_path: Path) -> None:
    said = check(tmp_path, {"data.labeled": "digits", "data.labels": 100})
    assert "data.labeled ok 0 of " in said


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    model = build(ModelConfig.model_validate(MODEL), 3)
    save(
        model, str(tmp_path / "t"), classes=["blue", "green", "red"], fingerprint="f", provenance={}
    )
    return str(tmp_path / "t")


def test_images_of_no_class_are_counted_before_a_run(bundle: str, tmp_path: Path) -> None:
    labeled = folder_per_class(tmp_path / "labeled", 30)
    mixed = flat_folder(tmp_path / "pile", 40, start=500)
    source = {"data.labeled": str(labeled), "data.unlabeled": [str(mixed)]}
    teacher = {"teacher": {"bundle": bundle}}
    pure = check(tmp_path, source | teacher)
    assert "foreign ok " in pure
    noise = np.random.default_rng(0)
    for i in range(40):
        pixels = noise.integers(0, 256, (32, 32, 3), np.uint8)
        (mixed / f"noise{i}.png").write_bytes(encode_png(pixels))
    said = check(tmp_path, source | teacher)
    assert "foreign note " in said
    assert "of 80 images of the pile look like none of the classes" in said
    assert "see select.max_foreign" in said
    started = {"teacher": {**MODEL, "pretrained": bundle}}  # the same weights, as a start
    assert "foreign note " in check(tmp_path, source | started)
    few = check(tmp_path, source | teacher | {"data.validation_size": 10})
    assert "not known: fewer than 20 validation images" in few
    assert "its weights are random now" in check(tmp_path, source)


def test_pictures_that_cannot_be_read_are_no_copies(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 30, "b": 30})
    Image.new("RGB", (40, 40)).save(tmp_path / "plain.png")
    flat = flat_folder(tmp_path / "pile", 30)
    (flat / "broken.png").write_bytes((tmp_path / "plain.png").read_bytes()[:40])
    (flat / "plain.jpg").write_bytes(encoded(Image.open(tmp_path / "plain.png"), quality=80))
    said = check(tmp_path, {"data.labeled": str(tmp_path / "train"), "data.unlabeled": [str(flat)]})
    assert "data.unlabeled ok 0 of 31 tried are copies of 30 of 30" in said
