"""Corruptions by weather, and drops on the lens; small.py has their constants."""

from functools import cache
from typing import Any

import cv2
import numpy as np
from imagecorruptions import corruptions as package
from scipy.ndimage import gaussian_filter
from skimage.color import hsv2rgb, rgb2hsv

from ns_ray.robustness.blur import clipped_zoom
from ns_ray.robustness.noise import Picture, Random


def fog(x: Picture, constants: tuple[float, float], random: Random) -> Picture:
    """A plasma fractal on top, brightness kept in range."""
    strength, decay = constants
    side = x.shape[0]
    plasma = fractal(1 << (side - 1).bit_length(), decay, random)[:side, :side, None]
    return (x + strength * plasma) * x.max() / (x.max() + strength)


def fractal(side: int, decay: float, random: Random) -> Any:
    """Heights [side, side] from 0 to 1 by the diamond-square method; side is a power of two."""
    heights = np.zeros((side, side))
    step, wibble = side, 100.0

    def middle(total: Any) -> Any:
        return total / 4 + wibble * random.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[0:side:step, 0:side:step]
        squares = corners + np.roll(corners, -1, axis=0)
        squares = squares + np.roll(squares, -1, axis=1)
        heights[half:side:step, half:side:step] = middle(squares)
        diamonds = heights[half:side:step, half:side:step]
        corners = heights[0:side:step, 0:side:step]
        beside = diamonds + np.roll(diamonds, 1, axis=0)
        above = corners + np.roll(corners, -1, axis=1)
        heights[0:side:step, half:side:step] = middle(beside + above)
        beside = diamonds + np.roll(diamonds, 1, axis=1)
        above = corners + np.roll(corners, -1, axis=0)
        heights[half:side:step, 0:side:step] = middle(beside + above)
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


@cache
def _frost(index: int) -> Any:
    """A frost picture of the package at a fifth of its size, RGB 0 to 255. The benchmark never uses
    its sixth."""
    from importlib.resources import as_file, files

    kind = "png" if index < 3 else "jpg"
    with as_file(files("imagecorruptions") / "frost" / f"frost{index + 1}.{kind}") as path:
        picture: Any = cv2.imread(str(path))
    return cv2.resize(picture, (0, 0), fx=0.2, fy=0.2)[..., ::-1]


def frost(x: Picture, constants: tuple[float, float], random: Random) -> Picture:
    """A piece of a picture of frost laid over."""
    keep, add = constants
    texture = _frost(int(random.randint(5)))
    height, width = x.shape[:2]
    top = random.randint(0, texture.shape[0] - height)
    left = random.randint(0, texture.shape[1] - width)
    return keep * x + add * texture[top : top + height, left : left + width] / 255


def snow(x: Picture, constants: tuple[float, ...], random: Random) -> Picture:
    """Blown flakes, and a whiter picture."""
    mean, scale, zoom, threshold, radius, sigma, keep = constants
    layer = flakes(random.normal(size=x.shape[:2], loc=mean, scale=scale), zoom, threshold)
    return snowed(x, layer, int(radius), sigma, keep, random.uniform(-135, -45))


def flakes(noise: Any, zoom: float, threshold: float) -> Any:
    """Noise [side, side], enlarged and cut off below a threshold, as bytes on the scale to 255."""
    layer = clipped_zoom(noise[..., None], zoom)[..., 0]
    layer[layer < threshold] = 0
    return np.floor(np.clip(layer, 0, 1) * 255)


def snowed(x: Picture, layer: Any, radius: int, sigma: float, keep: float, angle: float) -> Picture:
    """A picture made whiter, under flakes that blow along an angle."""
    blown = np.round(package._motion_blur(layer, radius, sigma, angle))[..., None] / 255
    gray = cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2GRAY)[..., None]
    whiter = keep * x + (1 - keep) * np.maximum(x, gray * 1.5 + 0.5)
    return np.asarray(whiter + blown + np.rot90(blown, k=2))


def brightness(x: Picture, add: float, _random: Random | None = None) -> Picture:
    """A larger value in HSV."""
    hsv = rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + add, 0, 1)
    return np.asarray(hsv2rgb(hsv))


def spatter(x: Picture, constants: tuple[float, ...], random: Random) -> Picture:
    """Drops of water (light severities) or mud."""
    mean, scale, sigma, threshold, strength, mud = constants
    liquid = random.normal(size=x.shape[:2], loc=mean, scale=scale)
    liquid = gaussian_filter(liquid, sigma, mode="nearest")
    liquid[liquid < threshold] = 0
    if not mud:
        return wet(x, liquid, strength)
    cover = gaussian_filter((liquid > threshold).astype(np.float32), strength, mode="nearest")
    cover[cover < 0.8] = 0
    return x * (1 - cover[..., None]) + cover[..., None] * np.array([63, 42, 20]) / 255


def wet(x: Picture, liquid: Any, strength: float) -> Picture:
    """A picture under drops, brightest at their edges; `liquid` [side, side] is 0 where dry."""
    drops = (liquid * 255).astype(np.uint8)
    edge: Any = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    edge = cv2.blur(np.minimum(edge, 20), (3, 3)).astype(np.uint8)
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    edge = cv2.filter2D(cv2.equalizeHist(edge), cv2.CV_8U, kernel)
    cover = drops * cv2.blur(edge, (3, 3)).astype(np.float32)
    cover = cover / max(cover.max(), 1e-12) * strength
    turquoise = np.array([175, 238, 238]) / 255
    return np.asarray(x + cover[..., None] * turquoise)
