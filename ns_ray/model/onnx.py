"""A bundle as an ONNX file, checked against torch by onnxruntime before it is left behind.

Beside it, `<name>.json` holds what the file cannot: class names and preprocessing.
"""

import json
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ns_ray import store
from ns_ray.data import Normalize, Preprocess, smooth_pixels
from ns_ray.errors import ConfigError, StageError, first_line
from ns_ray.model.bundle import load
from ns_ray.store import open_bundle

INPUT, OUTPUT = "input", "logits"
OPSET = 18
TOLERANCE = 1e-3
"""Largest difference of any probability to fp32 torch that an export may show."""
COMPARED = 16
"""Images of the comparison."""


@dataclass(frozen=True)
class Exported:
    """What was written: the file, and how far its probabilities are from torch's."""

    path: str
    difference: float
    agreement: float


def export(bundle: str, out: str) -> Exported:
    """Write a bundle's model as ONNX: float32 `input` [n, 3, size, size], normalized, to `logits`
    [n, classes], for any n.

    Raises:
        ConfigError: there is no such bundle, or the packages for ONNX are missing.
        StageError: the model cannot be exported, or the file's answers differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"exporting needs the package {error.name}; install it with: pip install 'ns-ray[onnx]'"
        ) from None
    opened = open_bundle(bundle)
    model, preprocess = load(opened)
    path = store.absolute(out)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        _write(model, preprocess, file)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        difference, agreement = _compare(model, preprocess, session)
        if difference > TOLERANCE:
            raise StageError(
                f"the exported probabilities differ from torch's by {difference:.2g}, more than "
                f"{TOLERANCE:g}; nothing was written"
            )
        data = file.read_bytes()
    facts = {
        "architecture": opened.architecture,
        "version": opened.fingerprint,
        "labels": list(opened.classes),
        "preprocess": {"layout": "NCHW", "color": "RGB", **asdict(preprocess)},
        "input": INPUT,
        "output": OUTPUT,
        "opset": OPSET,
        "difference_to_torch_fp32": difference,
        "top1_agreement": agreement,
        "versions": store.versions(),
    }
    store.write_bytes(path, data)
    store.write_bytes(
        path.removesuffix(".onnx") + ".json",
        (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode(),
    )
    return Exported(path, difference, agreement)


def _write(model: nn.Module, spec: Preprocess, file: Path) -> None:
    example = torch.zeros(2, 3, spec.size, spec.size)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (example,),
                str(file),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch raises almost anything on what it cannot export
        raise StageError(f"torch cannot export this model: {first_line(error)}") from error


def _compare(model: nn.Module, spec: Preprocess, session: Any) -> tuple[float, float]:
    """Largest difference of a probability to torch, and the share of images with the same top-1;
    for a batch and for one image alone."""
    pixels = torch.from_numpy(smooth_pixels(COMPARED, spec.size))
    with torch.inference_mode():
        images = Normalize(spec, torch.device("cpu"))(pixels)
        expected = model(images).softmax(dim=1).numpy()
    given = images.contiguous().numpy()
    found = [session.run([OUTPUT], {INPUT: part})[0] for part in (given[:1], given[1:])]
    probs = torch.from_numpy(np.concatenate(found)).softmax(dim=1).numpy()
    same = probs.argmax(axis=1) == expected.argmax(axis=1)
    return float(np.abs(probs - expected).max()), float(same.mean())
