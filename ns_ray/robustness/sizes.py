"""What the sequences of the two sizes, of ImageNet-P and of CIFAR-P, differ in."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FRAMES = 31


@dataclass(frozen=True)
class Constants:
    """What differs between the two sizes.

    Attributes:
        base: short side of the picture that is moved, in pixels; its middle is cut out afterwards.
        side: side of a frame in pixels.
        gaussian, shot, speckle: noise, see noise.py.
        motion, motion_degrees, motion_frames: radius and sigma of the blur, degrees from one frame
            to the next, frames.
        snow: enlargement of the flakes, radius and sigma of their blur.
        brightness: added to the value in HSV from one frame to the next.
        translate: pixels to the left in the first frame, frames.
        tilt: degrees from one frame to the next.
        scale: size in the first frame, growth from one frame to the next.
        blur: sigma in the first frame, growth, and where the kernel ends in sigmas.
        drops: mean, scale and sigma of the drops, threshold, and how they run down.
    """

    base: int
    side: int
    gaussian: float
    shot: float
    speckle: float
    motion: tuple[int, float]
    motion_degrees: int
    motion_frames: int
    snow: tuple[float, int, float]
    brightness: float
    translate: tuple[int, int]
    tilt: float
    scale: tuple[float, float]
    blur: tuple[float, float, float]
    drops: tuple[float, float, float, float, tuple[float, ...]]


CONSTANTS = {
    "imagenet": Constants(
        base=256,
        side=224,
        gaussian=0.03,
        shot=300,
        speckle=0.05,
        motion=(10, 3),
        motion_degrees=4,
        motion_frames=31,
        snow=(3, 14, 4),
        brightness=0.02,
        translate=(-20, 41),
        tilt=1.0,
        scale=(0.40, 0.025),
        blur=(0.25, 0.035, 6.0),
        drops=(0.65, 0.27, 3.7, 0.69, (0.05, 0.1, 0.15, 0.7)),
    ),
    "cifar": Constants(
        base=32,
        side=32,
        gaussian=0.02,
        shot=700,
        speckle=0.05,
        motion=(6, 1.8),
        motion_degrees=9,
        motion_frames=21,
        snow=(2, 10, 2),
        brightness=0.015,
        translate=(-7, 16),
        tilt=0.75,
        scale=(0.70, 0.02),
        blur=(0.3, 0.015, 7.0),
        drops=(0.6, 0.265, 1.75, 0.7, (0.2, 0.8)),
    ),
}

Frames = Iterator[Any]
"""Floats [side, side, 3] on the scale 0 to 1, or uint8 of the same shape."""
