"""ImageNet-P: a picture that changes little from frame to frame.

Sequences are made in memory, without the video compression of the released ones. Definitions and
constants are those of the benchmark's generators (create_p/make_imagenet_p.py and make_cifar_p.py
of hendrycks/robustness) at difficulty 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from imagecorruptions import corruptions as package
from PIL import Image
from scipy.ndimage import convolve1d, gaussian_filter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from ns_ray.robustness import small
from ns_ray.robustness.corruptions import seed_for

FRAMES = 31


@dataclass(frozen=True)
class Constants:
    """What differs between the two sizes.

    Attributes:
        base: short side of the picture that is moved, in pixels; its middle is cut out afterwards.
        side: side of a frame in pixels.
        gaussian, shot, speckle: noise, see small.py.
        motion, motion_degrees, motion_frames: radius and sigma of the blur, degrees from one frame
            to the next, frames.
        snow: enlargement of the flakes, radius and sigma of their blur.
        brightness: added to the value in HSV from one frame to the next.
        translate: pixels to the left in the first frame, frames.
        tilt: degrees from one frame to the next.
        scale: size in the first frame, growth from one frame to the next.
        blur: sigma in the first frame, growth, and where the kernel ends in sigmas.
        drops: mean, scale and sigma of the drops, threshold, and how they run down.
    """

    base: int
    side: int
    gaussian: float
    shot: float
    speckle: float
    motion: tuple[int, float]
    motion_degrees: int
    motion_frames: int
    snow: tuple[float, int, float]
    brightness: float
    translate: tuple[int, int]
    tilt: float
    scale: tuple[float, float]
    blur: tuple[float, float, float]
    drops: tuple[float, float, float, float, tuple[float, ...]]


CONSTANTS = {
    "imagenet": Constants(
        base=256,
        side=224,
        gaussian=0.03,
        shot=300,
        speckle=0.05,
        motion=(10, 3),
        motion_degrees=4,
        motion_frames=31,
        snow=(3, 14, 4),
        brightness=0.02,
        translate=(-20, 41),
        tilt=1.0,
        scale=(0.40, 0.025),
        blur=(0.25, 0.035, 6.0),
        drops=(0.65, 0.27, 3.7, 0.69, (0.05, 0.1, 0.15, 0.7)),
    ),
    "cifar": Constants(
        base=32,
        side=32,
        gaussian=0.02,
        shot=700,
        speckle=0.05,
        motion=(6, 1.8),
        motion_degrees=9,
        motion_frames=21,
        snow=(2, 10, 2),
        brightness=0.015,
        translate=(-7, 16),
        tilt=0.75,
        scale=(0.70, 0.02),
        blur=(0.3, 0.015, 7.0),
        drops=(0.6, 0.265, 1.75, 0.7, (0.2, 0.8)),
    ),
}

Frames = Iterator[Any]
"""Floats [side, side, 3] on the scale 0 to 1, or uint8 of the same shape."""


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


def crop(picture: Image.Image, side: int) -> Image.Image:
    """The middle of a picture (torchvision's CenterCrop; what lies outside is black)."""
    left, top = round((picture.width - side) / 2), round((picture.height - side) / 2)
    return picture.crop((left, top, left + side, top + side))


def _pixels(picture: Image.Image, c: Constants) -> Any:
    return np.array(crop(picture, c.side))


def _noise(
    change: Callable[..., Any], field: str, picture: Image.Image, c: Constants, random: Any
) -> Frames:
    pixels = _pixels(picture, c)
    yield pixels
    for _ in range(1, FRAMES):
        yield change(pixels / 255.0, getattr(c, field), random)


def _motion_blur(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    pixels = _pixels(picture, c)
    for i in range(c.motion_frames):
        angle = (i - c.motion_frames + 1) * c.motion_degrees
        yield np.uint8(np.clip(package._motion_blur(pixels, *c.motion, angle), 0, 255))


def _zoom_blur(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    total = _pixels(picture, c).astype(np.float64)
    yield np.uint8(total)
    for i in range(1, FRAMES):
        total += _moved(picture, c, scale=1 + 0.004 * i)
        yield total / 255 / (i + 1)


def _snow(picture: Image.Image, c: Constants, random: Any) -> Frames:
    x = _pixels(picture, c) / 255.0
    zoom, radius, sigma = c.snow
    layer = small.flakes(random.normal(size=x.shape[:2], loc=0.05, scale=0.3), zoom, 0.5)
    for i in range(FRAMES):
        yield small.snowed(x, layer, radius, sigma, 0.85, i * 4 - 150)


def _brightness(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    x = _pixels(picture, c) / 255.0
    for i in range(FRAMES):
        yield small.brightness(x, (i - 15) * c.brightness)


def _moved(
    picture: Image.Image,
    c: Constants,
    *,
    angle: float = 0.0,
    left: int = 0,
    scale: float = 1.0,
    shear: float = 0.0,
    smooth: bool = True,
) -> Any:
    how = InterpolationMode.BILINEAR if smooth else InterpolationMode.NEAREST
    moved = affine(picture, angle, [left, 0], scale, [shear], interpolation=how)
    return _pixels(moved, c)


def _translate(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    first, frames = c.translate
    for i in range(frames):
        yield _moved(picture, c, left=first + i, smooth=False)


def _rotate(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    for i in range(FRAMES):
        yield _moved(picture, c, angle=i - 15)


def _scale(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    first, growth = c.scale
    for i in range(FRAMES):
        yield _moved(picture, c, scale=first + growth * i)


def _shear(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    for i in range(FRAMES):
        yield _moved(picture, c, shear=i - 15)


def _tilt(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    pixels = np.array(picture)
    height, width = pixels.shape[:2]
    for i in range(FRAMES):
        matrix = _tilted(np.deg2rad(c.tilt * (i - 15)), width, height)
        turned = cv2.warpPerspective(pixels, matrix, (width, height))
        yield _pixels(Image.fromarray(turned), c)


def _tilted(angle: float, width: int, height: int) -> Any:
    """Matrix [3, 3] of a picture turned by `angle` radians about both of its axes, seen from as far
    as its diagonal is long."""
    far = np.hypot(width, height)
    sin, cos = np.sin(angle), np.cos(angle)
    to_middle = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1], [0, 0, 1]])
    about_x = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]])
    about_y = np.array([[cos, 0, -sin, 0], [0, 1, 0, 0], [sin, 0, cos, 0], [0, 0, 0, 1]])
    away = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, far], [0, 0, 0, 1]])
    project = np.array([[far, 0, width / 2, 0], [0, far, height / 2, 0], [0, 0, 1, 0]])
    return project @ away @ about_x @ about_y @ to_middle


def _gaussian_blur(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    x = _pixels(picture, c) / 255.0
    first, growth, truncate = c.blur
    for i in range(FRAMES):
        sigma = first + growth * i
        yield gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=truncate)


def _spatter(picture: Image.Image, c: Constants, random: Any) -> Frames:
    x = _pixels(picture, c) / 255.0
    mean, scale, sigma, threshold, run = c.drops
    liquid = random.normal(size=x.shape[:2], loc=mean, scale=scale)
    liquid = gaussian_filter(liquid, sigma, mode="nearest")
    liquid[liquid < threshold] = 0
    for _ in range(FRAMES):
        yield small.wet(x, liquid, 0.6)
        # The original's NumPy counts the middle of an even kernel one further than SciPy.
        liquid = convolve1d(liquid, run, axis=0, mode="constant", origin=-1)


STANDARD: dict[str, Callable[..., Frames]] = {
    "gaussian_noise": partial(_noise, small.gaussian_noise, "gaussian"),
    "shot_noise": partial(_noise, small.shot_noise, "shot"),
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "brightness": _brightness,
    "translate": _translate,
    "rotate": _rotate,
    "tilt": _tilt,
    "scale": _scale,
}
"""The 10 that count in a mean."""

EXTRA: dict[str, Callable[..., Frames]] = {
    "speckle_noise": partial(_noise, small.speckle_noise, "speckle"),
    "gaussian_blur": _gaussian_blur,
    "spatter": _spatter,
    "shear": _shear,
}

_FUNCTIONS = {**STANDARD, **EXTRA}
