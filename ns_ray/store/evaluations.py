"""Scores of a model, image by image, as a light frozen value."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one corpus.

    Attributes:
        path: folder of the predictions.
        scores: what `ns_ray.scoring.scores.score` returns.
        keys: keys of the scored images, sorted.
        correct: whether the model is right about each.
        seconds: how long it took.
    """

    path: str
    scores: dict[str, Any]
    keys: tuple[str, ...]
    correct: tuple[bool, ...]
    seconds: float

    @property
    def top1(self) -> float:
        """Accuracy, a fraction."""
        return float(self.scores["top1"])

    def beside(self, other: "Evaluation") -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Whether this model and the other are right, on the images that both have scored."""
        right = dict(zip(self.keys, self.correct, strict=True))
        both = [
            (right[key], correct)
            for key, correct in zip(other.keys, other.correct, strict=True)
            if key in right
        ]
        pairs = np.array(both, dtype=np.bool_).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]
