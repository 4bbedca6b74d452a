"""Input noise: what a training image goes through before the model sees it.

Every image of both streams gets it, fresh at each presentation. Uses timm's RandAugment, which
draws from the global generators of `random` and `numpy`: in `seeded` the same seed gives the same
images. Knows nothing about models or Ray.
"""

import importlib.util
import math
import random
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps

from ns_ray.config import NoiseConfig
from ns_ray.data.lookup import FAST
from ns_ray.errors import ConfigError

GRAY = (128, 128, 128)
"""Fill of areas that an operation uncovers (reference code)."""

ERASE_AREA = (0.02, 1 / 3)
"""Share of the image that a random rectangle covers (Zhong et al. 2017, timm's defaults)."""


SMALL = 64
"""Images up to so many pixels are shifted like those of 32."""


_GENERATORS = threading.Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of `random` and `numpy` in a known state, for one thread at a time;
    afterwards they go on from where they were. All that draws from them does it in here.

    torch has a global generator too. It is left alone: the thread that runs a model seeds it, and
    one that makes images beside it must not change it between a forward and a backward pass.
    """
    with _GENERATORS:
        before = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


class Augment:
    """RGB image -> augmented RGB image of `size` x `size` pixels."""

    def __init__(self, noise: NoiseConfig, size: int, off: Collection[str] = ()) -> None:
        """
        Args:
            noise: what to apply.
            size: side of the result in pixels.
            off: names of noises to leave out (`noise.off_labeled` or `noise.off_unlabeled`).

        Raises:
            ConfigError: timm cannot read the RandAugment string.
        """
        self.size = size
        self.flip = 0.0 if "flip" in off else noise.flip
        self.erase = 0.0 if "erase" in off else noise.erase
        crop = "crop" not in off
        self.padding = round(noise.crop_padding * size) if crop else 0
        self.crop: tuple[float, float] | None = None
        if crop and not self.padding and noise.crop_scale is not None:
            self.crop = noise.crop_scale
        self.randaugment: Any = None
        if noise.randaugment is not None and "randaugment" not in off:
            try:
                self.randaugment = _timm_rand_augment()(
                    noise.randaugment,
                    {"translate_pct": translation(noise, size), "img_mean": GRAY},
                )
                for operation in self.randaugment.ops:
                    operation.aug_fn = FAST.get(operation.name, operation.aug_fn)
            except (AssertionError, ValueError, KeyError) as error:
                raise ConfigError(
                    f"train.noise.randaugment={noise.randaugment!r} is not a RandAugment string "
                    f"such as rand-m9-mmax30-n2-p1.0 ({error})"
                ) from None

    def __call__(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """uint8 [size, size, 3]."""
        return self.finish(self.begin(image))

    def begin(self, image: Image.Image) -> Image.Image:
        """The part that draws nothing, and so can be kept: the image itself where parts are drawn
        from it, else as a square, padded by reflection."""
        if self.crop is not None:
            return image
        image = fit_square(image, self.size)
        if not self.padding:
            return image
        around = ((self.padding, self.padding), (self.padding, self.padding), (0, 0))
        return Image.fromarray(np.pad(np.asarray(image), around, mode="reflect"))

    def finish(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The part that draws, of what `begin` has returned: uint8 [size, size, 3]."""
        if self.crop is not None:
            image = random_crop(image, self.size, self.crop)
        elif self.padding:
            left, top = random.randint(0, 2 * self.padding), random.randint(0, 2 * self.padding)
            image = image.crop((left, top, left + self.size, top + self.size))
        if random.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.randaugment is not None:
            for operation in _drawn(self.randaugment):
                image = operation(image)
        pixels = np.array(image)
        if random.random() < self.erase:
            _erase(pixels)
        return pixels


def translation(noise: NoiseConfig, size: int) -> float:
    """Share of the width that RandAugment shifts an image by at magnitude 10.

    In the authors' code 100 px of ImageNet's images, whatever their size (`translate_const`), and 4
    of images of 32 px. Below 224 px 100 would leave little of an image in the frame: 0.45, which is
    what they are of 224 px, and timm's default.

    Args:
        noise: may have a share of its own.
        size: side of the image in pixels.
    """
    if noise.translate is not None:
        return noise.translate
    return 4 / 32 if size <= SMALL else min(0.45, 100 / size)


def _drawn(randaugment: Any) -> Iterable[Callable[[Image.Image], Image.Image]]:
    """The operations for one image: those of timm's RandAugment, drawn as its `__call__` does, but
    not by `np.random.choice`, which takes longer than an operation on a small image."""
    if randaugment.choice_weights is None:
        return random.choices(randaugment.ops, k=randaugment.num_layers)
    drawn: Iterable[Callable[[Image.Image], Image.Image]] = np.random.choice(
        randaugment.ops, randaugment.num_layers, replace=False, p=randaugment.choice_weights
    )
    return drawn


@cache
def _timm_rand_augment() -> Callable[..., Any]:
    """timm's `rand_augment_transform`. Its module needs Pillow only, but importing the package it
    is in also imports torch and every model: seconds, in each loader process."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "auto_augment.py"
    spec = importlib.util.spec_from_file_location("timm_auto_augment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(Callable[..., Any], module.rand_augment_transform)


def random_crop(image: Image.Image, size: int, scale: tuple[float, float]) -> Image.Image:
    """A random part of the image, resized to `size` x `size` (Szegedy et al. 2015, section 6; the
    ranges and the ten attempts are torchvision's `RandomResizedCrop`).

    Args:
        image: RGB.
        size: side of the result in pixels.
        scale: range of the part's share of the area.
    """
    width, height = image.size
    for _ in range(10):
        area = random.uniform(*scale) * width * height
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:  # an extreme shape: its middle, as far as the aspect ratio allows
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """The whole short side, centered, as a square of `size` pixels."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def _erase(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Fill a random rectangle with noise, in place."""
    height, width, _ = pixels.shape
    area = random.uniform(*ERASE_AREA) * height * width
    aspect = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
    h = min(height, max(1, round(math.sqrt(area * aspect))))
    w = min(width, max(1, round(math.sqrt(area / aspect))))
    top, left = random.randint(0, height - h), random.randint(0, width - w)
    fill = np.random.randint(0, 256, (h, w, 3))
    pixels[top : top + h, left : left + w] = fill
