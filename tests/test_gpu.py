"""On a real CUDA device: the CPU's answers, whole batches, resumed trainings, and the whole tool.
Logic that needs no device is tested beside the code it belongs to.

    pytest -m gpu

Without a device each test skips itself.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train
import torch
from broken_files import jpeg
from served import make_bundle
from test_engines import model_and_pixels
from test_recipes import learner_of
from test_serving_ray import ns_ray_serve
from test_train import ONE, Data
from tiny import whole_run

from ns_ray import compute
from ns_ray.compute.resources import Pool
from ns_ray.config import LabelConfig, PredictConfig, load_recipe, train_config
from ns_ray.data.packing import pack
from ns_ray.errors import ImageError, StageError
from ns_ray.labeling import pseudo_label
from ns_ray.model import training_cost
from ns_ray.model.engines import TOLERANCE, TorchForward
from ns_ray.model.predictor import Predictor
from ns_ray.store.bundles import open_bundle
from ns_ray.training.job import lane_sizes
from ns_ray.training.loader import Batch, DeviceBatch, copied_ahead
from ns_ray.training.rows import Sizes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
data = test_train.data


@pytest.fixture
def full_fp32() -> Iterator[None]:
    """fp32 that multiplies in fp32: by default convolutions use TF32, with 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


# -------------------------------------------------------------------------------- forward passes

MODELS: list[tuple[str, int, dict[str, Any]]] = [
    ("resnet18", 64, {}),
    ("efficientnet_b0", 64, {}),
    ("vit_tiny_patch16_224", 64, {"img_size": 64}),
]


@pytest.mark.parametrize(("name", "size", "arguments"), MODELS)
def test_answers_are_those_of_the_cpu(name: str, size: int, arguments: dict[str, Any]) -> None:
    model, spec, pixels = model_and_pixels(name, size, **arguments)
    expected = TorchForward(model, spec, CPU, bf16=False)(pixels)
    for precision, atol in TOLERANCE.items():
        found = TorchForward(model, spec, CUDA, bf16=precision == "bf16")(pixels)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=precision)
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.usefixtures("full_fp32")
def test_fp32_differs_by_rounding_only() -> None:
    model, spec, pixels = model_and_pixels("efficientnet_b0", 64)
    expected = TorchForward(model, spec, CPU, bf16=False)(pixels)
    found = TorchForward(model, spec, CUDA, bf16=False)(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_compiled_model_takes_any_number_of_images() -> None:
    """CUDA graphs have one size, and write each result where the one before it was."""
    model, spec, pixels = model_and_pixels("resnet18", 64)
    expected = TorchForward(model, spec, CPU, bf16=False)(pixels)
    compiled = TorchForward(model, spec, CUDA, bf16=False, compiled_for=16)
    for count in (5, 24, 16, 1):  # smaller first, then larger than what it is compiled for
        np.testing.assert_allclose(compiled(pixels[:count]), expected[:count], atol=5e-3)
    begun = [compiled.start(pixels[at : at + 8]) for at in (0, 8, 16)]
    found = np.concatenate([finish() for finish in begun])
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_an_image_that_cannot_be_read_does_not_shift_the_answers(tmp_path: Path) -> None:
    folder = str(make_bundle(tmp_path / "bundle"))
    images = [jpeg(seed) for seed in range(50)]
    images[7] = b"no image"
    config = PredictConfig(precision="fp32")
    expected = Predictor(folder, device="cpu", batch_size=8, config=config).predict(images)
    predictor = Predictor(folder, batch_size=8, config=config)
    assert predictor.device.type == "cuda"
    found = predictor.predict(images)
    assert isinstance(found.pop(7), ImageError)
    expected.pop(7)
    np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=2e-3)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- training


def test_no_batch_is_handed_out_half_copied() -> None:
    """Under load: the device multiplies large matrices while batches come."""
    rng = np.random.default_rng(0)
    sent: list[tuple[int, int, float]] = []

    def made() -> Iterator[Batch]:
        for n in range(60):
            images = rng.integers(0, 256, (256, 96, 96, 3), dtype=np.uint8)
            labels = np.full(128, n, np.int64)
            targets = rng.random((128, 10), dtype=np.float32)
            sent.append((int(images.sum(dtype=np.int64)), n, float(targets.sum(dtype=np.float64))))
            yield Batch(images, labels, targets)

    work = torch.randn(4096, 4096, device=CUDA)
    found = []
    for batch in copied_ahead(made(), CUDA):
        assert batch.targets is not None
        images = batch.images.sum(dtype=torch.int64)
        found.append((images, batch.labels.max(), batch.targets.sum(dtype=torch.float64)))
        for _ in range(20):
            work = work @ work
            work = work / work.norm()
    assert len(found) == 60
    for (images, label, targets), expected in zip(found, sent, strict=True):
        assert (int(images), int(label)) == expected[:2]
        assert float(targets) == pytest.approx(expected[2], rel=1e-9)


STILL: dict[str, Any] = {
    "epochs": 4,
    "precision": "fp32",
    "noise": {"dropout": 0.0, "stochastic_depth": 0.0, "randaugment": "rand-m3-n1-p0.5"},
}
"""20 steps without what is drawn on the device."""
ON_CPU = replace(ONE, loaders=0, in_process=True)
ON_GPU = replace(ON_CPU, gpus=1.0)


@pytest.mark.usefixtures("full_fp32")
def test_twenty_steps_are_those_of_the_cpu(data: Data, tmp_path: Path) -> None:
    here = test_train.fit(data, tmp_path / "cpu", ON_CPU, **STILL)
    there = test_train.fit(data, tmp_path / "gpu", ON_GPU, **STILL)
    assert list(there.rows) == list(here.rows) == list(range(1, 21))
    assert open_bundle(here.out).provenance["device"] == "x86_64"
    assert open_bundle(there.out).provenance["device"] == torch.cuda.get_device_name()
    np.testing.assert_allclose(there.losses, here.losses, rtol=2e-2, atol=1e-3)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(data: Data, tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 9:
            raise RuntimeError("stopped")

    whole = test_train.fit(data, tmp_path / "whole", ON_GPU, epochs=4)
    with pytest.raises(StageError, match="stopped"):
        test_train.fit(data, tmp_path / "again", ON_GPU, on_row=stop, epochs=4)
    again = test_train.fit(data, tmp_path / "again", ON_GPU, epochs=4)
    assert next(iter(again.rows.values()))["resumed_at"] == 8
    compared = [row for row, step in zip(whole.losses, whole.rows, strict=True) if step > 8]
    np.testing.assert_allclose(again.losses, compared, rtol=5e-2, atol=5e-3)
    for name, weights in again.weights.items():
        torch.testing.assert_close(weights, whole.weights[name], rtol=5e-2, atol=5e-3)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_their_own_talk_over_nccl(
    workers: int, data: Data, ray_local: Any, tmp_path: Path
) -> None:
    if torch.cuda.device_count() < workers:
        pytest.skip(f"needs {workers} CUDA devices")
    apart = replace(ONE, count=workers, gpus=1.0)
    found = test_train.fit(data, tmp_path, apart, accumulate=2 // workers, **STILL)
    assert open_bundle(found.out).provenance["device"] == torch.cuda.get_device_name()
    here = test_train.fit(data, tmp_path / "here", ON_GPU, **STILL)
    np.testing.assert_allclose(found.losses, here.losses, rtol=5e-2, atol=5e-3)


def test_the_largest_student_needs_what_plan_says(record_property: Any) -> None:
    """EfficientNet-L2 at 475 px: two steps, against the estimate for this worker within 15 %:
    it gets no more than that, and what is alive at its peak is not much less."""
    config = load_recipe("paper/efficientnet-l2")
    student = config.students[-1]
    train = train_config(config.train, student).model_copy(update={"precision": "bf16"})
    rows = sum(lane_sizes(train, config.resources.num_workers, True))
    estimate = training_cost(student, train, classes=1000, rows=rows, bf16=True)
    assert estimate.bytes(cuda=True) < torch.cuda.mem_get_info()[0]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    # Where memory is plenty, the allocator keeps more than is needed: here it is not.
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(1.15 * estimate.bytes(cuda=True) / total)
    learner = learner_of(student, train, classes=1000, device="cuda")
    learner.train_mode()
    labeled = rows // (1 + round(train.unlabeled_ratio))
    sizes = Sizes(labeled, rows - labeled, learner.size)
    for step in range(2):
        images = torch.randint(0, 256, (rows, 475, 475, 3), dtype=torch.uint8, device=CUDA)
        labels = torch.randint(0, 1000, (labeled,), device=CUDA)
        targets = torch.rand(rows - labeled, 1000, device=CUDA).softmax(dim=1)
        learner.optimizer.zero_grad(set_to_none=True)
        losses = learner.backward(learner.model, DeviceBatch(images, labels, targets), sizes)
        learner.update(step)
    assert torch.isfinite(losses[0])
    live, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    record_property("rows", rows)
    record_property("live", live)
    record_property("reserved", reserved)
    record_property("estimate", estimate.bytes(cuda=True))
    torch.cuda.set_per_process_memory_fraction(1.0)
    del learner, losses
    torch.cuda.empty_cache()
    assert live == pytest.approx(estimate.bytes(cuda=True), rel=0.15)


# --------------------------------------------------------------------------------- the whole tool


def test_the_devices_are_found() -> None:
    found = compute.local_machine()
    assert found is not None
    assert found.gpus == torch.cuda.device_count()


@pytest.mark.ray
def test_an_actor_labels_like_the_cpu(ray_local: Any, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(24):
        (folder / f"{seed:02d}.jpg").write_bytes(jpeg(seed))
    corpus = pack(str(folder), out=f"{tmp_path}/corpus", classes=(), rows_per_shard=8)
    bundle = open_bundle(str(make_bundle(tmp_path / "bundle")))
    config = PredictConfig(precision="fp32", runtime="torch")
    tables = {}
    for name, pool in {
        "cpu": Pool(1, 1.0, 0.0, in_process=True),
        "here": Pool(1, 1.0, 1.0, in_process=True),
        "actor": Pool(1, 1.0, 1.0),
    }.items():
        labels = pseudo_label(
            LabelConfig(batch_size=4),
            bundle,
            corpus,
            pool=pool,
            out=f"{tmp_path}/{name}",
            title=name,
            predict=config,
        )
        rows = [row for shard in labels.files for row in labels.read(shard).to_pylist()]
        tables[name] = {row["key"]: row["confidence"] for row in rows}
        assert len(tables[name]) == 24
    for name in ("here", "actor"):
        for key, value in tables["cpu"].items():
            assert tables[name][key] == pytest.approx(value, abs=2e-3), (name, key)


@pytest.mark.ray
def test_a_whole_run_uses_the_gpu(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    assert run.process.returncode == 0, run.process.stdout + run.process.stderr
    result = json.loads((run.root / "result.json").read_text())
    bundle = open_bundle(str(run.root / "model"))
    assert bundle.provenance["device"] == torch.cuda.get_device_name(), result
    assert (run.root / "report.html").exists()


@pytest.mark.ray
def test_a_server_answers_like_the_cpu(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (expected,) = Predictor(str(folder), device="cpu").predict([jpeg(1)])
    assert not isinstance(expected, ImageError)
    options = ["--bundle", str(folder), "--set", "serve.gpus=1", "--set", "serve.cpus=1"]
    with ns_ray_serve(tmp_path, *options, "--set", "serve.predict.precision=fp32") as (server, _):
        assert server.get("/info").json["device"].startswith("cuda")
        answer = {item["label"]: item["score"] for item in server.post_image(jpeg(1)).json}
    for name, value in zip(("blue", "green", "red"), expected, strict=True):
        assert answer[name] == pytest.approx(float(value), abs=2e-3)
