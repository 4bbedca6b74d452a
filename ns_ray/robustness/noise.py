"""Corruptions that are noise; small.py has their constants."""

from typing import Any

import numpy as np

Picture = Any
"""Floats [side, side, 3] on the scale 0 to 1, a NumPy array."""
Random = np.random.RandomState


def gaussian_noise(x: Picture, scale: float, random: Random) -> Picture:
    """Independent normal noise."""
    return x + random.normal(size=x.shape, scale=scale)


def shot_noise(x: Picture, rate: float, random: Random) -> Picture:
    """Poisson noise, `rate` photons at full brightness."""
    return np.asarray(random.poisson(x * rate) / float(rate))


def impulse_noise(x: Picture, amount: float, random: Random) -> Picture:
    """Salt and pepper in equal parts, on each channel by itself."""
    hit = random.uniform(size=x.shape) < amount
    return np.where(hit, (random.uniform(size=x.shape) < 0.5).astype(float), x)


def speckle_noise(x: Picture, scale: float, random: Random) -> Picture:
    """Normal noise in proportion to the value."""
    return x + x * random.normal(size=x.shape, scale=scale)
