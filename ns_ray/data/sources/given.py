"""Images that a program holds in memory, as images of a source."""

from typing import Any

import numpy as np
from PIL import Image

from ns_ray.data.sources.items import Encoded, Pixels
from ns_ray.data.sources.opened import Opened
from ns_ray.errors import ConfigError


def in_memory(image: Any) -> Encoded | Pixels | Opened:
    """Where the bytes of an image are that is here already.

    Args:
        image: the bytes of an image file; a PIL image, which is turned as its EXIF data says; or an
            array, uint8 [height, width] or [height, width, 3].

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return Encoded(bytes(image))
    if isinstance(image, Image.Image):
        return Opened(image)
    if not isinstance(image, np.ndarray):
        raise ConfigError(
            f"images: {type(image).__name__} is no image; give a path, the bytes of a file, a PIL "
            "image, an array of uint8 [height, width, 3], or a list of these"
        )
    shape = image.shape
    gray, color = image.ndim == 2, image.ndim == 3 and shape[-1] == 3
    if image.dtype != np.uint8 or not (gray or color) or not image.size:
        raise ConfigError(
            f"images: an array of {image.dtype} {list(shape)} is no image; it must be uint8 "
            "[height, width] or [height, width, 3], not empty"
        )
    return Pixels(np.ascontiguousarray(image).tobytes(), shape)
