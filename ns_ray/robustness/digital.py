"""Corruptions by processing: color, sharpness, compression, shape; small.py has their constants."""

import io
from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.color import hsv2rgb, rgb2hsv

from ns_ray.robustness.noise import Picture, Random


def contrast(x: Picture, factor: float, _random: Random) -> Picture:
    """Nearer to the mean color."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - mean) * factor + mean)


def saturate(x: Picture, constants: tuple[float, float], _random: Random) -> Picture:
    """Another saturation in HSV."""
    times, add = constants
    hsv = rgb2hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * times + add, 0, 1)
    return np.asarray(hsv2rgb(hsv))


def _image(x: Picture) -> Image.Image:
    return Image.fromarray(np.uint8(np.round(x * 255)))


def jpeg_compression(x: Picture, quality: int, _random: Random) -> Picture:
    """Encoded and decoded."""
    buffer = io.BytesIO()
    _image(x).save(buffer, "JPEG", quality=quality)
    return _exact(np.array(Image.open(buffer)))


def pixelate(x: Picture, share: float, _random: Random) -> Picture:
    """Smaller and back with a box filter (ImageNet-C goes back with nearest neighbors)."""
    height, width = x.shape[:2]
    small = _image(x).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return _exact(np.array(small.resize((width, height), Image.Resampling.BOX)))


def _exact(pixels: Any) -> Picture:
    """Bytes on the scale 0 to 1 so that truncation gives them back."""
    return np.asarray((pixels + 0.25) / 255.0)


def elastic_transform(x: Picture, constants: tuple[float, ...], random: Random) -> Picture:
    """A random affine map, then a random smooth displacement."""
    x = x.astype(np.float32)
    side = x.shape[0]
    alpha, sigma, shift = (side * c for c in constants)
    center = np.array([side, side], np.float32) // 2
    square = side // 3
    corners = np.array(
        [center + square, [center[0] + square, center[1] - square], center - square], np.float32
    )
    moved = corners + random.uniform(-shift, shift, size=corners.shape).astype(np.float32)
    affine = cv2.getAffineTransform(corners, moved)
    x = cv2.warpAffine(x, affine, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    dx, dy = (
        gaussian_filter(random.uniform(-1, 1, (side, side)), sigma, mode="reflect", truncate=3)
        * alpha
        for _ in range(2)
    )
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    where = [rows + dy, columns + dx]
    sample = partial(map_coordinates, coordinates=where, order=1, mode="reflect")
    return np.stack([sample(x[..., channel]) for channel in range(3)], axis=-1)
