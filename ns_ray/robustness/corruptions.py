"""ImageNet-C's corruptions of one picture: 15, and 4 extra, at 5 severities (Hendrycks & Dietterich
2019).

At 224 pixels the package imagecorruptions-imaug makes them. It draws from NumPy's global generator,
which is seeded here by the picture's key: a picture is corrupted in the same way on any machine and
in any order. The constants of CIFAR-C, for 32 pixels, are in small.py.
"""

import contextlib
import io
from functools import cache
from typing import Any, Literal

import numpy as np
import xxhash

from ns_ray.data import seeded
from ns_ray.errors import ConfigError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""uint8 [side, side, 3], RGB."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
FAMILY = {name: family for family, names in FAMILIES.items() for name in names}
STANDARD = tuple(name for name, family in FAMILY.items() if family != "extra")
"""The 15 that count in a mean; the 4 extra are for choosing settings."""

SEVERITIES = (1, 2, 3, 4, 5)

SIZES = {"imagenet": 224, "cifar": 32}
"""Side of the picture in pixels that the constants are meant for."""

BOUNDARY = 85
"""Short side in pixels from which on the constants are ImageNet-C's: halfway between 32 and 224, on
a scale of ratios (the root of 32 * 224 is 84.7)."""

EXTRA = "install it with: pip install 'ns-ray[robustness]'"


def constants_for(short_side: float) -> Literal["imagenet", "cifar"]:
    """Which constants fit images of this size."""
    return "imagenet" if short_side >= BOUNDARY else "cifar"


def seed_for(key: str, *what: Any) -> int:
    """32 bits that depend on an image's key and on what is done to it."""
    return xxhash.xxh32_intdigest("\0".join([key, *map(str, what)]).encode())


def corrupt(
    pixels: Pixels, name: str, severity: int, *, constants: str, key: str, seed: int
) -> Pixels:
    """One corruption of one picture.

    Args:
        pixels: uint8 [224, 224, 3] with ImageNet-C's constants, [32, 32, 3] with CIFAR-C's.
        name: one of FAMILY.
        severity: 1 to 5.
        constants: imagenet or cifar.
        key: of the image.
        seed: another gives other noise.

    Returns:
        The same shape; values are truncated to uint8, as in the released benchmarks.

    Raises:
        ConfigError: the packages that do it are missing.
    """
    state = seed_for(key, name, severity, seed)
    if constants == "cifar":
        from ns_ray.robustness.small import corrupt_small

        random = np.random.RandomState(state)
        return np.asarray(corrupt_small(pixels, name, severity, random), dtype=np.uint8)
    # What the package prints about its own rounding goes nowhere.
    with seeded(state), contextlib.redirect_stdout(io.StringIO()):
        # Two of them have generators of their own and take a seed.
        own = {"seed": state} if name in ("glass_blur", "impulse_noise") else {}
        return np.asarray(_package().corrupt(pixels, severity, name, **own), dtype=np.uint8)


@cache
def _package() -> Any:
    try:
        import cv2
        import imagecorruptions
    except ImportError as error:
        raise ConfigError(
            f"evaluate.robustness needs the package {error.name or 'imagecorruptions-imaug'}; "
            f"{EXTRA}, or leave `corruptions` out of evaluate.robustness.suites"
        ) from None
    cv2.setNumThreads(1)  # each process does one picture at a time; the others have the other cores
    return imagecorruptions


def check_installed() -> None:
    """Fail early where the packages are missing.

    Raises:
        ConfigError: names the package, and the extra that has it.
    """
    _package()
