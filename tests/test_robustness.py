"""Corruptions, sequences, attacks and their scores against independent implementations and numbers
worked out by hand."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_files import picture
from imagecorruptions import corruptions as package
from PIL import Image
from scipy.ndimage import zoom as scipy_zoom
from torch import nn

from ns_ray import store
from ns_ray.config.scoring import RobustnessConfig
from ns_ray.data.images import Preprocess
from ns_ray.robustness import (
    blur,
    digital,
    intervals,
    moving,
    noise,
    perturbations,
    results,
    scores,
    sizes,
    small,
    weather,
)
from ns_ray.robustness.adversarial import Attack
from ns_ray.robustness.corruptions import (
    FAMILY,
    SIZES,
    STANDARD,
    check_installed,
    constants_for,
    corrupt,
)
from ns_ray.robustness.units import EXTRA_PERTURBATIONS


def pixels(side: int, seed: int = 0) -> np.ndarray:
    return np.asarray(picture(seed, side, side))


# ------------------------------------------------------------------------------- 32 pixels: CIFAR-C


@pytest.mark.parametrize(
    ("name", "constant"),
    [  # ImageNet-C's constants at severity 3, which the package uses
        ("gaussian_noise", 0.18),
        ("shot_noise", 12),
        ("speckle_noise", 0.35),
        ("gaussian_blur", 3),
        ("defocus_blur", (6, 0.5)),
        ("motion_blur", (15, 8)),
        ("fog", (2.5, 1.7)),
        ("contrast", 0.2),
        ("brightness", 0.3),
        ("saturate", (2, 0)),
        ("jpeg_compression", 15),
        ("spatter", (0.65, 0.3, 2, 0.68, 0.5, 0)),
    ],
)
def test_our_functions_with_its_constants_are_the_package(name: str, constant: Any) -> None:
    x = pixels(64)
    np.random.seed(5)
    theirs = np.uint8(getattr(package, name)(Image.fromarray(x), 3))
    function: Callable[..., Any] = getattr(small, name)
    ours = np.uint8(np.clip(function(x / 255, constant, np.random.RandomState(5)), 0, 1) * 255)
    # It computes fog and drops in float32: values may be truncated to the next one.
    assert np.abs(ours.astype(int) - theirs).max() <= (1 if name in ("fog", "spatter") else 0)


def test_mud_is_the_package_s() -> None:
    x = pixels(64)
    np.random.seed(5)
    theirs = np.uint8(package.spatter(Image.fromarray(x), 4))
    constants = (0.65, 0.3, 1, 0.65, 1.5, 1)
    ours = weather.spatter(x / 255, constants, np.random.RandomState(5))
    assert np.abs(np.uint8(np.clip(ours, 0, 1) * 255).astype(int) - theirs).max() <= 1


def test_glass_moves_pixels_as_the_package_does() -> None:
    x = pixels(32)
    blurred = np.uint8(blur.blurred(x / 255, 0.4) * 255)
    shuffle = package._shuffle_pixels_njit_glass_blur.py_func
    theirs = blur.blurred(shuffle(32, 32, blurred.copy(), (0.4, 1, 2), 7) / 255.0, 0.4)
    ours = blur.glass_blur(x / 255, (0.4, 1, 2), np.random.RandomState(7))
    assert np.array_equal(ours, theirs)


def test_zoom_is_the_mean_over_scipy_s_enlargements() -> None:
    x = pixels(32) / 255
    total = x.copy()
    factors = np.arange(1, 1.11, 0.01)
    for factor in factors:
        part = int(np.ceil(32 / factor))
        top = (32 - part) // 2
        cut = x[top : top + part, top : top + part]
        large = scipy_zoom(cut, (factor, factor, 1), order=1)
        trim = (len(large) - 32) // 2
        total += large[trim : trim + 32, trim : trim + 32]
    ours = blur.zoom_blur(x, 1.11, np.random.RandomState(0))
    assert np.abs(ours - total / (len(factors) + 1)).max() < 1e-9


def test_impulses_hit_as_many_as_said_half_of_them_white() -> None:
    gray = np.full((200, 200, 3), 0.5)
    hit = noise.impulse_noise(gray, 0.07, np.random.RandomState(0))
    assert (hit != 0.5).mean() == pytest.approx(0.07, abs=0.004)
    assert (hit == 1).sum() / (hit != 0.5).sum() == pytest.approx(0.5, abs=0.02)


def test_noise_is_as_strong_as_cifar_c_says() -> None:
    # The constants of the benchmark once more, against what is measured on gray.
    gray = np.full((100, 100, 3), 128, np.uint8)
    for severity in range(1, 6):
        i = severity - 1

        def spread(name: str, s: int = severity) -> float:
            done = corrupt(gray, name, s, constants="cifar", key="k", seed=0)
            return float(done.astype(float).std() / 255)

        assert spread("gaussian_noise") == pytest.approx((0.04, 0.06, 0.08, 0.09, 0.1)[i], rel=0.03)
        speckle = 0.502 * (0.06, 0.1, 0.12, 0.16, 0.2)[i]
        assert spread("speckle_noise") == pytest.approx(speckle, rel=0.03)
        shot = np.sqrt(0.502 / (500, 250, 100, 75, 50)[i])
        assert spread("shot_noise") == pytest.approx(shot, rel=0.03)
        hit = corrupt(gray, "impulse_noise", severity, constants="cifar", key="k", seed=0) != gray
        assert hit.mean() == pytest.approx((0.01, 0.02, 0.03, 0.05, 0.07)[i], rel=0.15)
        level = (0.75, 0.5, 0.4, 0.3, 0.15)[i]
        halves = np.full((32, 32, 3), 100, np.uint8)
        halves[16:] = 200
        flat = corrupt(halves, "contrast", severity, constants="cifar", key="k", seed=0)
        assert int(flat[20, 0, 0]) - int(flat[0, 0, 0]) == pytest.approx(100 * level, abs=1)
        added = corrupt(gray, "brightness", severity, constants="cifar", key="k", seed=0)
        assert added[0, 0, 0] / 255 - 128 / 255 == pytest.approx(
            (0.05, 0.1, 0.15, 0.2, 0.3)[i], abs=0.005
        )


def test_frost_lays_a_piece_of_a_picture_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weather, "_frost", lambda index: np.full((40, 40, 3), 100 + index))
    frosted = weather.frost(np.full((32, 32, 3), 0.5), (0.9, 0.4), np.random.RandomState(0))
    indices = (frosted - 0.9 * 0.5) / 0.4 * 255 - 100
    assert np.allclose(indices, indices[0, 0, 0])
    assert round(indices[0, 0, 0]) in range(5)  # never the sixth picture


def test_snow_adds_flakes_and_whitens() -> None:
    black = np.zeros((32, 32, 3))
    layer = np.zeros((32, 32))
    layer[4, 5] = 255
    # No blur to speak of: the flake stays where it is, and shows again on the other side.
    snowed = weather.snowed(black, layer, 1, 1e-3, 0.8, 0.0)
    expected = np.full((32, 32, 3), 0.2 * 0.5)
    expected[4, 5] += 1
    expected[27, 26] += 1
    assert np.allclose(snowed, expected, atol=1e-6)


def test_elastic_without_constants_changes_nothing_and_else_moves_by_the_affine_map() -> None:
    x = pixels(32) / 255
    still = digital.elastic_transform(x, (0, 0, 0), np.random.RandomState(0))
    assert np.allclose(still, x, atol=1e-6)

    class OneWay:
        """Moves all three corners two pixels to the right, and nothing else."""

        def uniform(self, low: float, high: float, size: Any) -> np.ndarray:
            return np.tile([2.0, 0.0], (3, 1)) if size == (3, 2) else np.zeros(size)

    moved = digital.elastic_transform(x, (0, 0.2, 0.1), OneWay())  # type: ignore[arg-type]
    assert np.allclose(moved[:, 2:], x[:, :-2], atol=1e-2)


def test_pixelate_by_hand() -> None:
    x = np.zeros((32, 32, 3))
    x[:, 16:] = 1.0
    # Half the size with boxes and back: blocks of four have one color.
    pixelated = digital.pixelate(x, 0.5, np.random.RandomState(0))
    assert np.allclose(pixelated, x, atol=2e-3)
    fine = pixels(32) / 255
    blocks = digital.pixelate(fine, 0.5, np.random.RandomState(0))
    assert np.allclose(blocks[::2, ::2], blocks[1::2, 1::2])


def test_every_corruption_at_every_severity_changes_the_picture() -> None:
    x = pixels(32)
    for name in FAMILY:
        changed = [corrupt(x, name, s, constants="cifar", key="k", seed=0) for s in range(1, 6)]
        for one in changed:
            assert one.dtype == np.uint8
            assert one.shape == (32, 32, 3)
        assert np.abs(changed[-1].astype(int) - x).mean() > 1, name


# --------------------------------------------------------------------------- seeded by the key


@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
def test_the_key_alone_decides_the_noise(constants: str) -> None:
    x = pixels(SIZES[constants])

    def done(key: str, name: str, seed: int = 0) -> bytes:
        return corrupt(x, name, 3, constants=constants, key=key, seed=seed).tobytes()

    for name in ("gaussian_noise", "impulse_noise", "snow"):
        first = done("a", name)
        np.random.random(7)
        assert done("a", name) == first
        assert done("b", name) != first
        assert done("a", name, seed=1) != first


def test_threads_do_not_disturb_each_other_or_the_global_generator() -> None:
    x = pixels(224)
    np.random.seed(11)
    before = np.random.get_state(legacy=False)["state"]["key"].tolist()

    def noisy(key: str) -> np.ndarray:
        return corrupt(x, "gaussian_noise", 1, constants="imagenet", key=key, seed=0)

    alone = {key: noisy(key).tobytes() for key in "abcd"}
    found: dict[str, bytes] = {}
    threads = [
        threading.Thread(target=lambda k=key: found.update({k: noisy(k).tobytes()}))
        for key in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before


def test_at_224_pixels_it_is_the_package() -> None:
    x = pixels(224)
    ours = corrupt(x, "contrast", 2, constants="imagenet", key="k", seed=0)
    means = (x / 255).mean(axis=(0, 1))
    assert np.array_equal(ours, np.uint8(np.clip((x / 255 - means) * 0.3 + means, 0, 1) * 255))


def test_the_size_of_the_images_chooses_the_constants() -> None:
    assert [constants_for(side) for side in (8, 28, 32, 64, 84)] == ["cifar"] * 5
    assert [constants_for(side) for side in (85, 96, 224, 500)] == ["imagenet"] * 4
    check_installed()


# ------------------------------------------------------------------------------------ sequences


def sequence(name: str, constants: str = "cifar", key: str = "k") -> np.ndarray:
    base = sizes.CONSTANTS[constants].base
    found = perturbations.sequence(
        picture(3, base, base), name, constants=constants, key=key, seed=0
    )
    assert isinstance(found, np.ndarray)
    return found


def test_names_are_those_of_the_normalizers() -> None:
    assert tuple(perturbations.STANDARD) == scores.PERTURBATIONS
    assert tuple(perturbations.EXTRA) == EXTRA_PERTURBATIONS


@pytest.mark.parametrize("name", [*perturbations.STANDARD, *perturbations.EXTRA])
def test_lengths_are_the_benchmark_s_and_frames_differ(name: str) -> None:
    frames = sequence(name)
    count = {"translate": 16, "motion_blur": 21}.get(name, 31)
    assert frames.shape == (count, 32, 32, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, sequence(name))
    assert not np.array_equal(frames[1], frames[-1])


def test_frames_by_hand() -> None:
    still = np.asarray(picture(3, 32, 32))
    for name in ("gaussian_noise", "shot_noise", "speckle_noise", "zoom_blur"):
        assert np.array_equal(sequence(name)[0], still)  # the first frame is the picture
    for name in ("brightness", "rotate", "shear"):
        assert np.abs(sequence(name)[15].astype(int) - still).max() <= 1  # and here the 16th
    assert np.array_equal(sequence("scale")[15], still)  # 70 % + 15 times 2 %
    moved = sequence("translate")
    assert np.array_equal(moved[7], still)
    assert np.array_equal(moved[10][:, 3:], still[:, :-3])
    assert not moved[10][:, :3].any()
    noise = sequence("gaussian_noise")[1:].astype(float) - still
    inside = (still > 40) & (still < 215)
    assert noise[:, inside].std() == pytest.approx(0.02 * 255, rel=0.1)


def test_a_tilted_picture_is_turned_about_both_axes() -> None:
    # A corner turned by a about x, then y, and seen from the distance of the diagonal f; the
    # original puts the picture at depth 1 before it turns it.
    f, a = np.hypot(32, 32), np.deg2rad(9)
    x, y, z = -16.0, -16.0, 1.0
    x, z = x * np.cos(a) - z * np.sin(a), x * np.sin(a) + z * np.cos(a)
    y, z = y * np.cos(a) - z * np.sin(a), y * np.sin(a) + z * np.cos(a)
    expected = np.array([f * x, f * y]) / (z + f) + 16
    corner = moving._tilted(a, 32, 32) @ [0, 0, 1]
    assert corner[:2] / corner[2] == pytest.approx(expected)
    flat = moving._tilted(0.0, 32, 32) @ [0, 0, 1]
    assert flat[:2] / flat[2] == pytest.approx([16 - 16 * f / (f + 1)] * 2)


def test_large_pictures_are_moved_before_they_are_cut() -> None:
    frames = sequence("translate", "imagenet")
    base = np.asarray(picture(3, 256, 256))
    assert frames.shape == (41, 224, 224, 3)
    for i in (4, 20, 36):  # no black border within 16 pixels of the middle
        left = 16 - (i - 20)
        assert np.array_equal(frames[i], base[16:240, left : left + 224])


def test_flip_rate_by_hand() -> None:
    predictions = [[1, 1, 2, 1], [3, 3, 3, 4]]
    # Against the frame before: 2 and 1 of 3. Against the first: 1 and 1 of 3.
    assert scores.flip_rate("translate", predictions) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert scores.flip_rate("shot_noise", predictions) == pytest.approx((1 / 3 + 1 / 3) / 2)


# --------------------------------------------------------------------------------------- scores

LEVELS = ((1, 1), (3, 2))
"""Severities, and how many times as many images are wrong as at the first."""

PUBLISHED = {  # normalizers of hendrycks/robustness
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def rows(error: Callable[[str, int], float]) -> dict[str, Any]:
    return scores.corruption_rows({n: {s: error(n, s) for s in range(1, 6)} for n in FAMILY})


def test_mce_of_alexnet_is_one_and_halves_with_its_errors() -> None:
    assert set(PUBLISHED) == set(STANDARD)
    for name, mean in PUBLISHED.items():
        assert np.mean(scores.ALEXNET_ERRORS[name]) == pytest.approx(mean, abs=1e-6)

    def alexnet(name: str, severity: int) -> float:
        return scores.ALEXNET_ERRORS[name][severity - 1] if name in STANDARD else 0.9

    assert scores.mce(rows(alexnet)) == pytest.approx(1.0)
    assert scores.mce(rows(lambda n, s: alexnet(n, s) / 2)) == pytest.approx(0.5)
    assert scores.mean_error(rows(alexnet)) == pytest.approx(np.mean(list(PUBLISHED.values())))


def test_the_sum_over_severities_is_normalized_not_each_severity() -> None:
    # 0.5 at severity 5 only: 0.5 / sum, not the mean of the ratios.
    found = scores.mce(rows(lambda name, severity: 0.5 if severity == 5 else 0.0))
    expected = np.mean([0.5 / (5 * mean) for mean in PUBLISHED.values()])
    assert found == pytest.approx(expected, rel=1e-5)


def test_means_need_all_of_their_parts() -> None:
    whole = rows(lambda name, severity: 0.3)
    some = {name: row for name, row in whole.items() if name != "fog"}
    assert (scores.mean_error(some), scores.mce(some)) == (None, None)
    few = scores.corruption_rows({name: {1: 0.3} for name in FAMILY})
    assert scores.mean_error(few) == pytest.approx(0.3)
    assert scores.mce(few) is None  # AlexNet's are over five severities
    assert scores.relative_error(few, rows(lambda n, s: 0.6)) == pytest.approx(0.5)
    assert scores.relative_error(few, rows(lambda n, s: 0.0)) is None
    rising = rows(lambda name, severity: severity / 10)  # 1.5 in all
    assert scores.relative_error(whole, rising) == pytest.approx(5 * 0.3 / 1.5)


def test_flip_rates_over_alexnet_s() -> None:
    rates = {name: 2 * rate for name, rate in scores.ALEXNET_FLIPS.items()}
    assert scores.mfr({**rates, "shear": 0.9}) == pytest.approx(2.0)
    assert scores.mfr(rates, rates) == pytest.approx(1.0)
    perturbed = {name: {"flip_rate": rate, "top1": None} for name, rate in rates.items()}
    assert scores.perturbed_mean(perturbed, "flip_rate") == pytest.approx(2 * 0.14046)
    assert scores.perturbed_mean(perturbed, "top1") is None
    del perturbed["snow"]
    assert scores.perturbed_mean(perturbed, "flip_rate") is None
    assert scores.mfr({"snow": 0.1}) is None


def test_a_share_of_images_has_wilson_s_interval() -> None:
    assert intervals.of_count(0, 20) == pytest.approx([0.0, 1.96**2 / (20 + 1.96**2)], abs=1e-4)
    low, high = intervals.of_count(100.0, 400.0)
    spread = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == pytest.approx((0.25 - spread, 0.25 + spread), abs=0.003)


def test_a_share_of_frames_has_an_interval_over_sequences() -> None:
    shares = np.random.default_rng(0).beta(1, 9, size=200)  # 0.1, some far from it
    low, high = intervals.of_sequences(shares.tolist())
    spread = 1.96 * shares.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((shares.mean() - spread, shares.mean() + spread), abs=0.002)
    # No flip in 20 sequences: Wilson's, not certainty.
    assert intervals.of_sequences([0.0] * 20) == intervals.of_count(0, 20)
    assert intervals.of_sequences([1.0] * 20) == intervals.of_count(20, 20)


def test_a_mean_has_the_interval_of_images_that_are_wrong_under_all_corruptions() -> None:
    """Of 15 corruptions with the same mistakes, that of one of them."""
    one = intervals.of_count(30, 200)
    assert intervals.of_mean([one] * 15) == pytest.approx(one)
    assert intervals.of_mean([[0.1, 0.2], [0.3, 0.6]]) == pytest.approx([0.2, 0.4])


def test_the_numbers_of_two_units_are_put_together(tmp_path: Path) -> None:
    """By hand: under the k-th corruption k and 2k of 40 images are wrong at severities 1 and 3."""
    counts = [
        ["corruptions", [[n, s, k * m, 30] for k, n in enumerate(STANDARD) for s, m in LEVELS]],
        ["corruptions", [[n, s, 0, 10] for n in STANDARD for s, _ in LEVELS]],
        ["perturbations", [[n, 0, 0.1 * i, 1, 0.5] for n in scores.PERTURBATIONS for i in (0, 1)]],
        ["adversarial", [["pgd", 4.0, 5, 20]]],
    ]
    for i, (suite, found) in enumerate(counts):
        store.write_json(str(tmp_path / f"{i}.json"), {"suite": suite, "rows": found})
    files = [f"{i}.json" for i in range(len(counts))]
    made = results.summary(str(tmp_path), files, RobustnessConfig())
    ends = [
        [intervals.of_count(k, 40), intervals.of_count(2 * k, 40)] for k in range(len(STANDARD))
    ]
    for name, error in zip(STANDARD, ends, strict=True):
        row = made["corruptions"][name]
        assert list(row["error_interval"].values()) == error
        assert row["mean_interval"] == pytest.approx(np.mean(error, axis=0))
    assert made["mean_corruption_error"] == pytest.approx(1.5 * 7 / 40)
    assert made["mean_corruption_error_interval"] == pytest.approx(np.mean(ends, axis=(0, 1)))
    assert made["adversarial"] == {"pgd": {"4": 0.25}}
    assert made["adversarial_intervals"] == {"pgd": {"4": intervals.of_count(5, 20)}}
    assert made["clean_error"] is made["clean_error_interval"] is None
    assert made["mean_flip_rate"] == pytest.approx(0.05)
    assert made["mean_flip_rate_interval"] == pytest.approx([0.0, 0.1])  # of two sequences
    assert made["mean_perturbed_top1"] == 0.5


# --------------------------------------------------------------------------------------- attacks


class Linear(nn.Module):
    """Two classes; the second one's logit is a weighted sum of the normalized pixels."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = (x * self.weights).flatten(1).sum(dim=1)
        return torch.stack([torch.zeros_like(score), score], dim=1)


PREPROCESS = Preprocess(2, 1.0, "bicubic", (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))


def test_fgsm_by_hand() -> None:
    weights = torch.tensor([0.1, -0.1, 0.2]).view(3, 1, 1).expand(3, 2, 2).clone()
    attack = Attack(Linear(weights), PREPROCESS, torch.device("cpu"))
    images = attack.images(np.full((1, 2, 2, 3), [100, 3, 254], np.uint8))
    # Class 1 is true: its score is lowered, each pixel against the sign of its weight.
    attacked = attack.fgsm(images, torch.tensor([1]), 4.0)
    assert attacked[0, :, 0, 0].tolist() == [96.0, 7.0, 250.0]
    attacked = attack.fgsm(images, torch.tensor([0]), 4.0)
    assert attacked[0, :, 0, 0].tolist() == [104.0, 0.0, 255.0]  # kept on the scale


def test_pgd_stays_within_epsilon_and_reaches_it() -> None:
    weights = torch.tensor([0.1, -0.1, 0.2]).view(3, 1, 1).expand(3, 2, 2).clone()
    attack = Attack(Linear(weights), PREPROCESS, torch.device("cpu"))
    images = attack.images(np.full((1, 2, 2, 3), [100, 3, 250], np.uint8))
    attacked = attack.pgd(images, torch.tensor([0]), 8.0, steps=10)
    assert attacked[0, :, 1, 1].tolist() == [108.0, 0.0, 255.0]
    one = attack.pgd(images, torch.tensor([0]), 8.0, steps=40)  # a step is half a unit
    assert torch.equal(one, attacked)


def test_attacks_on_normalized_pixels_divide_epsilon_by_255_std() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 3)
    )
    preprocess = Preprocess(8, 1.0, "bicubic", (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    raw = np.random.default_rng(0).integers(40, 200, (6, 8, 8, 3), dtype=np.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    attack = Attack(model, preprocess, torch.device("cpu"))
    ours = attack.fgsm(attack.images(raw), labels, 8.0)

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    x = ((torch.from_numpy(raw).permute(0, 3, 1, 2) / 255 - mean) / std).requires_grad_(True)
    torch.autograd.backward(nn.functional.cross_entropy(model(x), labels))
    assert x.grad is not None
    theirs = x.detach() + 8 / (255 * std) * x.grad.sign()
    assert torch.allclose((ours / 255 - mean) / std, theirs, atol=1e-4)


def test_stronger_attacks_leave_less_right_and_pgd_least() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 64), nn.ReLU(), nn.Linear(64, 3))
    preprocess = Preprocess(8, 1.0, "bicubic", (0.5,) * 3, (0.25,) * 3)
    raw = np.random.default_rng(0).integers(0, 255, (64, 8, 8, 3), dtype=np.uint8)
    attack = Attack(model, preprocess, torch.device("cpu"))
    truth = attack.logits(attack.images(raw)).argmax(dim=1)
    right = {
        (name, epsilon): float(outcome.mean())
        for name, epsilon, outcome in attack.outcomes(raw, truth.numpy(), (2.0, 8.0, 32.0), 10)
    }
    assert right["fgsm", 0.0] == right["pgd", 0.0] == 1.0
    for name in ("fgsm", "pgd"):
        assert right[name, 0.0] >= right[name, 2.0] >= right[name, 8.0] >= right[name, 32.0]
    assert right["pgd", 32.0] <= right["fgsm", 32.0] < 0.9
