"""How foreign an image is: of none of the classes, as far as the teacher's features tell.

The teacher says how near an image is to labeled ones (model/known.py). What that number means
differs from model to model, so it is held against images of the known classes that taught nothing:
0 is the median of those held out, 1 what FOREIGN_LEVEL of them don't exceed. Knows no torch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ns_ray.store import FOREIGN_LEVEL, open_corpus

LABELED, HELD_OUT = 1000, 1000
"""Most labeled images that others are compared with, and most held-out ones: each costs every actor
a forward pass. 1,000 give the limit to 0.7 points of the share that exceeds it."""
FEWEST = 20
"""Held-out images without which there is no limit: of fewer, one would be more than the share that
may exceed it."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Scale:
    """What a teacher says of held-out images.

    Attributes:
        usual: nearness of the median one.
        limit: nearness below which few of them are.
    """

    usual: float
    limit: float

    def foreign(self, nearness: Array) -> Array:
        """float32 [n] from float32 [n]."""
        unit = max(self.usual - self.limit, 1e-6)  # images that are all alike have none
        return ((self.usual - nearness.astype(np.float64)) / unit).astype(np.float32)


def scale_of(nearness: Array) -> Scale | None:
    """From held-out images, float32 [n]; None for fewer than FEWEST."""
    if len(nearness) < FEWEST:
        return None
    usual, limit = np.quantile(nearness, [0.5, 1 - FOREIGN_LEVEL])
    return Scale(float(usual), float(limit))


def images_of(path: str, most: int) -> list[bytes]:
    """Encoded images of a corpus; of more, the first, whose order is random."""
    found: list[bytes] = []
    for _, table in open_corpus(path).scan(["image"]):
        found += [image.as_buffer().to_pybytes() for image in table["image"][: most - len(found)]]
        if len(found) == most:
            break
    return found
