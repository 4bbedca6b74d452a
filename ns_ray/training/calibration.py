"""The temperature of a trained model, fitted on validation images (Guo et al. 2017).

It is divided into the classifier's weights, so that whoever loads the model (labeling, scoring,
ONNX, a server, timm) gets probabilities that are as sure as they are right. No answer changes.
Knows nothing about Ray.
"""

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import nn

from ns_ray.store import Corpus
from ns_ray.training.forward import forward

COLDEST, HOTTEST = 0.1, 10.0
"""Temperatures that are looked at."""
BELIEF = 0.5
"""Standard deviation of the normal prior of a temperature's logarithm, around 0: what keeps ten
images from saying much. A hundred outweigh it."""

Array = np.ndarray[Any, Any]


def calibrate(model: nn.Module, corpus: Corpus, device: torch.device) -> float | None:
    """Divide a model's logits by the temperature that labeled images like best, for good.

    Args:
        model: of timm, on the device; fp32.
        corpus: labeled images that it was not trained on.
        device: where the forward passes are made.

    Returns:
        The temperature; None, and the model as it was, where its classifier is not one linear
        layer.
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear | nn.Conv2d):
        return None
    temperature = fit_temperature(*forward(model, corpus, device, model))
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.div_(temperature)
    return temperature


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature with the least log loss, drawn towards 1 where images are few.

    Args:
        logits: float32 [n, classes].
        labels: int64 [n].
    """
    logits = logits.astype(np.float64)
    right = logits[np.arange(len(labels)), labels]

    def loss(log: float) -> float:
        scale = math.exp(-log)
        nll = logsumexp(logits * scale, axis=1) - right * scale
        return float(nll.sum()) + 0.5 * (log / BELIEF) ** 2

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)
