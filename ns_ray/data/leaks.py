"""Copies of validation and test images that are not the same file: re-encoded, resized, cropped by
5 %, brighter or darker, mirrored.

    thumbnail (32 x 32, gray) -> candidates by correlation at 8 x 8, a crop allowed for
    -> the best few aligned by their crop -> copies, by correlation at 16 x 16

Signatures of the images that are held out are arrays, which every packing task gets; images that
are packed have theirs made where they are decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

VERSION = 1
"""Of the signatures and thresholds: corpora packed with another are packed again."""

SIDE = 32
"""Of the thumbnails that are compared, in pixels."""
COARSE, FINE = 8, 16
"""Sides at which candidates are looked for, and compared in the end."""
LEAST_SIDE = 16
"""Smaller images are compared byte by byte only: too little is in them to tell a copy from
another of the kind (docs/leaks.md)."""
LEAST_CONTRAST = 4.0
"""Standard deviation of gray levels below which an image looks like any other."""
PLAIN = 0.85
"""Least correlation of candidates at 8 x 8."""
LOOKED_AT, CANDIDATES = 256, 4
"""Of each image, the best ones: by that correlation, and by it with a crop allowed for."""
MOST_REST, SURE_REST, NEXT_REST = 0.05, 0.004, 0.9
"""What a crop leaves unexplained of a copy at 8 x 8: most of it, and most of it where the next
candidate explains about as much."""
MOST_CROPPED = 0.1
"""Share of a side that a crop may lack."""
SAME, ALIKE, ALONE = 0.998, 0.97, 0.25
"""Correlation of a copy; where it resembles no other held-out image, a lower one: what is missing
to 1 is then at most a quarter of what is missing to the next one (measured: docs/leaks.md)."""
STEPS = 3
"""Times that the crop is estimated."""


@dataclass(frozen=True)
class Signatures:
    """Of the images that are held out.

    Attributes:
        names: `test/KEY` of n images.
        thumbnails: uint8 [n, 32, 32].
        coarse: float32 [n, 5, 64], orthonormal: the image at 8 x 8, and what moving and stretching
            it adds, to first order.
    """

    names: Sequence[str]
    thumbnails: Array
    coarse: Array

    @classmethod
    def of(cls, names: Sequence[str], thumbnails: Array) -> "Signatures":
        """From thumbnails, uint8 [n, 32, 32]. Those without contrast are left out."""
        seen = np.flatnonzero(contrasty(thumbnails))
        thumbnails = thumbnails[seen]
        coarse = np.empty((len(seen), 5, COARSE**2), np.float32)
        for start in range(0, len(seen), 1024):
            basis = _tangents(thumbnails[start : start + 1024].astype(np.float32), COARSE)
            q, r = np.linalg.qr(basis.transpose(0, 2, 1))
            coarse[start : start + 1024] = (q * np.sign(r[:, :1, :1])).transpose(0, 2, 1)
        return cls([names[i] for i in seen.tolist()], thumbnails, coarse)

    def copies(self, thumbnails: Array) -> tuple[Array, Array]:
        """The held-out image that each of some images is a copy of, int [n], -1 for none, and their
        correlation, float32 [n].

        Args:
            thumbnails: uint8 [n, 32, 32].
        """
        found = np.full(len(thumbnails), -1)
        first, second = np.zeros((2, len(thumbnails)), np.float32)
        for seen in (thumbnails, thumbnails[:, :, ::-1]):
            rows, which = self._candidates(seen)
            for row, held, alike in zip(rows, which, self._aligned(seen[rows], which), strict=True):
                if held == found[row]:
                    first[row] = max(first[row], alike)
                elif alike > first[row]:
                    found[row], first[row], second[row] = held, alike, first[row]
                else:
                    second[row] = max(second[row], alike)
        alone = 1 - first < ALONE * (1 - second)
        found[~((first > SAME) | (first > ALIKE) & alone)] = -1
        return found, first

    def _candidates(self, thumbnails: Array) -> tuple[Array, Array]:
        """Images, and held-out ones that they may be copies of; several of each image, so that it
        shows whether it resembles one alone."""
        small = _normalized(_shrunk(thumbnails.astype(np.float32), COARSE))
        small[~contrasty(thumbnails)] = 0
        rows, found = [np.empty(0, int)], [np.empty(0, int)]
        for row, plain in enumerate(small @ self.coarse[:, 0].T):
            which = np.flatnonzero(plain > PLAIN)
            if len(which) > LOOKED_AT:
                which = which[np.argpartition(-plain[which], LOOKED_AT)[:LOOKED_AT]]
            inside = (self.coarse[which].reshape(-1, COARSE**2) @ small[row]).reshape(-1, 5)
            rest = 1 - (inside**2).sum(axis=1)
            best = np.argsort(rest)[:CANDIDATES]
            least, next_one = [*rest[best], 1, 1][:2]
            if least < MOST_REST and (least < SURE_REST or least < NEXT_REST * next_one):
                rows.append(np.full(len(best), row))
                found.append(which[best])
        return np.concatenate(rows), np.concatenate(found)

    def _aligned(self, thumbnails: Array, which: Array) -> Array:
        """Correlation at 16 x 16 of images with crops of held-out ones that fit them best."""
        source = self.thumbnails[which].astype(np.float32)
        goal = _normalized(_shrunk(thumbnails.astype(np.float32), FINE))
        low, high = np.zeros((2, len(which), 1)), np.full((2, len(which), 1), float(SIDE))
        best = _correlation(goal, source)
        for _ in range(STEPS):
            basis = _tangents(_cropped(source, low, high), FINE)
            gram = basis @ basis.transpose(0, 2, 1)
            gram += 1e-4 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(5) / 5
            parts = np.linalg.solve(gram, basis @ goal[:, :, None])[:, :, 0]
            parts = (parts[:, 1:] / np.maximum(parts[:, :1], 1e-6)).T.reshape(2, 2, -1, 1)
            middle, half, (moved, stretched) = (low + high) / 2, (high - low) / 2, parts
            low = np.clip(middle + half * (moved - 1 - stretched), 0, SIDE * MOST_CROPPED)
            high = np.clip(middle + half * (moved + 1 + stretched), SIDE * (1 - MOST_CROPPED), SIDE)
            best = np.maximum(best, _correlation(goal, _cropped(source, low, high)))
        return best


def thumbnail(image: Image.Image) -> Array:
    """uint8 [32, 32], gray levels of an RGB image; all zero for one that is too small."""
    if min(image.size) < LEAST_SIDE:
        return np.zeros((SIDE, SIDE), np.uint8)
    small = image.convert("L")
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0))


def contrasty(thumbnails: Array) -> Array:
    """Which thumbnails, uint8 [n, 32, 32], can be told from others, bool [n]."""
    seen: Array = thumbnails.std(axis=(1, 2)) >= LEAST_CONTRAST
    return seen


def _shrunk(images: Array, side: int) -> Array:
    """Means of squares: float32 [n, k, k] -> [n, side * side]."""
    step = images.shape[1] // side
    small: Array = images.reshape(len(images), side, step, side, step).mean(axis=(2, 4))
    return small.reshape(len(images), side * side)


def _normalized(rows: Array) -> Array:
    """float32 [n, k] with mean 0 and length 1."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    normal: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return normal


def _correlation(goal: Array, images: Array) -> Array:
    alike: Array = (goal * _normalized(_shrunk(images, FINE))).sum(axis=1)
    return alike


def _tangents(images: Array, side: int) -> Array:
    """Images, float32 [n, k, k], and their change when they are moved by x and y and stretched by
    x and y, in halves of a side: [n, 5, side * side], mean 0."""
    pixels = images.shape[1]
    y, x = np.gradient(images, np.float32(2 / pixels), axis=(1, 2))
    place = ((np.arange(pixels, dtype=np.float32) + 0.5) * 2 / pixels - 1)[None, :]
    planes = (images, x, y, place * x, place.T * y)
    basis = np.stack([_shrunk(plane, side) for plane in planes], axis=1)
    centered: Array = basis - basis.mean(axis=2, keepdims=True)
    return centered


def _cropped(images: Array, low: Array, high: Array) -> Array:
    """Crops of images at 16 x 16, float32 [n, 16, 16]: each pixel is the mean of what it covers.

    Args:
        images: float32 [n, 32, 32].
        low, high: [2, n, 1], where the crops begin and end by x and y, 0 to 32.
    """
    pixels = np.arange(SIDE)
    covers = []
    for start, end in zip(low, high, strict=True):
        size = (end - start) / FINE
        begin = (start + np.arange(FINE) * size)[:, :, None]
        shared = np.minimum(begin + size[:, :, None], pixels + 1) - np.maximum(begin, pixels)
        covers.append((np.maximum(shared, 0) / size[:, :, None]).astype(np.float32))
    across, down = covers
    cropped: Array = down @ images @ across.transpose(0, 2, 1)
    return cropped
