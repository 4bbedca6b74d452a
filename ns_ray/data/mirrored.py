"""Whether an image is told from its mirror image: then flips make images that do not occur.

Digits, text and signs have a direction, most photographs have none. That shows without a label: a
linear classifier on gradients, as in Dalal and Triggs's histograms (2005), is asked which of an
image and its mirror image is the original. On gray images of 16 pixels it is right for 90 % of
handwritten digits, 80 % of Fashion-MNIST (its shoes all point to the left) and 54 % of CIFAR-10; an
inversion of contrast, which text has, changes nothing. Knows nothing about Ray.
"""

import math
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from ns_ray import store
from ns_ray.data.images import Preprocess, eval_pixels
from ns_ray.errors import ImageError
from ns_ray.log import say
from ns_ray.store import Corpus

LOOKED_AT = 1000
"""Most images that are decoded for it, which takes seconds."""
SHARDS = 8
"""Most shards that they are taken from."""
FEWEST = 20
"""With fewer images nothing is said of them."""
CLEARLY = 0.6
"""Share of originals that are recognized from which on a set has a direction, as the lower end of a
90 % interval: photographs have light and habits, and are a little off 0.5."""
CELLS, SIDE, DIRECTIONS = 4, 4, 8
"""An image is CELLS x CELLS squares of SIDE x SIDE pixels, each a histogram of DIRECTIONS."""
STRENGTH = 0.01
"""Inverse strength of the L2 term on features of unit variance: there are few images."""

PIXELS = Preprocess(CELLS * SIDE, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)

Array = np.ndarray[Any, Any]


def symmetric(corpus: Corpus) -> bool:
    """Whether mirrored images of a corpus look like the others, and say so where they do not.

    Args:
        corpus: images, with labels or without; some from all of it are looked at.
    """
    images = _some(corpus)
    if len(images) < FEWEST:
        return True
    found = recognized(images)
    low = binomtest(found, len(images)).proportion_ci(0.9, method="wilson").low
    if low > CLEARLY:
        share = f"{found / len(images):.0%} of {len(images):,} images"
        say(f"{share} are told from their mirror images: none is flipped in training")
    return bool(low <= CLEARLY)


def recognized(images: Array) -> int:
    """How many images are told from their mirror images, by classifiers that have seen neither.

    Args:
        images: gray, float32 [n, 16, 16].
    """
    # The difference changes its sign with the question, and so does a classifier without intercept.
    difference = _gradients(images) - _gradients(images[:, :, ::-1])
    difference /= difference.std() or 1.0
    sign = np.where(np.arange(len(images)) % 2, 1, -1)
    model = LogisticRegression(C=STRENGTH, fit_intercept=False)
    return int((cross_val_predict(model, difference * sign[:, None], sign, cv=5) == sign).sum())


def _gradients(images: Array) -> Array:
    """Histograms of gradients without their sign, float32 [n, cells * cells * directions]; each
    image's have length 1."""
    down, right = np.gradient(images, axis=(1, 2))
    direction = (np.arctan2(down, right) % np.pi / np.pi * DIRECTIONS).astype(int) % DIRECTIONS
    length = np.hypot(down, right)
    cells = (len(images), CELLS, SIDE, CELLS, SIDE)
    sums = [
        np.where(direction == k, length, 0).reshape(cells).sum(axis=(2, 4))
        for k in range(DIRECTIONS)
    ]
    features = np.stack(sums, axis=-1).reshape(len(images), -1)
    found: Array = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-6)
    return found


def _some(corpus: Corpus) -> Array:
    """Gray images from all of a corpus, float32 [n, 16, 16], 0 to 1: the first of some shards, as
    rows are in the order of their hashes. Broken ones are left out."""
    step = math.ceil(len(corpus.shards) / SHARDS)
    shards = corpus.shards[::step]
    each = math.ceil(LOOKED_AT / max(len(shards), 1))
    found = []
    for shard in shards:
        rows = store.read_first(store.join(corpus.path, shard.file), each, ["image"])
        for image in rows["image"]:
            try:
                pixels = eval_pixels(image.as_buffer().to_pybytes(), PIXELS)
            except ImageError:
                continue
            found.append(pixels.mean(axis=2, dtype=np.float32) / 255)
    return np.stack(found) if found else np.zeros((0, CELLS * SIDE, CELLS * SIDE), np.float32)
