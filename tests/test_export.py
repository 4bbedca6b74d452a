"""ONNX files, and that all ways through a model give the same answer."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from broken_files import encoded, jpeg, odd_but_good, picture
from served import CLASSES, make_bundle, serving

from ns_ray.config.labeling import PredictConfig
from ns_ray.data.images import eval_pixels
from ns_ray.errors import ImageError, StageError
from ns_ray.model import onnx as exporting
from ns_ray.model.bundle import load
from ns_ray.model.predictor import Predictor
from ns_ray.store.bundles import open_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.mark.slow
def test_64_images_get_the_same_answer_everywhere(folder: Path, tmp_path: Path) -> None:
    kinds = ("JPEG", "PNG", "WEBP", "BMP")
    images = [encoded(picture(i, 60 + i, 50), kinds[i % 4]) for i in range(64)]

    def labels(config: PredictConfig) -> np.ndarray:
        found = Predictor(str(folder), config=config, device="cpu").predict(images)
        return np.stack([probs for probs in found if not isinstance(probs, ImageError)])

    exact = PredictConfig(runtime="torch", precision="fp32")
    labeling = labels(exact)

    # As training evaluates: timm's model and our preprocessing, by hand.
    model, spec = load(open_bundle(str(folder)))
    pixels = np.stack([eval_pixels(image, spec) for image in images])
    scaled = (pixels / 255.0 - spec.mean) / spec.std
    batch = torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32)).contiguous()
    with torch.inference_mode():
        evaluation = model(batch).softmax(dim=1).numpy()

    exported = exporting.export(str(folder), str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": batch.numpy()})
    from_onnx = torch.from_numpy(logits).softmax(dim=1).numpy()

    with serving(folder) as server:
        answers = [
            server.post_image(image, kind="application/octet-stream").json for image in images
        ]
    http = np.array(
        [[{a["label"]: a["score"] for a in one}[c] for c in CLASSES] for one in answers]
    )

    openvino = PredictConfig(runtime="openvino", precision="fp32")
    fast = labels(openvino)
    for other in (labeling, from_onnx, http, fast):
        np.testing.assert_allclose(other, evaluation, atol=1e-3)
        assert (other.argmax(axis=1) == evaluation.argmax(axis=1)).all()


@pytest.mark.slow
def test_the_file_takes_any_batch_and_the_rest_is_beside_it(folder: Path, tmp_path: Path) -> None:
    exported = exporting.export(str(folder), str(tmp_path / "deep" / "m.onnx"))
    assert exported.difference <= 1e-3
    assert exported.agreement == 1.0
    onnx.checker.check_model(exported.path)
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    for n in (1, 5):
        (logits,) = session.run(None, {"input": np.zeros((n, 3, 32, 32), np.float32)})
        assert logits.shape == (n, 3)
    facts = json.loads((tmp_path / "deep" / "m.json").read_text())
    assert facts["labels"] == list(CLASSES)
    assert facts["preprocess"]["size"] == 32
    assert facts["preprocess"]["color"] == "RGB"


@pytest.mark.slow
def test_a_file_whose_answers_differ_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_compare", lambda *_: (0.5, 0.9))
    with pytest.raises(StageError, match=r"differ from torch's by 0\.5"):
        exporting.export(str(folder), str(tmp_path / "model.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_every_awkward_file_has_an_answer(folder: Path) -> None:
    files = [*odd_but_good().values(), jpeg(1)]
    exact = PredictConfig(runtime="torch", precision="fp32")
    for answer in Predictor(str(folder), config=exact, device="cpu").predict(files):
        assert isinstance(answer, np.ndarray)
