"""The job that scores models on corrupted, perturbed and attacked images, and released files."""

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from broken_files import encoded, picture
from tiny import COLORS, folder_per_class

from ns_ray import store
from ns_ray.compute.resources import Pool
from ns_ray.config.labeling import PredictConfig
from ns_ray.config.scoring import EvaluateConfig, RobustnessConfig
from ns_ray.config.training import ModelConfig
from ns_ray.data.images import eval_pixels
from ns_ray.data.stage import pack
from ns_ray.errors import ConfigError, DataError
from ns_ray.labeling.actor import among_classes
from ns_ray.model.bundle import class_map, save
from ns_ray.model.networks import build
from ns_ray.model.predictor import Predictor
from ns_ray.model.pretrained import imagenet_synsets
from ns_ray.robustness import intervals, pictures, work
from ns_ray.robustness.corruptions import STANDARD, corrupt
from ns_ray.robustness.released import released_units, video
from ns_ray.robustness.suites import evaluate_beside, evaluate_robustness
from ns_ray.robustness.units import Unit
from ns_ray.scoring.stage import evaluate
from ns_ray.store.bundles import Bundle
from ns_ray.store.corpora import Corpus

CONFIG = RobustnessConfig(images=7, sequences=2, severities=(1, 3), epsilons=(4,), pgd_steps=2)
HERE = Pool(actors=1, cpus=1, gpus=0, in_process=True)
ACTORS = replace(HERE, in_process=False)


def model(folder: Path, seed: int, size: int) -> Bundle:
    """An untrained model whose answers differ from image to image."""
    torch.manual_seed(seed)
    config = ModelConfig(model="test_resnet", image_size=size, crop_pct=1.0)
    net: Any = build(config, 3)
    with torch.no_grad():
        net.get_classifier().weight.mul_(50)
    return save(net, str(folder), classes=sorted(COLORS), fingerprint=f"m{seed}", provenance={})


@pytest.fixture(scope="module")
def images(ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    source = folder_per_class(tmp_path_factory.mktemp("images") / "source", 4)
    return pack(str(source), out=str(source.parent / "corpus"), rows_per_shard=5)


def run(corpus: Corpus, models: list[Bundle], out: Path, pool: Pool = HERE, **settings: Any) -> Any:
    names = [chr(ord("A") + i) for i in range(len(models))]
    config = CONFIG.model_copy(update=settings)
    outs = [str(out / name) for name in names]
    return evaluate_robustness(
        config, models, corpus, outs=outs, names=names, pool=pool, title="test"
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_on_actors_finds_what_one_process_finds(
    images: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [model(tmp_path / "a", 0, 32), model(tmp_path / "b", 1, 48)]
    here = run(images, models, tmp_path / "here")
    first, second = here
    assert (first["rows"], first["constants"]) == (7, "cifar")
    assert (first["relative_to"], first["relative"]) == (None, None)
    assert second["relative_to"] == "A"
    ratios = [
        second["corruptions"][name]["mean"] / first["corruptions"][name]["mean"]
        for name in STANDARD
    ]
    assert second["relative"] == pytest.approx(np.mean(ratios))
    assert set(first["corruptions"]["fog"]["error"]) == {"1", "3"}
    assert first["corruptions"]["fog"]["family"] == "weather"
    assert first["mean_corruption_error"] == pytest.approx(
        np.mean([first["corruptions"][name]["mean"] for name in STANDARD])
    )
    assert set(first["adversarial"]) == {"fgsm", "pgd"}
    assert list(first["adversarial"]["fgsm"]) == ["0", "4"]
    assert len(first["perturbations"]) == 14
    assert first["mce"] is first["mfr"] is None  # three classes are not ImageNet's thousand

    # One number by hand: the same pictures, corrupted by their keys, through the predictor.
    unit, *_ = [u for u in _units(images) if u.suite == "corruptions" and len(u.keys) > 1]
    canvas = pictures.CANVAS["cifar"]
    clean = [eval_pixels(d, canvas, False) for d in pictures.encoded(images.path, unit)]
    shown = [
        corrupt(pixels, "contrast", 3, constants="cifar", key=key, seed=0)
        for key, pixels in zip(unit.keys, clean, strict=True)
    ]
    predicted = Predictor(models[0].path, device="cpu", threads=1).forward(np.stack(shown))
    wrong = int((predicted.argmax(axis=1) != np.array(unit.labels)).sum())
    parts = [store.read_json(str(p)) for p in sorted((tmp_path / "here" / "A").glob("0*.json"))]
    counted = [row[2:] for part in parts for row in part["rows"] if row[:2] == ["contrast", 3.0]]
    assert [float(wrong), len(unit.keys)] in counted
    (part,) = [
        p for p in parts if p["unit"]["keys"] == list(unit.keys) and p["suite"] == unit.suite
    ]
    told = dict(pair.split(":") for pair in part["told"].get("contrast 3", "").split())
    assert {int(at): int(answer) for at, answer in told.items()} == {
        i: answer
        for i, answer in enumerate(predicted.argmax(axis=1).tolist())
        if answer != unit.labels[i]
    }

    # Killed before the second model's last part: the rerun does that one only.
    there = tmp_path / "there"
    assert run(images, models, there, ACTORS) == here
    (there / "B" / "_DONE.json").unlink()
    last = sorted((there / "B").glob("0*.json"))[-1]
    last.unlink()
    made: list[int] = []
    from ns_ray.robustness import running

    real: Callable[..., Any] = work.make

    def make(i: int, job: Any) -> Any:
        made.append(i)
        return real(i, job)

    monkeypatch.setattr(running, "make", make)
    assert run(images, models, there) == here
    assert made == [int(last.name[:5])]
    assert run(images, models, there) == here  # published: nothing is done
    assert len(made) == 1


def _units(images: Corpus, config: RobustnessConfig = CONFIG) -> list[Unit]:
    from ns_ray.robustness.job import _units as units

    return units(config, images)[0]


@pytest.mark.ray
def test_frames_of_sequences_are_right_or_not(images: Corpus, tmp_path: Path) -> None:
    a = model(tmp_path / "a", 0, 32)
    settings: dict[str, Any] = {"suites": ("perturbations",), "extra": False, "sequences": 7}
    (found,) = run(images, [a], tmp_path / "out", **settings)
    predictor = Predictor(a.path, device="cpu", threads=1, images=2000)  # run by the same engine
    right, config = [], CONFIG.model_copy(update=settings)
    for unit in _units(images, config):
        for item in pictures.shown(unit, images.path, config, "cifar"):
            if item.name == "translate":
                answers = predictor.forward(item.pixels).argmax(axis=1)
                right.append((answers == item.labels[0]).mean())
    assert len(right) == 7
    assert found["perturbations"]["translate"]["top1"] == pytest.approx(np.mean(right))
    every = [row["top1"] for row in found["perturbations"].values()]
    assert len(every) == 10
    assert 0 < found["mean_perturbed_top1"] < 1
    assert found["mean_perturbed_top1"] == pytest.approx(np.mean(every))
    translate = found["perturbations"]["translate"]
    assert translate["top1_interval"] == intervals.of_sequences(right)
    low, high = translate["flip_rate_interval"]
    assert low < translate["flip_rate"] < high
    ends = [row["top1_interval"] for row in found["perturbations"].values()]
    assert found["mean_perturbed_top1_interval"] == pytest.approx(np.mean(ends, axis=0))

    # Counts of a sequence from before its right frames were kept: the rates are known, they aren't.
    part = sorted((tmp_path / "out" / "A").glob("0*.json"))[0]
    counts = store.read_json(str(part))
    store.write_json(str(part), {**counts, "rows": [row[:4] for row in counts["rows"]]})
    (tmp_path / "out" / "A" / "_DONE.json").unlink()
    (again,) = run(images, [a], tmp_path / "out", **settings)
    assert again["mean_flip_rate_interval"] == found["mean_flip_rate_interval"]
    assert again["perturbations"]["translate"]["top1"] is again["mean_perturbed_top1"] is None


@pytest.mark.ray
def test_a_corrupted_picture_is_made_again_as_it_was_scored(images: Corpus, tmp_path: Path) -> None:
    unit = next(u for u in _units(images) if u.suite == "corruptions" and len(u.keys) > 1)
    one = replace(unit, keys=unit.keys[1:2], labels=unit.labels[1:2])
    for item in pictures.shown(unit, images.path, CONFIG, "cifar"):
        if item.name != "clean":
            again = pictures.corrupted_again(
                one, images.path, item.name, item.level, constants="cifar", seed=CONFIG.seed
            )
            assert (again == item.pixels[1]).all(), (item.name, item.level)
    data = picture(1, 40, 30)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(encoded(data, "PNG"))
    released = Unit("corruptions", ("cat/1.png",), (0,), str(tmp_path), "snow", 2)
    again = pictures.corrupted_again(released, "", "snow", 2, constants="imagenet", seed=0)
    assert (again == np.asarray(data)).all()


@pytest.mark.ray
def test_released_folders_are_scored_as_they_are(images: Corpus, tmp_path: Path) -> None:
    released = tmp_path / "imagenet-c"
    names = sorted(COLORS)
    for name in STANDARD:
        for k, color in enumerate(names):
            folder = released / name / "2" / color
            folder.mkdir(parents=True)
            for i in range(2):
                data = encoded(picture(10 * k + i, 32, 32), "PNG")
                (folder / f"{i}.png").write_bytes(data)
    a = model(tmp_path / "a", 0, 32)
    (found,) = run(
        images,
        [a],
        tmp_path / "out",
        suites=("corruptions",),
        severities=(2,),
        released_corruptions=str(released),
        images=100,
    )
    shown = np.stack([np.asarray(picture(10 * k + i, 32, 32)) for k in range(3) for i in range(2)])
    predicted = Predictor(a.path, device="cpu", threads=1).forward(shown).argmax(axis=1)
    error = float((predicted != np.array([0, 0, 1, 1, 2, 2])).mean())
    assert {row["mean"] for row in found["corruptions"].values()} == {error}
    assert found["mean_corruption_error"] == pytest.approx(error)
    assert found["clean_error"] is None
    (released / "snow" / "2").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"released_corruptions=.*no files in .*snow/2/CLASS/"):
        released_units(str(released), CONFIG.model_copy(update={"severities": (2,)}), "corruptions")


def test_videos_of_imagenet_p_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "tilt" / "n01440764"
    folder.mkdir(parents=True)
    frames = [np.full((64, 64, 3), 20 * i, np.uint8) for i in range(1, 6)]
    frames[0][..., 0] = 200  # red
    writer = cv2.VideoWriter(str(folder / "a.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 1, (64, 64))
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    read = video(str(folder / "a.mp4"))
    assert read.shape == (5, 64, 64, 3)
    assert np.abs(read.astype(int) - np.stack(frames)).mean() < 6
    (folder / "b.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.mp4: a sequence of at least 2 frames"):
        video(str(folder / "b.mp4"))


def test_the_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ns_ray.robustness import corruptions

    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    corruptions._package.cache_clear()
    with pytest.raises(
        ConfigError, match=r"imagecorruptions; install it with: pip install 'ns-ray"
    ):
        corruptions.check_installed()


def test_a_subset_is_indexed_before_the_arg_max() -> None:
    # The best of all five is class 0, which the images cannot be; among 1, 3 and 4 it is 3.
    probs = np.array([[0.5, 0.1, 0.05, 0.25, 0.1]], np.float32)
    some = among_classes(probs, np.array([1, 3, 4]))
    assert some.argmax() == 1
    assert some == pytest.approx(np.array([[0.1, 0.25, 0.1]]) / 0.45)
    sure = np.array([[1.0, 1e-12, 4e-12, 1e-12]], np.float32)  # float16 has no 1e-12
    assert among_classes(sure, np.array([1, 2, 3]))[0] == pytest.approx([1 / 6, 4 / 6, 1 / 6])


@pytest.mark.ray
def test_a_model_is_related_to_its_baseline_in_one_line(
    images: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `ns-ray evaluate` does it."""
    first, second = model(tmp_path / "a", 0, 32), model(tmp_path / "b", 1, 32)
    settings: dict[str, Any] = {
        "baseline": first.path,
        "suites": ("corruptions", "adversarial"),
        "images": 3,
    }
    config = EvaluateConfig(robustness=CONFIG.model_copy(update=settings))
    out = tmp_path / "out"
    places: dict[str, Any] = {
        "names": [second.path],
        "outs": [str(out / "robustness")],
        "baseline": str(out / "baseline"),
        "pool": HERE,
        "predict": PredictConfig(),
    }
    (found,) = evaluate_beside(config, [second], images, **places)
    assert found["relative_to"] == first.path
    assert (out / "baseline" / "_DONE.json").exists()
    assert (out / "robustness" / "_DONE.json").exists()
    said = " ".join(capsys.readouterr().out.split())
    assert f"mean corruption error {found['mean_corruption_error']:.4f}" in said
    assert f"{found['relative']:.3f} times" in said
    assert "PGD" in said

    # Each of them was counted on three images.
    fog = found["corruptions"]["fog"]
    assert fog["error_interval"]["3"] == intervals.of_count(round(3 * fog["error"]["3"]), 3)
    means = [found["corruptions"][name]["mean_interval"] for name in STANDARD]
    assert found["mean_corruption_error_interval"] == pytest.approx(np.mean(means, axis=0))
    hits = round(3 * found["adversarial"]["pgd"]["4"])
    assert found["adversarial_intervals"]["pgd"]["4"] == intervals.of_count(hits, 3)
    wrong = round(3 * found["clean_error"])
    assert found["clean_error_interval"] == intervals.of_count(wrong, 3)
    assert found["mean_flip_rate_interval"] is None

    # What a run scores beside a model leaves what is stored of it as it is.
    done = (out / "robustness" / "_DONE.json").read_bytes()
    assert "before_fixres" not in CONFIG.model_dump()
    settings["before_fixres"] = True
    config = EvaluateConfig(robustness=CONFIG.model_copy(update=settings))
    evaluate_beside(config, [second], images, **places)
    assert (out / "robustness" / "_DONE.json").read_bytes() == done


@pytest.mark.ray
def test_a_subset_is_scored_among_its_classes(images: Corpus, tmp_path: Path) -> None:
    made = model(tmp_path / "a", 0, 32)
    found = {}
    for subset in (False, True):
        config = EvaluateConfig(subset=subset)
        out = str(tmp_path / str(subset))
        found[subset] = evaluate(config, made, images, pool=HERE, out=out, title="t")
    assert found[True].scores["top1"] == found[False].scores["top1"]  # all classes are a subset too
    six = Bundle(made.path, ("no", *made.classes), "net", "six")
    assert class_map(six, images.classes, "").tolist() == [1, 2, 3]


@pytest.mark.slow
def test_imagenet_a_s_folders_find_their_columns() -> None:
    # timm's list of them: the same as in natural-adv-examples' eval.py.
    listed = resources.files("timm.data") / "_info" / "imagenet_a_indices.txt"
    columns = [int(line) for line in listed.read_text().split()]
    folders = sorted(imagenet_synsets()[column] for column in columns)
    names = tuple(f"class {i}" for i in range(1000))
    bundle = Bundle("/b", names, "net", "f")
    assert len(folders) == 200
    assert class_map(bundle, folders, "/a").tolist() == columns
    assert columns[:5] == [6, 11, 13, 15, 17]
    assert class_map(bundle, imagenet_synsets(), "/i").tolist() == list(range(1000))
    with pytest.raises(DataError, match="class 'n1' of /x is not a class of /b"):
        class_map(bundle, ["n1"], "/x")
