"""Two models on the same images: numpy in, plain numbers out."""

from typing import Any

import numpy as np
from scipy.stats import binom

from ns_ray.scoring.scores import interval


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
        bootstrap interval, and p, see `better_p`.
    """
    gain = new_correct.astype(np.float64) - old_correct.astype(np.float64)
    return {
        "rows": len(gain),
        "gained": int((gain > 0).sum()),
        "lost": int((gain < 0).sum()),
        "difference": float(gain.mean()) if len(gain) else 0.0,
        "interval": interval(gain) if len(gain) else [0.0, 0.0],
        "p": better_p(old_correct, new_correct),
    }
