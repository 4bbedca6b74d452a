"""The classifier that a pretrained model starts with: logistic regression on frozen features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from tiny import COLORS, flat_folder, folder_per_class

from ns_ray.compute.resources import Workers
from ns_ray.config.training import LITE, ModelConfig, TrainConfig
from ns_ray.data.packing import pack
from ns_ray.errors import ImageError
from ns_ray.model.bundle import save
from ns_ray.model.networks import build
from ns_ray.model.predictor import Predictor
from ns_ray.training import head
from ns_ray.training.stage import fit

HERE = Workers(count=1, cpus=1.0, gpus=0.0, loaders=0, in_process=True)


def features(images: int, classes: int, seed: int = 0, scale: float = 1.5) -> tuple[Any, Any]:
    """Classes around means of their own, on features of unlike scales."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    means = np.random.default_rng(9).normal(size=(classes, 40))
    found = means[labels] + rng.normal(scale=scale, size=(images, 40)) + 3.0
    return found.astype(np.float32), labels


def logits(fitted: head.Head, rows: Any) -> Any:
    return rows @ fitted.weight.T + fitted.bias


@pytest.mark.parametrize("images", [30, 200])  # fewer and more than features
@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_logistic_regression_on_scaled_features(images: int, classes: int) -> None:
    rows, labels = features(images, classes)
    fitted = head.fit(rows, labels, classes)
    scaled = (rows - rows.mean(axis=0)) / (rows - rows.mean(axis=0)).std()
    expected = LogisticRegression(C=fitted.strength, max_iter=1000).fit(scaled, labels)
    more, _ = features(100, classes, seed=1)
    shown = (more - rows.mean(axis=0)) / (rows - rows.mean(axis=0)).std()
    probs = torch.from_numpy(logits(fitted, more)).softmax(dim=1).numpy()
    np.testing.assert_allclose(probs, expected.predict_proba(shown), atol=0.01)


def test_its_strength_is_what_held_out_images_like_best() -> None:
    rows, labels = features(90, 3)
    noise = np.random.default_rng(0).permutation(labels)
    clear, blind = head.fit(rows, labels, 3), head.fit(rows, noise, 3)
    assert clear.strength > blind.strength == min(head.STRENGTHS)


def test_what_is_said_of_it_comes_from_images_it_had_not_seen() -> None:
    rows, labels = features(150, 3, scale=4.0)
    fitted = head.fit(rows, labels, 3)
    seen = (logits(fitted, rows).argmax(axis=1) == labels).mean()
    more, truth = features(2000, 3, seed=1, scale=4.0)
    unseen = (logits(fitted, more).argmax(axis=1) == truth).mean()
    assert fitted.right is not None
    assert fitted.right == pytest.approx(unseen, abs=0.1)
    assert seen > fitted.right + 0.05


def test_one_image_a_class_and_classes_without_any() -> None:
    rows, labels = features(3, 3)
    fitted = head.fit(rows, labels * 2, 6)  # classes 0, 2 and 4 of six
    assert (fitted.strength, fitted.right) == (head.USUAL, None)
    assert list(logits(fitted, rows).argmax(axis=1)) == [0, 2, 4]
    assert "held out" not in str(fitted)
    more, _ = features(500, 3, seed=2)
    assert set(logits(fitted, more).argmax(axis=1)) <= {0, 2, 4}


@pytest.mark.slow
def test_a_pretrained_model_starts_as_good_as_its_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a rate of nothing, the bundle is what training starts from."""
    labeled = pack(str(folder_per_class(tmp_path / "labeled", 8)), out=str(tmp_path / "corpus"))
    bundle = fit(
        ModelConfig(model="tf_efficientnet_lite0", pretrained=LITE, image_size=32, crop_pct=1.0),
        TrainConfig(epochs=1, batch_size=24, lr=1e-9),
        labeled=labeled,
        seed=0,
        workers=HERE,
        checkpoints=str(tmp_path / "checkpoints"),
        out=str(tmp_path / "bundle"),
        title="teacher",
        provenance={},
    )
    assert "right when held out" in capsys.readouterr().out
    unseen = sorted(flat_folder(tmp_path / "pile", 60, start=500).iterdir())
    right = []
    found = Predictor(bundle.path, device="cpu").predict([path.read_bytes() for path in unseen])
    for path, probs in zip(unseen, found, strict=True):
        assert not isinstance(probs, ImageError)
        right.append(bundle.classes[probs.argmax()] == list(COLORS)[int(path.stem) % 3])
    assert np.mean(right) > 0.85


def test_many_images_and_unusual_classifiers_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = pack(str(folder_per_class(tmp_path / "labeled", 4)), out=str(tmp_path / "corpus"))
    model = build(ModelConfig(model="test_resnet", image_size=32), 3)
    before = model.get_classifier().weight.clone()  # type: ignore[operator]
    monkeypatch.setattr(head, "FEW_LABELS", 11)
    assert head.start_head(model, corpus, torch.device("cpu")) is None
    monkeypatch.setattr(head, "FEW_LABELS", 12)
    assert head.start_head(model, corpus, torch.device("cpu")) is not None
    assert not torch.equal(before, model.get_classifier().weight)  # type: ignore[operator]
    model.reset_classifier(0)  # type: ignore[operator]
    assert head.start_head(model, corpus, torch.device("cpu")) is None


@pytest.mark.parametrize("batch_norm", ["kept", "live"])
def test_batch_norms_keep_the_statistics_of_pretraining_or_do_not(
    tmp_path: Path, batch_norm: str
) -> None:
    labeled = pack(str(folder_per_class(tmp_path / "labeled", 4)), out=str(tmp_path / "corpus"))
    start = tmp_path / "start"
    config = ModelConfig(model="test_resnet", image_size=32, pretrained=str(start))
    torch.manual_seed(0)
    untrained = build(config.model_copy(update={"pretrained": None}), 3)
    save(untrained, str(start), classes=tuple(COLORS), fingerprint="start", provenance={})
    bundle = fit(
        config,
        TrainConfig.model_validate({"epochs": 2, "batch_size": 6, "batch_norm": batch_norm}),
        labeled=labeled,
        seed=0,
        workers=HERE,
        checkpoints=str(tmp_path / "checkpoints"),
        out=str(tmp_path / "bundle"),
        title="teacher",
        provenance={},
    )
    before = load_file(start / "model.safetensors")
    after = load_file(f"{bundle.path}/model.safetensors")
    same = {name: torch.equal(before[name], after[name]) for name in before}
    statistics = {same[name] for name in same if "running_" in name}
    learnt = {same[name] for name in same if name.endswith("bn2.weight")}
    assert statistics == {batch_norm == "kept"}
    assert learnt == {False}


def test_a_start_goes_without_the_prior_that_training_adds(tmp_path: Path) -> None:
    """Or a fitted classifier that takes the place of the model would find no rare class."""
    folder = folder_per_class(tmp_path / "labeled", 6)
    for path in sorted((folder / "red").iterdir())[1:]:
        path.unlink()
    (folder / "violet").mkdir()
    corpus = pack(str(folder), out=str(tmp_path / "corpus"), classes=(*sorted(COLORS), "violet"))
    assert corpus.class_counts[-1] == 0
    model, device = build(ModelConfig(model="test_resnet", image_size=32), 4), torch.device("cpu")
    images, logits = torch.rand(5, 3, 32, 32), []
    prior = torch.tensor(corpus.class_counts).clamp(min=1).log()
    for added in (None, prior):
        head.start_head(model, corpus, device, added)
        logits.append(model.eval()(images))
    torch.testing.assert_close(logits[1][:, :3] + prior[:3], logits[0][:, :3])
    assert (logits[1][:, 3] < logits[1].amax(dim=1)).all()


def test_models_that_take_classes_for_alike_are_compared_on_uneven_images_with_the_prior(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = np.array([0] * 8 + [1] * 2)
    rows = {"one": [[1, 0]] * 8 + [[0, 0.5]] * 2, "other": [[0, 0.5]] * 8 + [[0, 3]] * 2}
    found = {name: np.array(logits, np.float32) for name, logits in rows.items()}
    monkeypatch.setattr(head, "forward", lambda model, *_: (found[model], labels))
    compared: list[Any] = ["one", "other", None, torch.device("cpu")]
    assert head.clearly_better(*compared)
    compared.append(torch.tensor([0.8, 0.2]).log())
    assert not head.clearly_better(*compared)


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "alone"), [(1e-9, False), (30.0, True)])
def test_a_fine_tuning_that_does_harm_is_not_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lr: float, alone: bool
) -> None:
    labeled = pack(str(folder_per_class(tmp_path / "labeled", 8)), out=str(tmp_path / "corpus"))
    unseen = folder_per_class(tmp_path / "held-out", 10)
    bundle = fit(
        ModelConfig(model="tf_efficientnet_lite0", pretrained=LITE, image_size=32, crop_pct=1.0),
        TrainConfig(epochs=4, batch_size=24, lr=lr, ema_decay=0.0, batch_norm="kept"),
        labeled=labeled,
        validation=pack(str(unseen), out=str(tmp_path / "validation")),
        seed=0,
        workers=HERE,
        checkpoints=str(tmp_path / "checkpoints"),
        out=str(tmp_path / "bundle"),
        title="teacher",
        provenance={},
    )
    assert bundle.provenance.get("head_alone", False) is alone
    assert ("clearly prefer the fitted classifier" in capsys.readouterr().out) is alone
    images = sorted(unseen.rglob("*.png"))
    found = Predictor(bundle.path, device="cpu").predict([path.read_bytes() for path in images])
    right = [
        bundle.classes[np.argmax(probs)] == path.parent.name
        for path, probs in zip(images, found, strict=True)
        if not isinstance(probs, ImageError)
    ]
    assert np.mean(right) > 0.8
