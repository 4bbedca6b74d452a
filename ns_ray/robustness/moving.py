"""Sequences in which the picture moves: shifted, turned, tilted, sheared or nearer."""

from typing import Any

import cv2
import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from ns_ray.robustness.sizes import FRAMES, Constants, Frames


def crop(picture: Image.Image, side: int) -> Image.Image:
    """The middle of a picture (torchvision's CenterCrop; what lies outside is black)."""
    left, top = round((picture.width - side) / 2), round((picture.height - side) / 2)
    return picture.crop((left, top, left + side, top + side))


def middle(picture: Image.Image, c: Constants) -> Any:
    """The part of a picture that is a frame, uint8 [side, side, 3]."""
    return np.array(crop(picture, c.side))


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
    return middle(moved, c)


def translate(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    """From left to right, a pixel per frame."""
    first, frames = c.translate
    for i in range(frames):
        yield _moved(picture, c, left=first + i, smooth=False)


def rotate(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    """Turned, a degree per frame."""
    for i in range(FRAMES):
        yield _moved(picture, c, angle=i - 15)


def scale(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    """Ever nearer."""
    first, growth = c.scale
    for i in range(FRAMES):
        yield _moved(picture, c, scale=first + growth * i)


def shear(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    """Slanted, a degree per frame."""
    for i in range(FRAMES):
        yield _moved(picture, c, shear=i - 15)


def tilt(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    """Turned about both axes of the picture, in perspective."""
    pixels = np.array(picture)
    height, width = pixels.shape[:2]
    for i in range(FRAMES):
        matrix = _tilted(np.deg2rad(c.tilt * (i - 15)), width, height)
        turned = cv2.warpPerspective(pixels, matrix, (width, height))
        yield middle(Image.fromarray(turned), c)


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


def zoom_blur(picture: Image.Image, c: Constants, _random: Any) -> Frames:
    """Mean of the picture and ever more of its enlargements."""
    total = middle(picture, c).astype(np.float64)
    yield np.uint8(total)
    for i in range(1, FRAMES):
        total += _moved(picture, c, scale=1 + 0.004 * i)
        yield total / 255 / (i + 1)
