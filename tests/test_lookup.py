"""RandAugment's operations in fewer steps: Pillow's pixels and timm's draws, whatever the image."""

from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment as of_timm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from ns_ray.config import NoiseConfig
from ns_ray.data import Augment, seeded
from ns_ray.data.lookup import FAST

ARGUMENTS: dict[str, list[tuple[Any, ...]]] = {
    "AutoContrast": [()],
    "Contrast": [(0.1,), (1.0,), (1.63,), (1.9,)],
    "Equalize": [()],
    "Invert": [()],
    "Posterize": [(bits,) for bits in range(1, 12)],
    "Solarize": [(0,), (1,), (128,), (230,), (256,)],
    "SolarizeAdd": [(0,), (57,), (110,), (128,)],
}

few_values = st.integers(0, 255).flatmap(
    lambda low: st.integers(low, 255).flatmap(
        lambda high: arrays(np.uint8, (5, 7, 3), elements=st.integers(low, high))
    )
)


@given(few_values)
def test_each_operation_makes_the_pixels_of_pillow(pixels: np.ndarray[Any, Any]) -> None:
    image = Image.fromarray(pixels)
    for name, all_arguments in ARGUMENTS.items():
        for arguments in all_arguments:
            theirs = np.asarray(of_timm.NAME_TO_OP[name](image, *arguments))
            ours = np.asarray(FAST[name](image, *arguments))
            assert np.array_equal(theirs, ours), (name, arguments)
    assert np.array_equal(np.asarray(image), pixels), "the image itself is left alone"


@pytest.mark.parametrize("size", [8, 32, 300])
def test_each_operation_makes_the_pixels_of_pillow_on_photographs(size: int) -> None:
    small = np.random.default_rng(size).integers(0, 256, (size // 4, size // 3, 3), np.uint8)
    image = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
    for name, all_arguments in ARGUMENTS.items():
        for arguments in all_arguments:
            theirs = np.asarray(of_timm.NAME_TO_OP[name](image, *arguments))
            assert np.array_equal(theirs, np.asarray(FAST[name](image, *arguments))), name


def test_all_that_look_values_up_are_there() -> None:
    """A name that a later timm adds for one of these functions is slow as before, no more."""
    fast = {of_timm.NAME_TO_OP[name] for name in FAST}
    assert {name for name, made in of_timm.NAME_TO_OP.items() if made in fast} == FAST.keys()


@pytest.mark.parametrize("string", ["rand-m9-n2-p1.0", "rand-m9-mstd0.5-n3-p0.7", "rand-m5"])
def test_a_seed_draws_what_timm_draws(string: str) -> None:
    noise = NoiseConfig(randaugment=string, crop_scale=None, flip=0.5)
    augment = Augment(noise, 32)
    plain = Augment(noise, 32)
    for operation in plain.randaugment.ops:
        operation.aug_fn = of_timm.NAME_TO_OP[operation.name]
    rng = np.random.default_rng(0)
    for seed in range(60):
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        with seeded(seed):
            theirs = plain(image)
        with seeded(seed):
            assert np.array_equal(augment(image), theirs), seed


def test_the_usual_string_of_timm_works_at_its_strongest() -> None:
    """Pillow 13 refuses to keep no bit, which `inc1` asks for at magnitude 10."""
    augment = Augment(NoiseConfig(randaugment="rand-m10-n4-p1.0-inc1"), 32)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    for seed in range(100):
        with seeded(seed):
            assert augment(image).shape == (32, 32, 3)
    assert np.asarray(FAST["PosterizeIncreasing"](image, 0)).max() == 0
