"""A threshold of confidence for each class, from the teacher's predictions of validation images.

Of a class's predictions above a threshold, some are right. Where they are few, their share says
little, so it counts as the lower end of its one-sided 90 % Wilson interval (Wilson 1927): 32
predictions that are all right make 0.95, fewer make less.

    a class         the lowest threshold above which its predictions are right that often
    all together    the lowest threshold above which the predictions of all classes are
    a class that gets there nowhere (few predictions, or wrong ones)
                    that of all together; where above it its own are right less often than they
                    should be, not counting the interval, the lowest threshold where they are not

The threshold of all together that gets there nowhere is the one that gets nearest. No threshold is
higher than the highest confidence of all predictions. Pure: reads nothing.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from ns_ray.selection.policy import Array, Floats, Ints, Mask

Z = float(norm.ppf(0.9))
"""Standard deviations below the share that the interval ends: one-sided 90 %."""


@dataclass(frozen=True, eq=False)
class Thresholds:
    """What validation images say of each class.

    Attributes:
        least: float64 [classes], rows must be above this confidence.
        own: bool [classes], whether it is the class's own, and reaches the precision.
        pooled: the threshold of all classes together.
        reached: lower bound of the precision above it.
    """

    least: Floats
    own: Mask
    pooled: float
    reached: float


def for_precision(
    precision: float,
    lowest: float,
    classes: int,
    predicted: Array,
    confidence: Array,
    correct: Array,
) -> Thresholds:
    """The thresholds above which a teacher is right often enough.

    Args:
        precision: the share of predictions that are to be right.
        lowest: no threshold is below this.
        classes: how many there are.
        predicted: predicted classes [n] of validation images.
        confidence: float32 [n], of these predictions.
        correct: bool [n], whether they are right.
    """
    higher = np.unique(confidence[confidence > np.float32(lowest)])
    looked_at = np.append(np.float32(lowest), higher)
    bound = lower_bound(*_above(looked_at, confidence, correct))
    enough = bound >= precision
    together = int(enough.argmax() if enough.any() else bound.argmax())
    found, own = np.full(classes, together), np.zeros(classes, np.bool_)
    for label in range(classes):
        rows = predicted == label
        right, count = _above(looked_at, confidence[rows], correct[rows])
        enough = lower_bound(right, count) >= precision
        own[label] = enough.any()
        if not own[label]:
            enough = right >= precision * count
            enough[:together] = False
        found[label] = enough.argmax()
    values = np.append(lowest, higher.astype(np.float64))
    return Thresholds(values[found], own, float(values[together]), float(bound[together]))


def lower_bound(right: Ints, count: Ints) -> Floats:
    """Lower ends of one-sided Wilson intervals.

    Args:
        right: int64 [n], how many are right,
        count: int64 [n], of how many; 0 of 0 gives 0.
    """
    count = np.maximum(count, 1)
    share = right / count
    spread = Z * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return np.asarray((share + Z**2 / (2 * count) - spread) / (1 + Z**2 / count))


def _above(thresholds: Array, confidence: Array, correct: Array) -> tuple[Ints, Ints]:
    """How many predictions above each threshold [t] are right, and of how many."""
    order = np.argsort(confidence, kind="stable")
    below = np.searchsorted(confidence[order], thresholds, side="right")
    right = np.append(0, correct[order].cumsum())
    return right[-1] - right[below], len(confidence) - below
