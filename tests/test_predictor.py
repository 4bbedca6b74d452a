"""Bytes in, probabilities out: what timm's own evaluation gives, image by image."""

import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from broken_files import broken, encoded, jpeg, odd_but_good, picture
from PIL import Image

from ns_ray.config.labeling import PredictConfig
from ns_ray.config.noise import NoiseConfig
from ns_ray.config.training import ModelConfig
from ns_ray.data.images import eval_pixels
from ns_ray.errors import ConfigError, DataError, ImageError
from ns_ray.model.bundle import load, save
from ns_ray.model.engines import Choice, TorchForward
from ns_ray.model.networks import build_noised
from ns_ray.model.predictor import NoisedPredictor, Predictor
from ns_ray.store.bundles import open_bundle

CLASSES = ("ant", "bee", "cat", "dog")
FP32 = PredictConfig(precision="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle whose answers differ from image to image; saved in training mode, noise on."""
    torch.manual_seed(0)
    config = ModelConfig(model="test_resnet", image_size=64, crop_pct=0.875)
    noise = NoiseConfig(dropout=0.5, stochastic_depth=0.5)
    model: Any = build_noised(config, noise, len(CLASSES))[0]
    pictures = np.stack([np.asarray(picture(seed, 64, 64)) for seed in range(16)])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 128 - 1
    with torch.no_grad():
        for _ in range(20):
            model(images)
        logits = model.eval()(images)
        spread = 1.5 / logits.std(dim=0)
        model.get_classifier().weight.mul_(spread[:, None])
        model.get_classifier().bias.copy_(-logits.mean(dim=0) * spread)
    model.train()
    out = tmp_path_factory.mktemp("predictor")
    return save(model, str(out), classes=CLASSES, fingerprint="f", provenance={}).path


@pytest.fixture(scope="module")
def predictor(folder: str) -> Iterator[Predictor]:
    before = torch.get_num_threads()
    yield Predictor(folder, device="cpu", threads=1, config=FP32)
    torch.set_num_threads(before)


def photographs() -> list[bytes]:
    """Two photographs of 640 x 427 pixels, and pictures of other shapes."""
    images = resources.files("sklearn.datasets") / "images"
    shapes = [(48, 32), (32, 48), (64, 64), (300, 40), (9, 8)]
    return [
        *((images / name).read_bytes() for name in ("china.jpg", "flower.jpg")),
        *(encoded(picture(i, *shape), "PNG") for i, shape in enumerate(shapes)),
    ]


def by_timm(folder: str, images: list[bytes]) -> np.ndarray:
    """timm's evaluation transform, model and softmax."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model), is_training=False
    )
    batch = torch.stack([transform(Image.open(io.BytesIO(b)).convert("RGB")) for b in images])
    with torch.no_grad():
        found: np.ndarray = model(batch).softmax(1).numpy()
    return found


def stacked(results: list[np.ndarray | ImageError]) -> np.ndarray:
    return np.stack([result for result in results if not isinstance(result, ImageError)])


def test_the_exact_path_is_timm_s_evaluation(predictor: Predictor, folder: str) -> None:
    images = photographs()
    expected = by_timm(folder, images)
    assert np.ptp(expected, axis=0).max() > 0.2  # the images are told apart
    pixels = [eval_pixels(data, predictor.preprocess, fast=False) for data in images]
    np.testing.assert_allclose(predictor.forward(np.stack(pixels)), expected, atol=2e-5)


def test_the_fast_path_is_close_to_it(predictor: Predictor, folder: str) -> None:
    images = photographs()
    got = stacked(predictor.predict(images))
    expected = by_timm(folder, images)
    assert got.shape == (len(images), len(CLASSES))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(got[2:], expected[2:], atol=0.02)  # no JPEG among these
    np.testing.assert_allclose(got, expected, atol=0.1)
    # An image that has the right size already is not touched at all.
    square = encoded(picture(7, 73, 73), "PNG")
    exact = by_timm(folder, [square])
    np.testing.assert_allclose(stacked(predictor.predict([square])), exact, atol=2e-5)


def test_a_compiled_model_takes_a_batch_that_is_larger_than_the_first(
    predictor: Predictor, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch is short of one image that cannot be decoded, the second is whole."""

    def compiles(*arguments: Any, batch_size: int, **_: Any) -> Choice:
        model, spec, device, _pixels = arguments
        forward = TorchForward(model, spec, device, bf16=False, compiled_for=batch_size)
        return Choice(forward, "torch", "fp32", None, None, {}, "")

    monkeypatch.setattr(torch, "compile", lambda model, mode: model)
    monkeypatch.setattr("ns_ray.model.predictor.choose", compiles)
    images = [b"no image", *(jpeg(seed) for seed in range(9))]
    compiled = Predictor(folder, device="cpu", threads=1, config=FP32, batch_size=4)
    found = compiled.predict(images)
    assert isinstance(found[0], ImageError)
    np.testing.assert_allclose(stacked(found), stacked(predictor.predict(images)), atol=1e-5)


def test_a_bad_image_is_an_error_in_its_place_and_disturbs_no_other(predictor: Predictor) -> None:
    good = [jpeg(seed) for seed in range(12)]
    clean = stacked(predictor.predict(good))
    bad = list(broken().values())
    mixed: list[bytes] = []
    reasons: list[str | None] = []
    for i, data in enumerate(good):
        mixed.append(data)
        reasons.append(None)
        if i < len(bad):
            mixed.append(bad[i][0])
            reasons.append(bad[i][1])
    results = predictor.predict(mixed)
    assert [r.reason if isinstance(r, ImageError) else None for r in results] == reasons
    np.testing.assert_allclose(stacked(results), clean, atol=1e-5)


def test_nothing_but_bad_images(predictor: Predictor) -> None:
    results = predictor.predict([b"", b"text"])
    assert [r.reason for r in results if isinstance(r, ImageError)] == ["empty", "not_an_image"]
    assert predictor.predict([]) == []


def test_every_awkward_image_has_probabilities(predictor: Predictor) -> None:
    results = stacked(predictor.predict(list(odd_but_good().values())))
    assert len(results) == len(odd_but_good())
    assert np.isfinite(results).all()


def test_order_is_kept_over_many_batches(folder: str, predictor: Predictor) -> None:
    images = [jpeg(seed) for seed in range(23)]
    alone = np.stack([stacked(predictor.predict([data]))[0] for data in images])
    assert len(np.unique(alone.round(5), axis=0)) == 23
    many_threads = Predictor(folder, device="cpu", threads=3, batch_size=4, config=FP32)
    torch.set_num_threads(1)
    np.testing.assert_allclose(stacked(many_threads.predict(images)), alone, atol=1e-5)
    np.testing.assert_allclose(stacked(many_threads.predict(images[::-1])), alone[::-1], atol=1e-5)


def test_its_threads_are_taken_back_from_who_had_them_meanwhile(folder: str) -> None:
    before = torch.get_num_threads()
    try:
        mine = Predictor(folder, device="cpu", threads=before + 1, config=FP32)
        torch.set_num_threads(before)
        mine.take_threads()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_does_not_matter(folder: str, predictor: Predictor, batch_size: int) -> None:
    images = [jpeg(seed) for seed in range(9)]
    expected = stacked(predictor.predict(images))
    other = Predictor(folder, device="cpu", threads=1, batch_size=batch_size, config=FP32)
    np.testing.assert_allclose(stacked(other.predict(images)), expected, atol=1e-5)


def test_a_gpu_works_while_the_next_batch_is_made_ready(
    folder: str, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelined = Predictor(folder, batch_size=4, device="cpu", threads=1, config=FP32)
    pipelined.in_flight = 1
    calls: list[str] = []
    start = Choice.start

    def recorded(choice: Choice, pixels: Any) -> Any:
        number = sum(call.startswith("start") for call in calls)
        calls.append(f"start {number}")
        finish = start(choice, pixels)

        def end() -> Any:
            calls.append(f"finish {number}")
            return finish()

        return end

    monkeypatch.setattr(Choice, "start", recorded)
    images = [encoded(picture(seed=i)) for i in range(11)]
    found = pipelined.predict([*images[:5], b"bad", *images[5:]])
    assert calls == ["start 0", "start 1", "finish 0", "start 2", "finish 1", "finish 2"]
    assert isinstance(found.pop(5), ImageError)
    monkeypatch.undo()
    np.testing.assert_allclose(stacked(found), stacked(predictor.predict(images)), atol=1e-5)


def test_noise_is_off(predictor: Predictor, folder: str) -> None:
    images = photographs()
    first = stacked(predictor.predict(images))
    for _ in range(3):
        np.testing.assert_array_equal(stacked(predictor.predict(images)), first)
    # BatchNorm uses what it has learnt: an image is judged the same in any company.
    alone = stacked(predictor.predict(images[:1]))
    np.testing.assert_allclose(alone[0], first[0], atol=1e-5)


def test_noise_acts_where_it_is_asked_for_and_is_the_same_the_next_time(
    folder: str, tmp_path: Path
) -> None:
    images = photographs()
    model, _ = load(open_bundle(folder))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # untrained blocks add nothing that could drop
            torch.nn.init.ones_(module.weight)
    save(model, str(tmp_path), classes=CLASSES, fingerprint="g", provenance={})
    still: dict[str, Any] = {"randaugment": None, "crop_scale": None, "flip": 0}
    noises = {
        "none": NoiseConfig(**still, dropout=0, stochastic_depth=0),
        "dropout": NoiseConfig(**still, dropout=0.5, stochastic_depth=0),
        "depth": NoiseConfig(**still, dropout=0, stochastic_depth=0.9),
        "images": NoiseConfig(dropout=0, stochastic_depth=0),
    }
    found = {}
    for name, noise in noises.items():
        runs = []
        for _ in range(2):
            noised = NoisedPredictor(
                noise, str(tmp_path), device="cpu", threads=2, config=FP32, images=7
            )
            runs.append(stacked(noised.predict(images)))
        assert (runs[0] == runs[1]).all(), name
        found[name] = runs[0]
    for name in ("dropout", "depth", "images"):
        changed = np.abs(found[name] - found["none"]).max(axis=1) > 0.002
        assert changed.sum() >= len(images) - 2, name


def test_noised_predictors_in_threads_do_not_disturb_each_other(folder: str) -> None:
    noise = NoiseConfig(dropout=0.5, stochastic_depth=0.5)
    images = [jpeg(seed) for seed in range(3)]
    pair = [
        NoisedPredictor(noise, folder, device="cpu", threads=1, config=FP32, images=3)
        for _ in range(2)
    ]
    alone = stacked(pair[0].predict(images))
    stacked(pair[1].predict(images))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(lambda one: [one.predict(images) for _ in range(10)], pair):
                for results in found:
                    np.testing.assert_array_equal(stacked(results), alone)
    finally:
        sys.setswitchinterval(interval)


def test_bf16_is_close_to_fp32(predictor: Predictor, folder: str) -> None:
    images = [jpeg(seed) for seed in range(8)]
    half = Predictor(folder, device="cpu", threads=1, config=PredictConfig(precision="bf16"))
    probs = stacked(half.predict(images))
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, stacked(predictor.predict(images)), atol=0.05)


def test_what_it_says_about_itself(predictor: Predictor, folder: str) -> None:
    assert predictor.classes == CLASSES
    assert predictor.bundle.path == folder
    assert predictor.pixels(jpeg(0)).shape == (64, 64, 3)
    with pytest.raises(ImageError):
        predictor.pixels(b"nope")


class Hungry(torch.nn.Module):
    """Asks for a petabyte."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [n, 3, height, width] -> nothing."""
        return torch.empty(2**50, dtype=torch.uint8)


def test_a_device_without_room_names_the_setting(folder: str, predictor: Predictor) -> None:
    hungry = Predictor(folder, device="cpu", threads=1, batch_size=48)
    hungry._model = Hungry()
    with pytest.raises(ConfigError, match=r"48 images of 64 px: .*memory.*lower batch_size"):
        hungry.predict([jpeg()])
    hungry.choice = replace(predictor._chosen(predictor.pixels(jpeg())[None]), forward=_hungry)
    with pytest.raises(ConfigError, match="lower batch_size"):  # not at the first batch
        hungry.predict([jpeg()])


def _hungry(pixels: Any) -> Any:
    return Hungry()(pixels)


def test_layers_that_do_not_fit_are_named_with_their_folder(folder: str) -> None:
    odd = Predictor(folder, device="cpu", threads=1)
    odd._model = torch.nn.Linear(7, 4)
    with pytest.raises(DataError, match=f"the model in {folder} cannot take images of 64 px"):
        odd.predict([jpeg()])


def test_no_bundle_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no bundle"):
        Predictor(str(tmp_path), device="cpu")
