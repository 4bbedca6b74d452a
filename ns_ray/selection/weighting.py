"""How much each selected image counts: the truncated Gaussian of SoftMatch (Chen et al. 2023,
arXiv 2301.10921).

    weight = 1                                              at or above the mean confidence
             exp(-(confidence - mean)^2 / (2 variance / 4)) below it

Mean and variance are those of all confidences of the pile (in a generation they stay; there they
are running averages, the teacher being the model itself). The 4 is from the authors' code, where it
is `n_sigma` squared. As there, weights are not normalized: the loss is the mean over the images of
weight times cross entropy, so that a pile of which the teacher is unsure teaches less. Pure.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ns_ray.selection.policy import STEPS, Array, Statistics

SIGMAS = 2.0
"""The authors' `n_sigma`."""


@dataclass(frozen=True)
class Gaussian:
    """Of the confidences of the pile.

    Attributes:
        mean: their mean.
        variance: their variance; 0 weighs all 1.
    """

    mean: float
    variance: float

    def facts(self) -> dict[str, Any]:
        """What a selection with weights says of them."""
        return {"weights": {"mean": self.mean, "variance": self.variance}}

    def weights(self, confidence: Array) -> Array:
        """float32 [n] from float32 [n], from 0 to 1."""
        below = np.minimum(confidence.astype(np.float64) - self.mean, 0)
        if self.variance == 0:
            return np.ones(len(confidence), np.float32)
        return np.exp(-(below**2) / (2 * self.variance / SIGMAS**2)).astype(np.float32)


def gaussian_of(statistics: Statistics) -> Gaussian:
    """Of all rows, at least one."""
    rows = int(statistics.coarse.sum())
    variance = (rows * statistics.squares - statistics.total**2) / (rows * STEPS) ** 2
    return Gaussian(statistics.total / (rows * STEPS), variance)
