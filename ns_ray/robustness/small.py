"""CIFAR-C's corruptions, for pictures of 32 pixels: ImageNet-C's with gentler constants.

No package has them. Constants and definitions are those of the benchmark's generator (create_c/
make_cifar_c.py of hendrycks/robustness); as there, each function takes and returns values on the
scale 0 to 1, and what has a constant for each severity takes that constant. They are in noise.py,
blur.py, weather.py and digital.py. Random numbers come from a legacy `RandomState`, whose streams
NumPy has promised never to change.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ns_ray.robustness.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from ns_ray.robustness.digital import (
    contrast,
    elastic_transform,
    jpeg_compression,
    pixelate,
    saturate,
)
from ns_ray.robustness.noise import (
    Picture,
    Random,
    gaussian_noise,
    impulse_noise,
    shot_noise,
    speckle_noise,
)
from ns_ray.robustness.weather import brightness, fog, frost, snow, spatter

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
