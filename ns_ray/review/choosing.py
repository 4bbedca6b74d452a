"""Which images of the pile a person should label: those between two classes, some of each class
that the teacher sees, no two alike.

The margin is that of Scheffer et al. 2001; the pool that is spread out is that of margins, as in
Citovsky et al. 2021, by farthest-first traversal (Gonzalez 1985) in place of their clusters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

SPARE = 3
"""Images of the least margins for each one that is chosen: so many may be passed over for one that
looks less like those already chosen. Measured in benchmarks/label_next.py."""
LIKELY = 9
"""Classes of an image that are kept, the likeliest first: as many as there are keys 1 to 9."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Candidates:
    """Images that may be asked about. All columns have the same length.

    Attributes:
        keys, shards, digests: str [n]; a digest is that of the encoded image.
        probs: float32 [n, k], the k highest probabilities, falling.
        classes: int64 [n, k], their classes.
    """

    keys: Array
    shards: Array
    digests: Array
    probs: Array
    classes: Array

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def margins(self) -> Array:
        """float32 [n]: how much likelier the first class is than the second."""
        return np.asarray(self.probs[:, 0] - self.probs[:, 1])

    def take(self, rows: Array) -> "Candidates":
        """Some of them, in this order."""
        return Candidates(*(column[rows] for column in vars(self).values()))

    def joined(self, other: "Candidates") -> "Candidates":
        """These and others."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Candidates(*(np.concatenate(pair) for pair in pairs))


def likeliest(probs: Array) -> tuple[Array, Array]:
    """The highest of float32 [n, classes], and their classes: LIKELY columns at most."""
    order = np.argsort(-probs, axis=1, kind="stable")[:, :LIKELY]
    return np.take_along_axis(probs, order, axis=1), order


def closest(found: Candidates, each: int) -> Candidates:
    """Of each predicted class the images of the least margins, at most `each`, and of images that
    are the same byte for byte one; in the order of their margins."""
    order = np.lexsort((found.keys, found.margins))
    order = order[np.sort(np.unique(found.digests[order], return_index=True)[1])]
    return found.take(order[_places(found.classes[order, 0]) < each])


def _places(labels: Array) -> Array:
    """int64 [n]: how many before it have the same label."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order], side="left")
    places = np.empty(len(labels), np.int64)
    places[order] = np.arange(len(labels)) - starts
    return places


def pool(found: Candidates, count: int, spare: int = SPARE) -> Candidates:
    """The candidates that `spread` chooses among, in the order of their margins.

    Args:
        found: as from `closest`, at least `spare` times `count` of each class where there are.
        count: how many will be chosen, as evenly over the predicted classes as these allow.
        spare: how many for each that will be chosen.
    """
    labels = found.classes[:, 0]
    taken = _in_turn(labels, count)
    quotas = dict(zip(*np.unique(labels[taken], return_counts=True), strict=True))
    most = np.array([spare * quotas.get(label, 0) for label in labels], np.int64)
    return found.take(np.flatnonzero(_places(labels) < most))


def _in_turn(labels: Array, count: int) -> Array:
    """Positions of the first image of each class, then the second of each, ...: `count` of them."""
    return np.lexsort((np.arange(len(labels)), _places(labels)))[:count]


def spread(labels: Array, features: Array, count: int) -> list[int]:
    """Choose from a pool: each class in turn, of each the image that is the least like any chosen
    before.

    Args:
        labels: int64 [n], predicted classes, in the order of the margins.
        features: float32 [n, d]; near where images look alike.
        count: how many; all where there are no more.

    Returns:
        Positions, in the order in which they were chosen.
    """
    distance = np.full(len(labels), np.inf)  # to the nearest one chosen
    chosen: list[int] = []
    for label in labels[_in_turn(labels, count)]:
        mine = np.flatnonzero(labels == label)
        best = int(mine[np.argmax(distance[mine])])  # the least margin where all are as far
        chosen.append(best)
        distance = np.minimum(distance, np.square(features - features[best]).sum(axis=1))
        distance[chosen] = -1.0
    return chosen
