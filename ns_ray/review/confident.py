"""Which labels are probably wrong: confident learning (Northcutt, Jiang and Chuang 2021).

A class's threshold is the mean probability that its own images have for it, as said by models that
have not seen them. A label is suspect where the image is below the threshold of its own class and
at or above that of another.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Doubts:
    """What out-of-fold probabilities say of labels. All columns have the same length.

    Attributes:
        label: float32 [n], the probability of the label.
        other: int64 [n], the class that it should be if it is wrong: of those whose thresholds are
            reached the likeliest, else the likeliest of all.
        likely: float32 [n], the probability of that class.
        suspect: bool [n].
    """

    label: Array
    other: Array
    likely: Array
    suspect: Array

    @property
    def margin(self) -> Array:
        """float32 [n]: how much likelier the other class is than the label."""
        return np.asarray(self.likely - self.label)

    @property
    def ranked(self) -> Array:
        """Positions of the suspects, those of the largest margin first."""
        found = np.flatnonzero(self.suspect)
        return np.asarray(found[np.argsort(-self.margin[found], kind="stable")])


def doubts(probs: Array, labels: Array) -> Doubts:
    """Doubt labels.

    Args:
        probs: float32 [n, classes], each row of a model that has not learnt from the image.
        labels: int64 [n].
    """
    n, classes = probs.shape
    rows = np.arange(n)
    own = probs[rows, labels]
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.bincount(labels, own, classes) / np.maximum(counts, 1)
    # A class that no model knows, as its images are all in one fold, is nobody's other class.
    thresholds[thresholds == 0] = np.inf
    others = probs.copy()
    others[rows, labels] = -1.0
    above = np.where(probs >= thresholds, others, -1.0)
    sure = above.max(axis=1) >= 0
    other = np.where(sure, above.argmax(axis=1), others.argmax(axis=1))
    likely = probs[rows, other]
    suspect = sure & (own < thresholds[labels]) & (likely > own)
    return Doubts(own, other, likely, suspect)
