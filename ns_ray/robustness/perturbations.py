"""ImageNet-P: a picture that changes little from frame to frame.

Sequences are made in memory, without the video compression of the released ones. Definitions and
constants are those of the benchmark's generators (create_p/make_imagenet_p.py and make_cifar_p.py
of hendrycks/robustness) at difficulty 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from imagecorruptions import corruptions as package
from PIL import Image
from scipy.ndimage import convolve1d, gaussian_filter

from ns_ray.robustness import noise, weather
from ns_ray.robustness.corruptions import seed_for
from ns_ray.robustness.moving import middle, rotate, scale, shear, tilt, translate, zoom_blur
from ns_ray.robustness.sizes import CONSTANTS, FRAMES, Constants, Frames


def sequence(picture: Image.Image, name: str, *, constants: str, key: str, seed: int) -> Any:
    """One perturbation of one picture.

    Args:
        picture: RGB, its short side `Constants.base` pixels.
        name: one of STANDARD or EXTRA.
        constants: imagenet or cifar.
        key: of the image: decides the noise, together with `seed`.

    Returns:
        uint8 [frames, side, side, 3].
    """
    c = CONSTANTS[constants]
    random = np.random.RandomState(seed_for(key, "sequence", name, seed))
    frames = [
        frame if frame.dtype == np.uint8 else np.uint8(np.clip(frame, 0, 1) * 255)
        for frame in _FUNCTIONS[name](picture, c, random)
    ]
    return np.stack(frames)


def _noise(
    change: Callable[..., Any], field: str, picture: Image.Image, c: Constants, random: Any
) -> Frames:
    pixels = middle(picture, c)
    yield pixels
    for _ in range(1, FRAMES):
        yield change(pixels / 255.0, getattr(c, field), random)


def _motion_blur(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    pixels = middle(picture, c)
    for i in range(c.motion_frames):
        angle = (i - c.motion_frames + 1) * c.motion_degrees
        yield np.uint8(np.clip(package._motion_blur(pixels, *c.motion, angle), 0, 255))


def _snow(picture: Image.Image, c: Constants, random: Any) -> Frames:
    x = middle(picture, c) / 255.0
    zoom, radius, sigma = c.snow
    layer = weather.flakes(random.normal(size=x.shape[:2], loc=0.05, scale=0.3), zoom, 0.5)
    for i in range(FRAMES):
        yield weather.snowed(x, layer, radius, sigma, 0.85, i * 4 - 150)


def _brightness(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    x = middle(picture, c) / 255.0
    for i in range(FRAMES):
        yield weather.brightness(x, (i - 15) * c.brightness)


def _gaussian_blur(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    x = middle(picture, c) / 255.0
    first, growth, truncate = c.blur
    for i in range(FRAMES):
        sigma = first + growth * i
        yield gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=truncate)


def _spatter(picture: Image.Image, c: Constants, random: Any) -> Frames:
    x = middle(picture, c) / 255.0
    mean, scale, sigma, threshold, run = c.drops
    liquid = random.normal(size=x.shape[:2], loc=mean, scale=scale)
    liquid = gaussian_filter(liquid, sigma, mode="nearest")
    liquid[liquid < threshold] = 0
    for _ in range(FRAMES):
        yield weather.wet(x, liquid, 0.6)
        # The original's NumPy counts the middle of an even kernel one further than SciPy.
        liquid = convolve1d(liquid, run, axis=0, mode="constant", origin=-1)


STANDARD: dict[str, Callable[..., Frames]] = {
    "gaussian_noise": partial(_noise, noise.gaussian_noise, "gaussian"),
    "shot_noise": partial(_noise, noise.shot_noise, "shot"),
    "motion_blur": _motion_blur,
    "zoom_blur": zoom_blur,
    "snow": _snow,
    "brightness": _brightness,
    "translate": translate,
    "rotate": rotate,
    "tilt": tilt,
    "scale": scale,
}
"""The 10 that count in a mean."""

EXTRA: dict[str, Callable[..., Frames]] = {
    "speckle_noise": partial(_noise, noise.speckle_noise, "speckle"),
    "gaussian_blur": _gaussian_blur,
    "spatter": _spatter,
    "shear": shear,
}

_FUNCTIONS = {**STANDARD, **EXTRA}
