"""Mean corruption error, mCE, flip rates and mFR from counts of mistakes. Fractions everywhere.

mean_corruption_error   plain mean over the corruptions and severities
relative                mean over the corruptions of error / error of a baseline
mce                     the same with AlexNet as the baseline: for ImageNet's 1000 classes only
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ns_ray.robustness.corruptions import FAMILY, SEVERITIES, STANDARD

ALEXNET_ERRORS: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
"""Top-1 errors of torchvision's AlexNet on ImageNet-C at 224 pixels, by severity (issue 10 of
hendrycks/robustness). Their means are the normalizers of that repository, to 1e-7."""

ALEXNET_FLIPS = {
    "gaussian_noise": 0.2365,
    "shot_noise": 0.3006,
    "motion_blur": 0.0930,
    "zoom_blur": 0.0594,
    "snow": 0.1193,
    "brightness": 0.0489,
    "translate": 0.1101,
    "rotate": 0.1310,
    "tilt": 0.0705,
    "scale": 0.2353,
}
"""Flip probabilities of AlexNet on ImageNet-P, as quoted in the literature. The maintainers' table
(issue 49 of hendrycks/robustness) could not be read: check them before you publish an mFR."""

PERTURBATIONS = tuple(ALEXNET_FLIPS)
"""The 10 that count in a mean."""


def corruption_rows(errors: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """What `evaluation.json` says of each corruption: family, error by severity, mean.

    Args:
        errors: corruption -> severity -> top-1 error.
    """
    return {
        name: {
            "family": FAMILY[name],
            "error": {str(severity): by[severity] for severity in sorted(by)},
            "mean": float(np.mean(list(by.values()))),
        }
        for name, by in errors.items()
    }


def mean_error(rows: Mapping[str, Any]) -> float | None:
    """Plain mean over the 15 corruptions; None where one of them is missing."""
    if not set(STANDARD) <= rows.keys():
        return None
    return float(np.mean([rows[name]["mean"] for name in STANDARD]))


def relative_error(rows: Mapping[str, Any], baseline: Mapping[str, Any]) -> float | None:
    """Mean over the 15 corruptions of the sum of errors over that of a baseline (mCE, with another
    model than AlexNet below the line); None where the baseline makes no mistake."""
    if not set(STANDARD) <= rows.keys() & baseline.keys():
        return None
    below = [baseline[name]["mean"] for name in STANDARD]
    if min(below) == 0.0:
        return None
    above = [rows[name]["mean"] for name in STANDARD]
    return float(np.mean(np.array(above) / np.array(below)))


def mce(rows: Mapping[str, Any]) -> float | None:
    """mCE: for ImageNet's 1000 classes with its constants; needs all 15 at all 5 severities."""
    every = {str(severity) for severity in SEVERITIES}
    if not all(name in rows and set(rows[name]["error"]) == every for name in STANDARD):
        return None
    alexnet = {name: {"mean": float(np.mean(e))} for name, e in ALEXNET_ERRORS.items()}
    return relative_error(rows, alexnet)


def flip_rate(name: str, predictions: Any) -> float:
    """How often the predicted class differs from the frame before; in noise sequences, whose frames
    have no order, from the first frame.

    Args:
        name: of the perturbation.
        predictions: int [sequences, frames].

    Returns:
        Mean over frames and sequences, 0 to 1.
    """
    predictions = np.asarray(predictions)
    before = predictions[:, :1] if "noise" in name else predictions[:, :-1]
    return float((predictions[:, 1:] != before).mean())


def perturbed_mean(rows: Mapping[str, Mapping[str, float | None]], number: str) -> float | None:
    """Plain mean of a number (flip_rate, top1) over the 10 perturbations; None where it is missing
    for one of them."""
    values = [rows[name][number] for name in PERTURBATIONS if name in rows]
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if len(found) == len(PERTURBATIONS) else None


def mfr(rates: Mapping[str, float], baseline: Mapping[str, float] | None = None) -> float | None:
    """Mean over the 10 perturbations of flip rate over that of AlexNet, or of another baseline."""
    below = ALEXNET_FLIPS if baseline is None else baseline
    if not set(PERTURBATIONS) <= rates.keys() & below.keys() or min(below.values()) == 0.0:
        return None
    return float(np.mean([rates[name] / below[name] for name in PERTURBATIONS]))
