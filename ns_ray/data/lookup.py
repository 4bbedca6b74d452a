"""RandAugment's operations on the values of an image, for small images.

Pillow makes a table of 256 values for each channel in Python: on an image of 32 px ten times the
work of its pixels. Here tables are made once for each argument, and in fewer steps where they
depend on the image. The pixels are Pillow's (tests/test_lookup.py), names and signatures those of
timm's `auto_augment`.
"""

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image

Table = tuple[int, ...]
"""What becomes of the values 0 to 255 of one channel, or of three, one after the other."""

SAME: Table = tuple(range(256))


def looked_up(image: Image.Image, table: Table) -> Image.Image:
    """An RGB image with each value looked up: `Image.point`, which rounds all values of its table
    each time."""
    image.load()
    made: Image.Image = image._new(image.im.point(table if len(table) == 768 else 3 * table, None))
    return made


def invert(image: Image.Image, **_: Any) -> Image.Image:
    """255 minus each value."""
    return looked_up(image, SAME[::-1])


def solarize(image: Image.Image, thresh: int, **_: Any) -> Image.Image:
    """Values from `thresh` on inverted."""
    return looked_up(image, _solarized(thresh))


def solarize_add(image: Image.Image, add: int, thresh: int = 128, **_: Any) -> Image.Image:
    """Values below `thresh` raised by `add`, at most to 255."""
    return looked_up(image, _raised(add, thresh))


def posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Only the highest bits of each value; none of them is black. Pillow 13 refuses to keep none,
    which timm's `inc1` asks for at magnitude 10."""
    return image if bits_to_keep >= 8 else looked_up(image, _posterized(max(0, bits_to_keep)))


def autocontrast(image: Image.Image, **_: Any) -> Image.Image:
    """Each channel stretched, its least value to 0 and its highest to 255."""
    red, green, blue = (_stretched(*band.getextrema()) for band in image.split())
    return looked_up(image, red + green + blue)


def equalize(image: Image.Image, **_: Any) -> Image.Image:
    """Each channel mapped so that its values are spread evenly."""
    counts = image.histogram()
    red, green, blue = (_evened(counts[at : at + 256]) for at in (0, 256, 512))
    return looked_up(image, red + green + blue)


def contrast(image: Image.Image, factor: float, **_: Any) -> Image.Image:
    """Blended with its mean gray, which Pillow adds up in Python."""
    gray = np.asarray(image.convert("L"))
    mean = int(int(gray.sum(dtype=np.int64)) / gray.size + 0.5)
    return Image.blend(Image.new("RGB", image.size, (mean, mean, mean)), image, factor)


@cache
def _solarized(thresh: int) -> Table:
    return tuple(value if value < thresh else 255 - value for value in SAME)


@cache
def _raised(add: int, thresh: int) -> Table:
    return tuple(min(255, value + add) if value < thresh else value for value in SAME)


@cache
def _posterized(bits: int) -> Table:
    return tuple(value & ~(2 ** (8 - bits) - 1) for value in SAME)


@lru_cache(maxsize=4096)
def _stretched(low: int, high: int) -> Table:
    if high <= low:
        return SAME
    scale = 255.0 / (high - low)
    return tuple(min(255, max(0, int(value * scale + -low * scale))) for value in SAME)


def _evened(counts: list[int]) -> Table:
    last = next((count for count in reversed(counts) if count), 0)
    step = (sum(counts) - last) // 255
    if not step:  # nor is there one where all values are alike
        return SAME
    sums = accumulate(counts[:-1], initial=step // 2)
    return tuple([before // step for before in sums])


FAST: Mapping[str, Callable[..., Image.Image]] = {
    "AutoContrast": autocontrast,
    "Contrast": contrast,
    "ContrastIncreasing": contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "PosterizeIncreasing": posterize,
    "PosterizeOriginal": posterize,
    "Solarize": solarize,
    "SolarizeIncreasing": solarize,
    "SolarizeAdd": solarize_add,
}
"""By timm's names."""
