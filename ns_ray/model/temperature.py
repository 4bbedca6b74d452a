"""The temperature that fits a model's logits to labels (Guo et al. 2017). Knows no torch."""

import math
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

COLDEST, HOTTEST = 0.1, 10.0
"""Temperatures that are looked at."""
BELIEF = 0.5
"""Standard deviation of the normal prior of a temperature's logarithm, around 0: what keeps ten
images from saying much. A hundred outweigh it."""

Array = np.ndarray[Any, Any]


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
