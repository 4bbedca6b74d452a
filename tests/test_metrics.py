"""Scores and the paired test against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ns_ray.scoring.paired import better_p, compare, difference_interval
from ns_ray.scoring.scores import (
    MAX_CONFUSION,
    expected_calibration_error,
    interval,
    reliability,
    score,
)

PROBS = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]],
    np.float32,
)
LABELS = np.array([0, 1, 2, 2, 1])
CLASSES = ("ant", "bee", "cat")


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    old = [True] * both + [False] * gained + [True] * lost + [False] * neither
    new = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return np.array(old, bool), np.array(new, bool)


def test_score_by_hand() -> None:
    scores = score(PROBS, LABELS, CLASSES, top_k=2)
    assert scores["rows"] == 5
    assert scores["top1"] == pytest.approx(3 / 5)
    assert scores["top2"] == pytest.approx(5 / 5)
    expected = -sum(math.log(p) for p in (0.7, 0.5, 0.3, 0.4, 0.3)) / 5
    assert scores["nll"] == pytest.approx(expected, rel=1e-5)
    ant, bee, cat = scores["classes"]
    assert ant == {"name": "ant", "rows": 1, "precision": 0.5, "recall": 1.0, "f1": 2 / 3}
    assert (bee["rows"], bee["precision"], bee["recall"]) == (2, 0.5, 0.5)
    assert (cat["rows"], cat["precision"], cat["recall"]) == (2, 1.0, 0.5)
    assert scores["balanced_accuracy"] == pytest.approx((1 + 0.5 + 0.5) / 3)


@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 60))
def test_score_agrees_with_torch(seed: int, classes: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (rows, classes)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, classes, rows))
    names = tuple(str(i) for i in range(classes))
    scores = score(logits.softmax(1).numpy(), labels.numpy(), names, top_k=5)
    k = min(5, classes)
    hits = (logits.topk(k).indices == labels[:, None]).any(1)
    assert scores["top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert scores[f"top{k}"] == pytest.approx(hits.float().mean().item())
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert scores["nll"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert [row["name"] for row in scores["classes"]] == list(names)
    assert sum(row["rows"] for row in scores["classes"]) == rows


def test_k_is_at_most_the_number_of_classes() -> None:
    scores = score(PROBS, LABELS, CLASSES, top_k=5)
    assert scores["top3"] == 1.0
    assert "top5" not in scores
    assert score(PROBS, LABELS, CLASSES, top_k=1)["top1"] == pytest.approx(3 / 5)


def test_a_class_without_images_is_no_error() -> None:
    scores = score(PROBS[:2], LABELS[:2], CLASSES, top_k=2)
    assert scores["top1"] == 1.0
    assert scores["classes"][2] == {
        "name": "cat",
        "rows": 0,
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
    }


def test_a_sure_and_wrong_model_has_a_finite_loss() -> None:
    scores = score(np.array([[1.0, 0.0]], np.float32), np.array([1]), ("a", "b"), top_k=1)
    assert math.isfinite(scores["nll"])
    assert scores["nll"] > 20


def test_the_confusion_matrix_has_true_classes_in_rows() -> None:
    # 0->0, 1->1, 2->1 and 2->2, 1->0
    assert score(PROBS, LABELS, CLASSES, top_k=1)["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    many = np.full((1, MAX_CONFUSION + 1), 1 / (MAX_CONFUSION + 1), np.float32)
    names = tuple(str(i) for i in range(MAX_CONFUSION + 1))
    assert score(many, np.array([0]), names, top_k=1)["confusion"] is None


def test_intervals_hold_what_a_bootstrap_by_hand_finds() -> None:
    right = np.arange(400) % 5 > 0  # 80 %
    rng = np.random.default_rng(3)
    means = [rng.choice(right, 400).mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert interval(right) == pytest.approx([low, high], abs=0.005)
    assert interval(right.astype(float)) == pytest.approx([low, high], abs=0.008)
    assert interval(right.astype(float)) == interval(right.astype(float))  # nothing is random
    assert score(PROBS, LABELS, CLASSES, 1)["top1_interval"] == interval(
        PROBS.argmax(axis=1) == LABELS
    )
    assert interval(np.ones(9)) == [1.0, 1.0]


def test_twenty_of_twenty_right_is_no_certainty() -> None:
    """Wilson's interval, by its formula: n / (n + z^2) at the far end."""
    all_right, all_wrong = interval(np.ones(20, bool)), interval(np.zeros(20, bool))
    assert all_right == pytest.approx([20 / (20 + 1.96**2), 1.0], abs=1e-4)
    assert all_wrong == pytest.approx([0.0, 1 - all_right[0]])
    assert interval(np.zeros(0, bool)) == [0.0, 1.0]


def test_two_models_side_by_side() -> None:
    found = compare(*outcomes(both=90, gained=8, lost=2, neither=0))
    assert (found["rows"], found["gained"], found["lost"]) == (100, 8, 2)
    assert found["difference"] == pytest.approx(0.06)
    assert found["p"] == better_p(*outcomes(90, 8, 2, 0))
    low, high = found["interval"]
    spread = 1.96 * math.sqrt((10 - 100 * 0.06**2) / 100 / 100)
    assert low == pytest.approx(0.06 - spread, abs=0.015)
    assert high == pytest.approx(0.06 + spread, abs=0.015)


def test_two_models_that_never_differ_may_still_be_different() -> None:
    """The interval by its formula, half an image in each cell: z * sqrt(1 / 102 / 102)."""
    found = compare(*outcomes(both=60, gained=0, lost=0, neither=40))
    assert found["difference"] == 0.0
    assert found["interval"] == pytest.approx([-1.96 / 102, 1.96 / 102], rel=1e-4)
    nothing = compare(np.zeros(0, bool), np.zeros(0, bool))
    assert nothing["interval"] == pytest.approx([-0.98, 0.98], abs=1e-3)
    low, high = compare(*outcomes(both=0, gained=50, lost=0, neither=0))["interval"]
    assert 0.8 < low < high == 1.0  # it goes no further than a difference can


def test_the_interval_of_a_difference_holds_it_as_often_as_it_says() -> None:
    """Of 2000 pairs of models that differ on 6 % of 200 images: 4 % gained, 2 % lost."""
    drawn = np.random.default_rng(0).multinomial(200, [0.04, 0.02, 0.94], size=2000)
    ends = [difference_interval(int(gained), int(lost), 200) for gained, lost, _ in drawn]
    assert 0.93 < np.mean([low <= 0.02 <= high for low, high in ends]) < 0.975


# ------------------------------------------------------------------------------ calibration


def test_reliability_by_hand() -> None:
    confidence = np.array([0.6, 0.7, 0.8, 1.0])
    probs = np.stack([confidence, 1 - confidence], axis=1)
    rows = reliability(probs, np.array([0, 1, 0, 0]), bins=4)
    assert [row["rows"] for row in rows] == [0, 0, 2, 2]
    assert rows[2] == pytest.approx(
        {"low": 0.5, "high": 0.75, "rows": 2, "confidence": 0.65, "accuracy": 0.5}
    )
    assert rows[0]["confidence"] == rows[0]["accuracy"] == 0.0


def test_calibration_error_by_hand() -> None:
    # Two bins of four: 0.6 and 0.7 in (0.5, 0.75], one right; 0.8 and 1.0 in (0.75, 1], both.
    confidence = np.array([0.6, 0.7, 0.8, 1.0])
    probs = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 1, 0, 0])
    expected = 2 / 4 * abs(1 / 2 - 0.65) + 2 / 4 * abs(2 / 2 - 0.9)
    assert expected_calibration_error(probs, labels, bins=4) == pytest.approx(expected)


def test_a_bin_includes_its_upper_edge() -> None:
    # 0.75 belongs to (0.5, 0.75] together with 0.6, so the two gaps cancel in part.
    confidence = np.array([0.75, 0.6])
    probs = np.stack([confidence, 1 - confidence], axis=1)
    expected = abs((1 + 0) - (0.75 + 0.6)) / 2
    error = expected_calibration_error(probs, np.array([0, 1]), bins=4)
    assert error == pytest.approx(expected)


def test_calibration_error_extremes() -> None:
    sure = np.tile([1.0, 0.0], (10, 1))
    assert expected_calibration_error(sure, np.zeros(10, int)) == 0.0
    assert expected_calibration_error(sure, np.ones(10, int)) == 1.0
    assert expected_calibration_error(np.zeros((0, 2)), np.zeros(0, int)) == 0.0
    even = np.tile([0.5, 0.5], (10, 1))
    assert expected_calibration_error(even, np.array([0, 1] * 5)) == pytest.approx(0.0)


# ------------------------------------------------------------------------------- mid-p McNemar


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 0.5),
        (1, 0, 0.25),
        (0, 1, 0.75),
        (2, 0, 1 / 8),
        (1, 1, 0.5),
        (7, 7, 0.5),
        (3, 1, (1 + 4 / 2) / 16),  # 4 of 4, and half of 3 of 4
        (1, 3, 1 - (1 + 4 / 2) / 16),
        (10, 0, 0.5**11),
    ],
)
def test_paired_test_by_hand(gained: int, lost: int, p: float) -> None:
    assert better_p(*outcomes(5, gained, lost, 3)) == pytest.approx(p)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20), st.integers(0, 20))
def test_paired_test_properties(gained: int, lost: int, both: int, neither: int) -> None:
    p = better_p(*outcomes(both, gained, lost, neither))
    assert p == pytest.approx(1 - better_p(*outcomes(both, lost, gained, neither)))
    assert p == better_p(*outcomes(0, gained, lost, 0))  # only images they differ on count
    assert p > better_p(*outcomes(both, gained + 1, lost, neither))
    if gained != lost:
        assert (p < 0.5) == (gained > lost)


def test_nothing_to_compare_decides_nothing() -> None:
    assert better_p(np.zeros(0, bool), np.zeros(0, bool)) == 0.5
