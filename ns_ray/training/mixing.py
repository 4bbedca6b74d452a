"""Mixup and CutMix of a batch, as timm's Mixup does them, but for where chance comes from.

timm draws from numpy's global generator, which a loader's thread uses meanwhile, and takes even
batches only. Here all follows from torch's, which the loop seeds for each forward pass. Knows
nothing about models, data or Ray.
"""

import math

import numpy as np
import torch


def mix(
    images: torch.Tensor, targets: torch.Tensor, *, mixup: float, cutmix: float
) -> torch.Tensor:
    """Mix each image with the one that is as far from the other end of the batch, in place.

    Args:
        images: float [n, channels, height, width]; the middle one of an odd number stays as it is.
        targets: of the images, float [n, classes].
        mixup, cutmix: both parameters of the Beta distribution that the share of the other image
            is drawn from. 0: off. With both on one of the two is drawn, with equal odds; not both
            are off.

    Returns:
        The targets, mixed as the images are.
    """
    random = np.random.default_rng(int(torch.randint(2**62, ())))
    cut = mixup == 0 or (cutmix > 0 and random.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(random.beta(alpha, alpha))
    other = images.flip(0)
    if cut:
        height, width = images.shape[-2:]
        rows, columns = (_span(length, share, random) for length in (height, width))
        images[..., rows, columns] = other[..., rows, columns]
        # What lies beyond a border is not pasted.
        share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        images.lerp_(other, share)
    return targets.lerp(targets.flip(0), share)


def _span(length: int, share: float, random: np.random.Generator) -> slice:
    """One side of a rectangle that covers a share of the area, around a random pixel."""
    size = int(length * math.sqrt(share))
    center = int(random.integers(length))
    return slice(max(0, center - size // 2), min(length, center + (size + 1) // 2))
