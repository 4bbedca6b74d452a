"""Batches of images as models take them, whoever has decoded them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ns_ray.data.images import MAX_PIXELS, Preprocess, eval_pixels
from ns_ray.errors import ImageError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Decoded:
    """Some images in order, decoded as far as they could be.

    Attributes:
        pixels: of the good ones, uint8 [good, size, size, 3]; None where there are none.
        errors: why the others have no pixels, by their places among all.
        images: how many they are in all.
    """

    pixels: Pixels | None
    errors: Mapping[int, ImageError]
    images: int

    @classmethod
    def of(cls, items: Sequence[Pixels | ImageError]) -> "Decoded":
        """Of each image in order: uint8 [size, size, 3], or why it has no pixels."""
        good = [item for item in items if not isinstance(item, ImageError)]
        errors = {at: item for at, item in enumerate(items) if isinstance(item, ImageError)}
        return cls(np.stack(good) if good else None, errors, len(items))

    def answers(
        self, found: np.ndarray[Any, Any] | None
    ) -> list[np.ndarray[Any, Any] | ImageError]:
        """What was found of each image, in the places of those that could be decoded.

        Args:
            found: a row for each good image; None where there are none.
        """
        rows = iter(() if found is None else found)
        return [self.errors[at] if at in self.errors else next(rows) for at in range(self.images)]


def decode_batch(
    images: Iterable[bytes], preprocess: Preprocess, fast: bool, max_pixels: int = MAX_PIXELS
) -> Decoded:
    """Encoded images as a model sees them.

    Args:
        images: encoded.
        preprocess: how the model wants its input.
        fast: see `predict.fast_decode`.
        max_pixels: larger images are an ImageError.
    """
    return Decoded.of([_pixels_or_error(data, preprocess, fast, max_pixels) for data in images])


def _pixels_or_error(
    data: bytes, preprocess: Preprocess, fast: bool, max_pixels: int
) -> Pixels | ImageError:
    try:
        return eval_pixels(data, preprocess, fast, max_pixels=max_pixels)
    except ImageError as error:
        return error
