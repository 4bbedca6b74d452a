"""95 % intervals of robustness numbers, from what is kept: counts of mistakes under each corruption
and attack, and the numbers of each sequence.

Which images are wrong under several corruptions is not kept. The interval of a mean over
corruptions, severities or perturbations is the mean of theirs: right if the same images are wrong
under all of them, and otherwise wider than it need be.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ns_ray.scoring import interval


def of_count(hits: float, count: float) -> list[float]:
    """Wilson's interval of a share of images."""
    return interval(np.arange(round(count)) < round(hits))


def of_sequences(shares: Sequence[float]) -> list[float]:
    """Bootstrap interval over sequences of the mean of a share of their frames; Wilson's where each
    sequence has all or none, so that no flip in a few sequences is no certainty."""
    values = np.array(shares)
    return interval(values == 1 if np.isin(values, (0, 1)).all() else values)


def of_mean(parts: Iterable[Sequence[float]]) -> list[float]:
    """Interval of the mean of numbers of the same images, from theirs: see above."""
    low, high = np.mean(list(parts), axis=0)
    return [float(low), float(high)]
