"""Two models on the same images: numpy in, plain numbers out."""

import math
from typing import Any

import numpy as np
from scipy.stats import binom, norm


def better_p(old_correct: np.ndarray[Any, Any], new_correct: np.ndarray[Any, Any]) -> float:
    """One-sided mid-p McNemar test that the new model is better than the old one (the mid-p form
    is less conservative than the exact one: Fagerland et al. 2013).

    Args:
        old_correct: bool [n], whether the old model is right, image by image.
        new_correct: bool [n], the same for the new model on the same images.

    Returns:
        Probability of more gained images than these among those on which the two differ, were
        both equally good, counting an equal number half. 0.5 when they gain as much as they lose.
    """
    gained = int((new_correct & ~old_correct).sum())
    lost = int((old_correct & ~new_correct).sum())
    if gained == lost:
        return 0.5
    changed = binom(gained + lost, 0.5)
    return float(changed.sf(gained) + 0.5 * changed.pmf(gained))


def compare(old_correct: np.ndarray[Any, Any], new_correct: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Two models on the same images.

    Args:
        old_correct, new_correct: bool [n], whether each is right, image by image.

    Returns:
        rows, gained (images only the new model has right), lost, difference in accuracy with its
        interval (see `difference_interval`), and p, see `better_p`.
    """
    rows = len(new_correct)
    gained = int((new_correct & ~old_correct).sum())
    lost = int((old_correct & ~new_correct).sum())
    return {
        "rows": rows,
        "gained": gained,
        "lost": lost,
        "difference": (gained - lost) / rows if rows else 0.0,
        "interval": difference_interval(gained, lost, rows),
        "p": better_p(old_correct, new_correct),
    }


def difference_interval(gained: int, lost: int, rows: int, level: float = 0.95) -> list[float]:
    """Interval of the difference between two models' accuracies on the same images: Wald's, with
    half an image added to each of the four cells (Agresti & Min 2005, "Simple improved confidence
    intervals for comparing matched proportions"). It keeps its width where the two never differ.

    Args:
        gained, lost: images that only the new, only the old model has right.
        rows: all images.
        level: share of the intervals that hold the true difference.

    Returns:
        [low, high].
    """
    images = rows + 2
    mean = (gained - lost) / images
    variance = (gained + lost + 1) / images - mean**2
    reach = float(norm.ppf((1 + level) / 2)) * math.sqrt(variance / images)
    return [max(-1.0, mean - reach), min(1.0, mean + reach)]
