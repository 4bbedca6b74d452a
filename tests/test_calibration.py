"""The temperature that a trained model's classifier is divided by."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from tiny import folder_per_class

from ns_ray.compute.resources import Workers
from ns_ray.config.training import ModelConfig, TrainConfig
from ns_ray.data.packing import pack
from ns_ray.model.networks import build
from ns_ray.model.predictor import Predictor
from ns_ray.model.temperature import fit_temperature
from ns_ray.scoring.scores import expected_calibration_error
from ns_ray.store import Corpus
from ns_ray.training.calibration import calibrate
from ns_ray.training.forward import forward
from ns_ray.training.stage import fit

CPU = torch.device("cpu")
HERE = Workers(count=1, cpus=1.0, gpus=0.0, loaders=0, in_process=True)


def too_sure(images: int, times: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `times` those of which the labels were drawn."""
    rng = np.random.default_rng(seed)
    true = rng.normal(scale=2.0, size=(images, 5))
    labels = np.array([rng.choice(5, p=p) for p in softmax(true, axis=1)])
    return (true * times).astype(np.float32), labels


@pytest.mark.parametrize("times", [0.4, 1.0, 3.0])
def test_it_takes_back_what_made_a_model_too_sure(times: float) -> None:
    logits, labels = too_sure(5000, times)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(times, rel=0.1)
    more, truth = too_sure(5000, times, seed=1)
    assert expected_calibration_error(softmax(more / temperature, axis=1), truth) < 0.02


def test_a_few_images_do_not_say_much() -> None:
    # Ten images, all right: the likeliest temperature would be the coldest there is.
    logits = np.eye(5, dtype=np.float32)[np.arange(10) % 5] * 2
    assert 0.5 < fit_temperature(logits, np.arange(10) % 5) < 1.0
    assert fit_temperature(logits[:0], np.arange(0)) == pytest.approx(1.0, abs=0.01)


def test_a_hundred_images_say_less_against_a_firm_belief() -> None:
    logits, labels = too_sure(100, 2.0)
    firm, loose = (fit_temperature(logits, labels, belief) for belief in (0.15, 0.5))
    assert 1.05 < firm < loose - 0.2
    logits, labels = too_sure(20_000, 2.0)
    assert fit_temperature(logits, labels, 0.15) == pytest.approx(2.0, rel=0.05)


def corpus(folder: Path) -> Corpus:
    return pack(str(folder_per_class(folder / "images", 6)), out=str(folder / "corpus"))


def test_the_classifier_is_divided_by_it(tmp_path: Path) -> None:
    labeled = corpus(tmp_path)
    model = build(ModelConfig(model="test_resnet", image_size=32), 3)
    with torch.no_grad():
        model.get_classifier().weight.mul_(300)  # type: ignore[operator]
    sure = deepcopy(model)
    before, _ = forward(model, labeled, CPU, model)
    temperature = calibrate(model, labeled, CPU, pretrained=False)
    assert temperature is not None
    assert temperature > 1.5
    after, _ = forward(model, labeled, CPU, model)
    known = calibrate(sure, labeled, CPU, pretrained=True)
    assert known is not None
    assert 1.0 < known < temperature
    np.testing.assert_allclose(after, before / temperature, rtol=1e-3, atol=1e-5)
    model.reset_classifier(0)  # type: ignore[operator]
    assert calibrate(model, labeled, CPU, pretrained=False) is None


@pytest.mark.slow
def test_the_bundle_that_a_training_leaves_has_it(tmp_path: Path) -> None:
    labeled = corpus(tmp_path)
    bundles = {}
    for name, validation, asked in [
        ("fitted", labeled, True),
        ("not asked", labeled, False),
        ("no images", None, True),
    ]:
        bundles[name] = fit(
            ModelConfig(model="test_resnet", image_size=32),
            TrainConfig(epochs=2, batch_size=9, lr=0.01, calibrate=asked),
            labeled=labeled,
            validation=validation,
            seed=0,
            workers=HERE,
            checkpoints=str(tmp_path / name / "checkpoints"),
            out=str(tmp_path / name / "bundle"),
            title="teacher",
            provenance={},
        )
    temperature = bundles["fitted"].provenance["temperature"]
    assert temperature != 1.0
    assert bundles["not asked"].provenance["temperature"] == 1.0
    assert bundles["no images"].provenance["temperature"] == 1.0
    image = (tmp_path / "images" / "red" / "0000.png").read_bytes()
    probs = {}
    for name, bundle in bundles.items():
        (found,) = Predictor(bundle.path, device="cpu").predict([image])
        assert isinstance(found, np.ndarray)
        probs[name] = found
    np.testing.assert_allclose(probs["not asked"], probs["no images"], rtol=1e-4)
    tempered = probs["not asked"] ** (1 / temperature)
    np.testing.assert_allclose(probs["fitted"], tempered / tempered.sum(), rtol=1e-3)
