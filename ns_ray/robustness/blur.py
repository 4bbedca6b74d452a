"""Corruptions that blur; small.py has their constants.

Motion blur is that of the package imagecorruptions-imaug, which needs no ImageMagick.
"""

from functools import cache
from typing import Any

import cv2
import numpy as np
from imagecorruptions import corruptions as package
from scipy.ndimage import gaussian_filter
from scipy.ndimage import zoom as scipy_zoom

from ns_ray.robustness.noise import Picture, Random


def blurred(x: Picture, sigma: float) -> Picture:
    """Gaussian blur of each channel, edges repeated (scikit-image's `gaussian`)."""
    return np.asarray(gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


def gaussian_blur(x: Picture, sigma: float, _random: Random) -> Picture:
    """Gaussian blur."""
    return blurred(x, sigma)


def glass_blur(x: Picture, constants: tuple[float, int, int], random: Random) -> Picture:
    """Neighbors within `reach` take each other's place, between two blurs. As in the original, the
    exchange goes one way only: there it is written with views of one array."""
    sigma, reach, times = constants
    pixels: Any = np.uint8(blurred(x, sigma) * 255)
    height, width = pixels.shape[:2]
    places = [
        (h, w) for h in range(height - reach, reach, -1) for w in range(width - reach, reach, -1)
    ]
    for _ in range(times):
        steps = random.randint(-reach, reach, size=(len(places), 2)).tolist()
        for (h, w), (dx, dy) in zip(places, steps, strict=True):
            pixels[h, w] = pixels[h + dy, w + dx]
    return blurred(pixels / 255.0, sigma)


def defocus_blur(x: Picture, constants: tuple[float, float], _random: Random) -> Picture:
    """Convolution with a smoothed disk."""
    radius, alias = constants
    return np.asarray(cv2.filter2D(x, -1, package.disk(radius=radius, alias_blur=alias)))


def motion_blur(x: Picture, constants: tuple[int, float], random: Random) -> Picture:
    """Blur along a line within 45 degrees of the horizontal."""
    radius, sigma = constants
    angle = random.uniform(-45, 45)
    return np.asarray(package._motion_blur(x * 255, radius, sigma, angle) / 255)


def zoom_blur(x: Picture, most: float, _random: Random) -> Picture:
    """Mean of the picture and its enlargements by 1, 1.01, ... below `most`."""
    factors = np.arange(1, most, 0.01)
    return (x + sum(clipped_zoom(x, f) for f in factors)) / (len(factors) + 1)


@cache
def _enlarger(side: int, factor: float) -> Any:
    """Matrix [side, side] that enlarges a column about its middle by linear interpolation, as
    SciPy's `zoom` does, and cuts it to its old length."""
    part = int(np.ceil(side / factor))
    top = (side - part) // 2
    enlarged = scipy_zoom(np.eye(side)[top : top + part], (factor, 1), order=1)
    trim = (len(enlarged) - side) // 2
    return enlarged[trim : trim + side]


def clipped_zoom(x: Picture, factor: float) -> Picture:
    """The middle of a picture, enlarged to its old size."""
    enlarge = _enlarger(x.shape[0], float(factor))
    return np.einsum("ij,jkc,lk->ilc", enlarge, x, enlarge, optimize=True)
