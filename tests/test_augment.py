"""Input noise: reproducible, switchable, and what the RandAugment string says it is."""

import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from broken_files import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ns_ray.config.loading import load_recipe, recipe_names
from ns_ray.config.noise import NoiseConfig
from ns_ray.config.training import train_config
from ns_ray.data.augment import Augment, fit_square, seeded
from ns_ray.errors import ConfigError
from ns_ray.robustness.corruptions import corrupt

OFF: dict[str, Any] = {"randaugment": None, "crop_scale": None, "flip": 0.0}
FULL = NoiseConfig(randaugment="rand-m9-mmax30-n2-p1.0", crop_scale=(0.08, 1.0), erase=0.5)


def presentations(noise: NoiseConfig, off: tuple[str, ...] = (), count: int = 20) -> np.ndarray:
    """One image of 32 x 32 pixels, augmented with the seeds 0, 1, ..."""
    augment, image = Augment(noise, 32, off), picture(3, 32, 32)
    results = []
    for seed in range(count):
        with seeded(seed):
            results.append(augment(image))
    return np.stack(results)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others() -> None:
    first, again = presentations(FULL), presentations(FULL)
    assert np.array_equal(first, again)
    assert len({image.tobytes() for image in first}) >= 19


def test_a_large_seed_is_fine() -> None:
    with seeded(2**63 - 1):
        first = np.random.random()
    with seeded(2**63 - 1):
        assert np.random.random() == first


def test_what_was_drawn_from_before_goes_on_as_if_nothing_had_been_between() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = [random.random(), np.random.random()]
    random.seed(3)
    np.random.seed(3)

    def fail() -> None:
        with seeded(0):
            random.random()
            np.random.random()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [random.random(), np.random.random()] == expected


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads that take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient")
def test_those_who_draw_in_different_threads_do_not_disturb_each_other() -> None:
    augment, image = Augment(FULL, 32), picture(3, 32, 32)
    large = np.asarray(picture(5, 224, 224))

    def augmented(seed: int) -> bytes:
        with seeded(seed):
            return augment(image).tobytes()

    def corrupted(seed: int) -> bytes:
        done = corrupt(large, "shot_noise", 1, constants="imagenet", key="a", seed=seed)
        return done.tobytes()

    def many(draw: Callable[[int], bytes], count: int) -> list[bytes]:
        return [draw(seed) for seed in range(count)]

    work: list[tuple[Callable[[int], bytes], int]] = [(augmented, 300), (corrupted, 12)]
    alone = [many(*one) for one in work]
    found: list[list[bytes]] = [[], []]
    threads = [
        threading.Thread(target=lambda which=which, one=one: found[which].extend(many(*one)))
        for which, one in enumerate(work)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


@settings(max_examples=40)
@given(
    width=st.sampled_from([1, 2, 3, 8, 31, 32, 33, 300]),
    height=st.sampled_from([1, 2, 3, 8, 31, 32, 33, 300]),
    size=st.sampled_from([8, 32, 33]),
    crop=st.sampled_from(["resized", "padding", "none"]),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_image_becomes_a_square_of_bytes(
    width: int, height: int, size: int, crop: str, seed: int
) -> None:
    noise = NoiseConfig(
        randaugment="rand-m9-mmax30-n2-p1.0",
        erase=1.0,
        crop_scale=(0.08, 1.0) if crop == "resized" else None,
        crop_padding=0.49 if crop == "padding" else 0.0,
    )
    with seeded(seed):
        pixels = Augment(noise, size)(picture(seed % 7, width, height))
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8


def test_a_tall_image_keeps_its_middle_when_nothing_is_cropped() -> None:
    tall = Image.new("RGB", (8, 80), "black")
    tall.paste("white", (0, 36, 8, 44))
    pixels = Augment(NoiseConfig.model_validate(OFF), 8)(tall)
    assert (pixels == 255).all()
    small = fit_square(Image.new("RGB", (8, 8), (1, 2, 3)), 32)
    assert small.size == (32, 32)
    assert small.getpixel((16, 16)) == (1, 2, 3)


# ------------------------------------------------------------------------------------ switches


def test_without_noise_an_image_of_the_right_size_stays_as_it_is() -> None:
    noise = NoiseConfig.model_validate(OFF)
    assert (presentations(noise) == np.asarray(picture(3, 32, 32))).all()


@pytest.mark.parametrize(
    ("name", "on"),
    [
        ("randaugment", {"randaugment": "rand-m9-mmax30-n2-p1.0"}),
        ("crop", {"crop_scale": (0.08, 1.0)}),
        ("crop", {"crop_padding": 0.125}),
        ("flip", {"flip": 0.5}),
        ("erase", {"erase": 0.5}),
    ],
)
def test_each_noise_acts_and_can_be_switched_off(name: str, on: dict[str, Any]) -> None:
    noise = NoiseConfig.model_validate({**OFF, **on})
    original = np.asarray(picture(3, 32, 32))
    assert (presentations(noise) != original).any()
    others = tuple(n for n in ("randaugment", "crop", "flip", "erase") if n != name)
    assert (presentations(noise, off=others) != original).any()
    assert (presentations(noise, off=(name,)) == original).all()


def test_all_switched_off_leaves_the_image_as_it_is() -> None:
    off = ("randaugment", "crop", "flip", "erase", "dropout", "stochastic_depth")
    assert (presentations(FULL, off) == np.asarray(picture(3, 32, 32))).all()


def test_flip_mirrors_about_half_of_the_images() -> None:
    flips = presentations(NoiseConfig.model_validate({**OFF, "flip": 0.5}), count=200)
    original = np.asarray(picture(3, 32, 32))
    mirrored = (flips == original[:, ::-1]).all(axis=(1, 2, 3))
    assert 70 < mirrored.sum() < 130
    assert (flips[~mirrored] == original).all()


def test_padding_shifts_by_at_most_its_share_and_reflects_the_rest() -> None:
    noise = NoiseConfig.model_validate({**OFF, "crop_padding": 0.125})
    original = np.asarray(picture(3, 32, 32))
    padded = np.pad(original, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    shifts = {
        padded[y : y + 32, x : x + 32].tobytes(): (y - 4, x - 4) for y in range(9) for x in range(9)
    }
    found = {shifts[image.tobytes()] for image in presentations(noise, count=300)}
    assert {y for y, _ in found} == {x for _, x in found} == set(range(-4, 5))


def test_erasing_covers_between_a_fiftieth_and_a_third() -> None:
    gray = np.full((32, 32, 3), 77, np.uint8)
    augment = Augment(NoiseConfig.model_validate({**OFF, "erase": 1.0}), 32)
    shares = []
    for seed in range(200):
        with seeded(seed):
            changed = (augment(Image.fromarray(gray)) != gray).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert changed.sum() >= 0.9 * box  # one rectangle, filled
        shares.append(box / 32**2)
    assert min(shares) > 0.005
    assert max(shares) < 0.36
    assert max(shares) > 0.25


# --------------------------------------------------------------------------------- RandAugment


def operations(string: str) -> tuple[set[float], float]:
    """Magnitudes that RandAugment works with, and operations per image."""
    augment = Augment(NoiseConfig.model_validate({**OFF, "randaugment": string}), 16)
    assert augment.randaugment is not None
    magnitudes: list[float] = []
    applied = [0]

    def spy(operation: Any) -> None:
        level, act = operation.level_fn, operation.aug_fn

        def level_of(magnitude: float, hparams: Any) -> tuple[Any, ...]:
            magnitudes.append(magnitude)
            return tuple(level(magnitude, hparams))

        def action(image: Image.Image, *args: Any, **kwargs: Any) -> Any:
            applied[0] += 1
            return act(image, *args, **kwargs)

        operation.aug_fn = action
        if level is not None:
            operation.level_fn = level_of

    for operation in augment.randaugment.ops:
        spy(operation)
    with seeded(0):
        for _ in range(200):
            augment(picture(1, 16, 16))
    return set(magnitudes), applied[0] / 200


def test_a_plain_string_is_silently_weaker_than_it_says() -> None:
    # The trap of timm's strings: without mmax the magnitude is cut to 10, and without p each
    # operation is applied half of the time.
    magnitudes, per_image = operations("rand-m27-n2")
    assert magnitudes == {10}
    assert per_image == pytest.approx(1.0, abs=0.2)


def test_the_faithful_string_is_the_paper() -> None:
    magnitudes, per_image = operations("rand-m27-mmax30-n2-p1.0")
    assert magnitudes == {27}
    assert per_image == 2.0


def test_our_default_applies_all_it_draws() -> None:
    default = NoiseConfig().randaugment
    assert default is not None
    magnitudes, per_image = operations(default)
    assert magnitudes == {9}
    assert per_image == 2.0


@pytest.mark.parametrize("string", ["rand-x9", "rand-mfoo-p1,0-q3", "random", "rand-n2-p1.0.0"])
def test_a_bad_string_is_a_config_error_that_shows_a_good_one(string: str) -> None:
    noise = NoiseConfig(randaugment=string)
    with pytest.raises(ConfigError, match=r"rand-m9-mmax30-n2-p1\.0") as caught:
        Augment(noise, 32)
    assert repr(string) in str(caught.value)
    assert "train.noise.randaugment" in str(caught.value)
    Augment(noise, 32, off=("randaugment",))  # not read where it is off


@pytest.mark.parametrize("string", ["rand-m9-n2-p1.0", "rand-m9-n3-tweights-p1.0"])
def test_operations_are_drawn_as_timm_draws_them(string: str) -> None:
    augment = Augment(NoiseConfig(**{**OFF, "randaugment": string}), 32)
    seen: Counter[int] = Counter()
    per_image = augment.randaugment.num_layers
    for index, operation in enumerate(augment.randaugment.ops):
        operation.aug_fn = lambda image, *_, index=index, **__: (seen.update([index]), image)[1]
        operation.level_fn = None
    image = picture(3, 32, 32)
    with seeded(0):
        for _ in range(1500):
            augment(image)
    assert seen.total() == 1500 * per_image
    weights = augment.randaugment.choice_weights
    assert len(seen) == 15
    if weights is None:  # evenly, within five standard deviations
        expected = 1500 * per_image / 15
        assert all(abs(n - expected) < 5 * expected**0.5 for n in seen.values())
    else:  # without repetition, the heavier ones more often
        assert max(seen.values()) <= 1500
        heavy, light = (int(np.argsort(weights)[i]) for i in (-1, 0))
        assert seen[heavy] > seen[light]


def shift_of(name: str, magnitude: int, size: int, noise: NoiseConfig) -> float:
    """Share of a black image's width or height that an operation fills with gray, on its own."""
    string = f"rand-m{magnitude}-mmax30-n1-p1.0"
    alone = NoiseConfig(**{**OFF, "randaugment": string, "translate": noise.translate})
    augment = Augment(alone, size)
    augment.randaugment.ops = [op for op in augment.randaugment.ops if op.name == name]
    with seeded(1):
        pixels = augment(Image.new("RGB", (size, size)))
    return float((pixels > 64).all(axis=2).mean())


RECIPES = {
    f"{name}, {model.model} at {model.image_size}": (name, model.image_size, noise)
    for name in recipe_names()
    for config in [load_recipe(name)]
    for model in [config.teacher, *config.students]
    for noise in [train_config(config.train, model).noise]
    if noise.randaugment and model.image_size
}


@pytest.mark.parametrize(("name", "size", "noise"), RECIPES.values(), ids=list(RECIPES))
def test_recipes_shift_images_as_far_as_the_authors_do(
    name: str, size: int, noise: NoiseConfig
) -> None:
    """100 px at magnitude 10, and 4 px of images that are or were 32."""
    magnitude = int(str(noise.randaugment).split("-")[1].removeprefix("m"))
    share = 4 / 32 if size <= 64 or name == "paper/svhn" else 100 / size
    for operation in ("TranslateXRel", "TranslateYRel"):
        found = shift_of(operation, magnitude, size, noise)
        assert found == pytest.approx(share * magnitude / 10, abs=1.5 / size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "noise"), RECIPES.values(), ids=list(RECIPES))
def test_recipes_leave_something_of_nearly_every_image(
    name: str, size: int, noise: NoiseConfig
) -> None:
    only = {"randaugment": noise.randaugment, "translate": noise.translate}
    augment = Augment(NoiseConfig(**{**OFF, **only}), size)
    image, blank = picture(3, size, size), 0
    for seed in range(100):
        with seeded(seed):
            blank += int(np.ptp(augment(image).reshape(-1, 3), axis=0).max() == 0)
    assert blank <= 4
