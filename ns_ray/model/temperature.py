"""The temperature that fits a model's logits to labels (Guo et al. 2017). Knows no torch."""

import math
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

COLDEST, HOTTEST = 0.1, 10.0
"""Temperatures that are looked at."""
BELIEF, BELIEF_PRETRAINED = 0.5, 0.15
"""Standard deviation of the normal prior of a temperature's logarithm, around 0: what keeps ten
images from saying much. A hundred outweigh the first. A few steps from pretrained weights leave
a model near 1, and a hundred images see that less well than it is known: docs/decisions/0033."""

Array = np.ndarray[Any, Any]


def fit_temperature(logits: Array, labels: Array, belief: float = BELIEF) -> float:
    """The temperature with the least log loss, drawn towards 1 where images are few.

    Args:
        logits: float32 [n, classes].
        labels: int64 [n].
        belief: standard deviation of the temperature's logarithm before an image is seen.
    """
    logits = logits.astype(np.float64)
    right = logits[np.arange(len(labels)), labels]

    def loss(log: float) -> float:
        scale = math.exp(-log)
        nll = logsumexp(logits * scale, axis=1) - right * scale
        return float(nll.sum()) + 0.5 * (log / belief) ** 2

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)
