"""Thresholds of confidence against the definition they stand for."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from ns_ray.selection.thresholds import Thresholds, for_precision, lower_bound

Array = np.ndarray[Any, Any]


def found(rows: list[tuple[int, float, bool]], precision: float = 0.9, **asked: Any) -> Thresholds:
    """Thresholds of rows (predicted class, confidence, right); two classes unless asked for."""
    predicted, confidence, correct = zip(*rows, strict=True) if rows else ((), (), ())
    return for_precision(
        precision,
        asked.get("lowest", 0.3),
        asked.get("classes", 2),
        np.array(predicted, np.int32),
        np.array(confidence, np.float32),
        np.array(correct, np.bool_),
    )


def some(label: int, count: int, low: float, high: float, right: bool) -> list[Any]:
    return [(label, float(c), right) for c in np.linspace(low, high, count)]


@pytest.mark.parametrize(("right", "count"), [(0, 5), (3, 7), (31, 31), (32, 32), (950, 1000)])
def test_the_bound_is_wilson_s(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.8, method="wilson").low
    assert lower_bound(np.array([right]), np.array([count])) == pytest.approx(expected)
    if right == count:
        assert (expected >= 0.95) == (count >= 32)


def test_it_is_the_lowest_that_gets_there() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 600).astype(np.float32)
    right = rng.random(600) < confidence
    rows = list(zip(np.zeros(600, int), confidence, right, strict=True))
    least = found(rows, 0.85, classes=1)
    assert least.own.all()
    assert least.least[0] == least.pooled
    above = [right[confidence > t] for t in (least.pooled, *confidence[confidence < least.pooled])]
    bounds = lower_bound(np.array([a.sum() for a in above]), np.array([a.size for a in above]))
    assert bounds[0] == least.reached >= 0.85
    assert bounds[1:].max() < 0.85


def test_each_class_has_its_own() -> None:
    rows = some(0, 50, 0.35, 0.9, True) + some(1, 50, 0.35, 0.6, False)
    rows += some(1, 50, 0.61, 0.9, True)
    least = found(rows)
    assert least.own.all()
    assert least.least[0] == 0.3
    assert 0.55 < least.least[1] <= 0.61


def test_a_class_of_few_takes_that_of_all() -> None:
    rows = some(0, 100, 0.35, 0.7, False) + some(0, 100, 0.71, 0.9, True)
    least = found(rows + some(1, 3, 0.5, 0.9, True))
    assert least.own.tolist() == [True, False]
    assert least.least[1] == least.pooled > 0.6
    assert found(rows).least[1] == found(rows).pooled, "of none, too"


def test_a_class_of_few_that_is_wrong_there_takes_a_higher_one() -> None:
    rows = some(0, 100, 0.35, 0.9, True) + some(1, 4, 0.5, 0.8, False) + some(1, 2, 0.85, 0.9, True)
    least = found(rows)
    assert least.pooled == 0.3
    assert least.own.tolist() == [True, False]
    assert least.least[1] == np.float32(0.8)
    # All of them wrong: not even the highest confidence is enough, but one above it would be.
    assert found([*rows, (1, 0.95, False)]).least[1] == np.float32(0.95)


def test_where_nothing_gets_there_it_is_the_nearest() -> None:
    least = found(some(0, 10, 0.4, 0.6, False) + some(1, 8, 0.7, 0.9, True))
    assert least.reached == pytest.approx(binomtest(8, 8).proportion_ci(0.8, "wilson").low)
    assert least.reached < 0.9
    assert not least.own.any()
    assert least.pooled == np.float32(0.6)
    assert least.least.max() < 0.9, "what is surest is always kept"


def test_without_images_it_is_the_plain_threshold() -> None:
    least = found([])
    assert least.least.tolist() == [0.3, 0.3]
    assert least.reached == 0
    assert not least.own.any()
    assert found(some(0, 50, 0.1, 0.9, True), lowest=0.7).least.tolist() == [0.7, 0.7]
