"""Whether mirrored images look like the others, and what a run makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from test_selftrain import Fakes

from ns_ray import store
from ns_ray.config import RunConfig, chosen_in, dump
from ns_ray.config.validation import validate
from ns_ray.data import mirrored, pack
from ns_ray.selftrain import self_train
from ns_ray.store import Corpus, RunLayout, open_corpus


def packed(folder: Path, images: list[Any]) -> Corpus:
    (folder / "images").mkdir(parents=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / "images" / f"{i:04}.png")
    pack(str(folder / "images"), out=str(folder / "corpus"), rows_per_shard=30)
    return open_corpus(str(folder / "corpus"))


def digits(count: int) -> list[Any]:
    return [
        np.kron(a * 15.9, np.ones((4, 4))).astype(np.uint8) for a in load_digits().images[:count]
    ]


def test_digits_have_a_direction_on_any_ground(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    images = [255 - a if rng.random() < 0.5 else a for a in digits(100)]
    assert not mirrored.symmetric(packed(tmp_path, images))
    assert (
        "of 100 images are told from their mirror images: none is flip" in capsys.readouterr().out
    )


def test_the_same_images_mirrored_at_random_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    images = [np.ascontiguousarray(a[:, :: rng.choice([-1, 1])]) for a in digits(100)]
    corpus = packed(tmp_path, images)
    capsys.readouterr()
    assert mirrored.symmetric(corpus)
    assert capsys.readouterr().out == ""


def test_of_a_few_images_nothing_is_said(tmp_path: Path) -> None:
    assert mirrored.symmetric(packed(tmp_path, digits(19)))


def test_images_without_any_gradient_have_no_direction(tmp_path: Path) -> None:
    assert mirrored.symmetric(packed(tmp_path, [np.full((8, 8), i, np.uint8) for i in range(30)]))


def run(folder: Path, **noise: Any) -> RunConfig:
    raw = {
        "name": "run",
        "storage": str(folder),
        "data": {"labeled": "l"},
        "teacher": {"model": "resnet18"},
        "students": [{"model": "resnet18"}],
        "label": {"teachers": 1},
        **({"train": {"noise": noise}} if noise else {}),
    }
    return validate(RunConfig, raw)


def flips(fakes: Fakes) -> list[float]:
    return [asked["step"].train.noise.flip for asked in fakes.asked["fit"]]


def test_a_run_flips_what_has_no_direction(tmp_path: Path) -> None:
    for alike, flip in ((True, 0.5), (False, 0.0)):
        fakes = Fakes([20, 30], has_test=False, mirrored_alike=alike)
        config = run(tmp_path / str(alike))
        layout = RunLayout.of(config)
        store.write_bytes(layout.config, dump(config).encode())
        self_train(config, layout, fakes)
        assert flips(fakes) == [flip, flip]
        chosen = chosen_in(store.read_bytes(layout.config))
        assert chosen["teacher"]["noise"]["flip"] == flip

        again = Fakes([20, 30], has_test=False, mirrored_alike=not alike)
        self_train(config, layout, again)
        assert "symmetric" not in again.asked
        assert flips(again) == [flip, flip]


def test_nobody_looks_where_flips_are_set(tmp_path: Path) -> None:
    fakes = Fakes([20, 30], has_test=False, mirrored_alike=False)
    self_train(run(tmp_path, flip=0.3), RunLayout.of(run(tmp_path)), fakes)
    assert "symmetric" not in fakes.asked
    assert flips(fakes) == [0.3, 0.3]
