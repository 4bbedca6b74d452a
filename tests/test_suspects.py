"""`ns-ray suspects`: labels that are probably wrong, found by models that have not seen them."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser
from tiny import COLORS, folder_per_class, png, write_config
from typer.testing import CliRunner

from ns_ray.commands import app
from ns_ray.config import ModelConfig
from ns_ray.data import folded, pack
from ns_ray.report import render
from ns_ray.review.confident import doubts
from ns_ray.training import out_of_fold


def test_a_label_is_suspect_where_another_class_is_as_likely_as_for_its_own_images() -> None:
    probs = np.array(
        [
            [0.9, 0.1, 0.0],
            [0.8, 0.1, 0.1],
            [0.1, 0.8, 0.1],  # labeled 0, and as much of class 1 as its own images
            [0.3, 0.5, 0.2],  # labeled 0, and not
            [0.1, 0.9, 0.0],
            [0.3, 0.6, 0.1],
            [0.7, 0.2, 0.1],  # labeled 1, and as much of class 0 as its own
            [0.2, 0.2, 0.6],
        ],
        np.float32,
    )
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    found = doubts(probs, labels)  # thresholds: 0.525, 0.567 and 0.6
    assert list(np.flatnonzero(found.suspect)) == [2, 6]
    assert list(found.ranked) == [2, 6]
    assert list(found.other[[2, 3, 6]]) == [1, 1, 0]
    np.testing.assert_allclose(found.margin[[2, 6]], [0.7, 0.5], atol=1e-6)


def test_a_label_as_likely_as_its_class_is_used_to_is_not_suspect() -> None:
    probs = np.array(
        [[0.42, 0.48, 0.1], [0.38, 0.3, 0.32], [0.2, 0.45, 0.35], [0.2, 0.45, 0.35]], np.float32
    )
    assert not doubts(probs, np.array([0, 0, 1, 1])).suspect.any()  # though 1 is likelier for one


def test_a_class_that_no_model_knows_makes_no_label_suspect() -> None:
    probs = np.array([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]])
    found = doubts(probs.astype(np.float32), np.array([0, 0, 1, 2]))
    assert not (found.other == 2).any()


def test_every_image_is_in_one_fold_and_in_all_others_sets(tmp_path: Path) -> None:
    folder_per_class(tmp_path / "labeled", 7)
    (tmp_path / "labeled" / "lone").mkdir()
    (tmp_path / "labeled" / "lone" / "one.png").write_bytes(png("red", 99))
    corpus = pack(str(tmp_path / "labeled"), out=str(tmp_path / "corpus"))
    keys = {key for _, t in corpus.scan(["key"]) for key in t["key"].to_pylist()}
    seen: list[str] = []
    for k in range(3):
        others, fold = folded(corpus, k, 3, str(tmp_path / f"fold-{k}"))
        assert others.classes == fold.classes == corpus.classes
        inside, outside = (
            {key for _, t in part.scan(["key"]) for key in t["key"].to_pylist()}
            for part in (fold, others)
        )
        assert inside | outside == keys
        assert not inside & outside
        assert sorted(fold.class_counts)[1:] in ([2, 2, 2], [3, 3, 3])
        seen += inside
    assert sorted(seen) == sorted(keys)


def flipped(folder: Path, count: int) -> set[str]:
    """Images of three colors, the first two of each in the folder of the next; their keys."""
    folder_per_class(folder, count)
    names = list(COLORS)
    moved = set()
    for i, name in enumerate(names):
        for n in (0, 1):
            to = f"{names[(i + 1) % 3]}/from-{name}-{n}.png"
            (folder / name / f"{n:04d}.png").rename(folder / to)
            moved.add(to)
    return moved


def test_features_of_pretrained_weights_tell_labels_of_images_they_were_not_fitted_to(
    tmp_path: Path,
) -> None:
    wrong = flipped(tmp_path / "labeled", 14)
    corpus = pack(str(tmp_path / "labeled"), out=str(tmp_path / "corpus"))
    model = ModelConfig(model="test_resnet", image_size=32, crop_pct=1.0)
    torch.manual_seed(0)  # of its weights
    probs = out_of_fold(model, corpus, "cpu")
    assert probs is not None
    assert probs.shape == (42, 3)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    rows = [row for _, t in corpus.scan(["key", "label"]) for row in t.to_pylist()]
    found = doubts(probs, np.array([row["label"] for row in rows]))
    suspects = {rows[i]["key"] for i in found.ranked}
    assert len(suspects & wrong) >= 5  # none, of a fit that has seen them
    assert len(suspects - wrong) <= 4


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_flipped_labels_are_found(tmp_path: Path, browser: Browser) -> None:
    wrong = flipped(tmp_path / "labeled", 24)
    changes = {"data.labeled": str(tmp_path / "labeled"), "resources.loaders": 0}
    config = write_config(tmp_path / "run.yaml", changes)
    arguments = ["--out", str(tmp_path / "found"), "--set", "data.validation_size=6"]
    done = CliRunner().invoke(app, ["suspects", "--config", str(config), *arguments])
    assert done.exit_code == 0, done.output
    with (tmp_path / "found" / "suspects.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert f"{len(lines)} of 72 labels are suspect" in " ".join(done.stdout.split())
    margins = [float(line["margin"]) for line in lines]
    assert margins == sorted(margins, reverse=True)
    found = {line["key"] for line in lines}
    assert len(found & wrong) >= 5
    assert len(found - wrong) <= 4
    for line in lines:
        assert Path(line["uri"]) == tmp_path / "labeled" / line["key"]
        assert line["key"].startswith(line["label"])
    every = pq.read_table(tmp_path / "found" / "labels.parquet").to_pylist()
    assert len(every) == 72
    assert {row["key"] for row in every if row["suspect"]} == found
    for row in every:
        place = sorted(COLORS).index(row["label"])
        assert row["probabilities"][place] == pytest.approx(row["label_probability"], abs=1e-3)

    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto((tmp_path / "found" / "index.html").as_uri())
    assert page.locator(".pictures li").count() == len(lines)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    checked = Axe().run(page)
    assert checked.violations_count == 0, checked.generate_report()
    page.close()


def test_a_teacher_that_may_have_learnt_the_labels_is_refused(tmp_path: Path) -> None:
    write_config(
        tmp_path / "run.yaml", {"data.labeled": "digits", "teacher": {"bundle": str(tmp_path)}}
    )
    arguments = ["suspects", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "may have learnt their labels" in " ".join(done.output.split())


def test_the_page_says_that_nothing_is_suspect() -> None:
    html = render(
        "suspects.html", name="n", data="d", images=9, suspects=0, pictures=[], table="s.csv"
    )
    assert "None: models that had not seen the images" in html
    assert "<ul" not in html
