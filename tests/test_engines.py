"""What runs a model: OpenVINO agrees with torch for the models people use, and is taken only where
it pays and agrees."""

import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from ns_ray.data.images import Preprocess
from ns_ray.model import engines
from ns_ray.model.bundle import preprocessing
from ns_ray.model.engines import OpenVINOForward, TorchForward, choose

CPU = torch.device("cpu")
THIN = {"channels": [32, 64, 128, 256], "stem_width": 16, "stem_type": "deep"}


def model_and_pixels(
    name: str, size: int, **arguments: Any
) -> tuple[nn.Module, Preprocess, np.ndarray[Any, Any]]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments).eval()
    head = model.get_classifier()
    nn.init.normal_(head.weight, std=20.0 / head.weight.shape[1] ** 0.5)  # decided answers
    spec = preprocessing(model)
    spec = Preprocess(size, 1.0, "bicubic", spec.mean, spec.std)
    pixels = np.random.default_rng(0).integers(0, 256, (24, size, size, 3), dtype=np.uint8)
    return model, spec, pixels


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("test_resnet", 32, {}),
        ("resnet10t", 48, THIN),
        ("resnet18", 64, {}),
        ("tf_efficientnet_lite0", 96, {}),
        ("efficientnet_b0", 64, {}),
        ("vit_tiny_patch16_224", 64, {"img_size": 64}),
        ("convnext_atto", 64, {}),
    ],
)
def test_openvino_agrees_with_torch(name: str, size: int, arguments: dict[str, Any]) -> None:
    model, spec, pixels = model_and_pixels(name, size, **arguments)
    expected = TorchForward(model, spec, CPU, bf16=False)(pixels)
    forward = OpenVINOForward(model, spec, threads=1, precision="fp32")
    found = forward(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-4)
    # Any number of images, whatever came before.
    for count in (1, 24, 7):
        np.testing.assert_allclose(forward(pixels[:count]), expected[:count], atol=1e-4)


def test_a_conversion_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's telemetry forks this process for each message."""
    started: list[object] = []
    monkeypatch.setattr(BaseProcess, "start", lambda process: started.append(process))
    model, spec, _ = model_and_pixels("test_resnet", 32)
    OpenVINOForward(model, spec, threads=1, precision="fp32")
    time.sleep(0.5)  # it does so in a thread
    assert not started


INTERRUPTED = """
import signal
from ns_ray.model.engines import OpenVINOForward
from test_engines import model_and_pixels

model, spec, pixels = model_and_pixels("test_resnet", 32)
first, second = (OpenVINOForward(model, spec, threads=1, precision="fp32") for _ in range(2))
second(pixels)
del first, second
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background is deaf
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_ctrl_c_ends_a_process_in_order_after_models_have_come_and_gone() -> None:
    """The second Core of a process left the first one's signal stack, unmapped, in place."""
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr


def test_a_result_is_not_overwritten_by_the_next() -> None:
    model, spec, pixels = model_and_pixels("test_resnet", 32)
    forward = OpenVINOForward(model, spec, threads=1, precision="fp32")
    first = forward(pixels[:2])
    kept = first.copy()
    forward(pixels[2:4])
    np.testing.assert_array_equal(first, kept)


def chosen(runtime: Any = "auto", images: int | None = None, precision: Any = "fp32") -> Any:
    model, spec, pixels = model_and_pixels("resnet10t", 48, **THIN)
    return choose(
        model,
        spec,
        CPU,
        pixels,
        threads=1,
        batch_size=24,
        images=images,
        runtime=runtime,
        precision=precision,
    )


def test_a_short_job_starts_at_once_with_torch() -> None:
    choice = chosen(images=24)
    assert (choice.runtime, choice.note, choice.rates) == ("torch", "", {})


def test_the_user_decides() -> None:
    assert chosen("torch").runtime == "torch"
    choice = chosen("openvino", images=24)
    assert choice.runtime == "openvino"
    assert choice.agreement == 1.0
    assert choice.difference < 1e-4


def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([100.0, 50.0, 60.0, 100.0, 200.0, 150.0])
    monkeypatch.setattr(engines, "_rate", lambda *_, **__: next(rates))
    assert chosen().runtime == "torch"
    faster = chosen()
    assert faster.runtime == "openvino"
    assert faster.facts()["images_per_second_alone"] == {"torch": 100.0, "openvino": 200.0}
    assert "2.0 times torch" in faster.note


@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_openvino_answers_every_image_in_order_whatever_it_takes_at_a_time(chunk: int) -> None:
    model, spec, pixels = model_and_pixels("test_resnet", 32)
    expected = TorchForward(model, spec, CPU, bf16=False)(pixels)
    forward = engines.OpenVINOForward(model, spec, 2, "fp32")
    forward.chunk = chunk
    for count in (1, 8, 9, 17):
        np.testing.assert_allclose(forward(pixels[:count]), expected[:count], atol=1e-4)


def test_what_disagrees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __init__(self, *_: Any) -> None: ...

        def __call__(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.full((len(pixels), 10), 0.1, np.float32)

    monkeypatch.setattr(engines, "OpenVINOForward", Wrong)
    choice = chosen()
    assert choice.runtime == "torch"
    assert "differ by" in choice.note


def test_what_cannot_be_converted_runs_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(engines, "OpenVINOForward", fail)
    choice = chosen()
    assert choice.runtime == "torch"
    assert "no such operator" in choice.note
    with pytest.raises(RuntimeError):
        chosen("openvino")


def test_bf16_is_compared_with_fp32() -> None:
    choice = chosen("torch", images=24, precision="bf16")
    assert choice.precision == "bf16"
    assert 0 < choice.difference < 0.2


def test_a_compiled_model_sees_one_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, spec, pixels = model_and_pixels("test_resnet", 32)
    expected = TorchForward(model, spec, CPU, bf16=False)(pixels)
    seen: list[int] = []

    def compiled(plain: nn.Module, mode: str) -> Any:
        def forward(images: torch.Tensor) -> Any:
            seen.append(len(images))
            return plain(images)

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    forward = TorchForward(model, spec, CPU, bf16=False, compiled_for=10)
    for count in (9, 10, 1, 24):  # the last takes three passes
        np.testing.assert_allclose(forward(pixels[:count]), expected[:count], atol=1e-5)
    assert seen == [10] * 6
