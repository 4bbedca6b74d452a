"""CIFAR-C's corruptions, for pictures of 32 pixels: ImageNet-C's with gentler constants.

No package has them. Constants and definitions are those of the benchmark's generator (create_c/
make_cifar_c.py of hendrycks/robustness); as there, each function takes and returns values on the
scale 0 to 1, and what has a constant for each severity takes that constant. Motion blur is that of
the package imagecorruptions-imaug, which needs no ImageMagick. Random numbers come from a legacy
`RandomState`, whose streams NumPy has promised never to change.
"""

import io
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
from imagecorruptions import corruptions as package
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.ndimage import zoom as scipy_zoom
from skimage.color import hsv2rgb, rgb2hsv

Picture = Any
"""Floats [side, side, 3] on the scale 0 to 1, a NumPy array."""
Random = np.random.RandomState

CONSTANTS: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "elastic_transform": (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
}
"""By severity. Elastic: displacement, its smoothness, affine shift, each times the side."""


def corrupt_small(pixels: Any, name: str, severity: int, random: Random) -> Any:
    """One corruption: uint8 [side, side, 3] -> the same."""
    change: Callable[[Any, Any, Random], Picture] = _FUNCTIONS[name]
    changed = change(pixels / 255.0, CONSTANTS[name][severity - 1], random)
    return np.uint8(np.clip(changed, 0.0, 1.0) * 255)


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


def contrast(x: Picture, factor: float, _random: Random) -> Picture:
    """Nearer to the mean color."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - mean) * factor + mean)


def brightness(x: Picture, add: float, _random: Random | None = None) -> Picture:
    """A larger value in HSV."""
    hsv = rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + add, 0, 1)
    return np.asarray(hsv2rgb(hsv))


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


_FUNCTIONS: dict[str, Callable[..., Picture]] = {
    function.__name__: function
    for function in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
        speckle_noise,
        gaussian_blur,
        spatter,
        saturate,
    )
}
