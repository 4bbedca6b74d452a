"""The selection policy against the definition it stands for: sort, cut, copy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ns_ray.config.labeling import SelectConfig
from ns_ray.selection import policy

CLASSES = 4
Array = np.ndarray[Any, Any]


def plan_rows(
    config: SelectConfig, labels: Array, confidence: Array, hashes: Array, parts: list[Array]
) -> policy.Quotas:
    """The passes of selection.py over rows spread over parts (index arrays)."""
    statistics, least = policy.Statistics(CLASSES), np.full(CLASSES, config.threshold)
    for rows in parts:
        statistics.add(policy.count(labels[rows], confidence[rows], least))
    target = policy.class_target(config.per_class, statistics.eligible.sum(axis=1))
    cut = policy.first_cut(statistics.eligible, target)
    while cut.open:
        counts = np.zeros_like(statistics.eligible)
        for part in parts:
            rows = part[cut.rows(labels[part], confidence[part])]
            ranks = policy.rank(confidence[rows], hashes[rows] if cut.needs_hashes else None)
            cut.count(labels[rows], ranks).add_to(counts)
        cut = policy.narrow(cut, counts)
    return policy.quotas(config, least, statistics.eligible, cut, target)


def copies_of(config: SelectConfig, labels: Array, confidence: Array, hashes: Array) -> Array:
    """Copies of each row, with hashes only where the quotas asks for them."""
    quotas = plan_rows(config, labels, confidence, hashes, [np.arange(len(labels))])
    asked = quotas.needs_hash(labels, confidence)
    return quotas.apply(labels, confidence, np.where(asked, hashes, 0).astype(np.uint64))


def by_sorting(config: SelectConfig, labels: Array, confidence: Array, hashes: Array) -> set[int]:
    """The rows that should be kept."""
    above = confidence > np.float32(config.threshold)
    target = config.per_class
    if target == "auto":
        target = max(1, round(above.sum() / CLASSES))
    kept: set[int] = set()
    for label in range(CLASSES):
        rows = np.flatnonzero(above & (labels == label))
        order = np.lexsort((hashes[rows], np.minimum(confidence[rows], 1)))[::-1]
        kept |= set(rows[order][:target].tolist())
    return kept


def make_rows(seed: int, n: int, distinct: int) -> tuple[Array, Array, Array]:
    """n rows of skewed classes, with at most `distinct` confidences: many ties when small."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, n, p=[0.6, 0.3, 0.1, 0.0]).astype(np.int32)
    values = np.append(rng.random(distinct), [1.0, 1.0000001]).astype(np.float32)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    return labels, rng.choice(values, n), hashes


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 300),
    distinct=st.sampled_from([1, 3, 40, 10_000]),
    per_class=st.sampled_from([1, 2, 17, 90, "auto", None]),
    threshold=st.sampled_from([0.0, 0.3, 0.9]),
    max_copies=st.sampled_from([1, 2, 5]),
)
def test_keeps_the_highest_of_each_class(
    seed: int, n: int, distinct: int, per_class: Any, threshold: float, max_copies: int
) -> None:
    labels, confidence, hashes = make_rows(seed, n, distinct)
    config = SelectConfig(threshold=threshold, per_class=per_class, max_copies=max_copies)
    copies = copies_of(config, labels, confidence, hashes)
    assert set(np.flatnonzero(copies)) == by_sorting(config, labels, confidence, hashes)
    assert copies.max() <= max_copies


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), parts=st.sampled_from([2, 3, 7]))
def test_the_outcome_does_not_depend_on_how_rows_are_spread(seed: int, parts: int) -> None:
    labels, confidence, hashes = make_rows(seed, 400, 5)
    config = SelectConfig(per_class=30, max_copies=3)
    whole = plan_rows(config, labels, confidence, hashes, [np.arange(400)])
    shuffled = np.random.default_rng(seed).permutation(400)
    spread = plan_rows(config, labels, confidence, hashes, np.array_split(shuffled, parts))
    for name in ("eligible", "lowest", "copies"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(spread, name))


def test_a_huge_tie_is_cut_exactly_and_fairly() -> None:
    n, target = 200_000, 12_345
    rng = np.random.default_rng(0)
    labels, ones = np.zeros(n, np.int32), np.ones(n, np.float32)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    copies = copies_of(SelectConfig(per_class=target), labels, ones, hashes)
    assert copies.sum() == target
    halves = copies.reshape(2, -1).sum(axis=1) / (n / 2)
    assert halves == pytest.approx([target / n] * 2, rel=0.05)


def test_rows_that_tie_in_all_bits_are_left_out() -> None:
    labels, ones = np.zeros(10, np.int32), np.ones(10, np.float32)
    hashes = np.array([2**64 - 1] * 3 + [5] * 7, np.uint64)
    assert copies_of(SelectConfig(per_class=5), labels, ones, hashes).tolist() == [1] * 3 + [0] * 7
    assert copies_of(SelectConfig(per_class=2), labels, ones, hashes).sum() == 0


def test_a_row_on_the_very_edge_of_its_bin_is_kept() -> None:
    labels, confidence = np.zeros(4, np.int32), np.array([0.75, 0.5, 0.75, 0.4], np.float32)
    hashes = np.arange(4, dtype=np.uint64)
    assert copies_of(SelectConfig(per_class=2), labels, confidence, hashes).tolist() == [1, 0, 1, 0]


def test_a_cut_in_the_bin_of_the_threshold_keeps_eligible_rows_only() -> None:
    confidence = np.linspace(0.29999, 0.30001, 100, dtype=np.float32)
    labels, hashes = np.zeros(100, np.int32), np.arange(100, dtype=np.uint64)
    above = int((confidence > np.float32(0.3)).sum())
    for target in (above - 1, above, above + 1):
        config = SelectConfig(per_class=target, max_copies=1)
        copies = copies_of(config, labels, confidence, hashes)
        assert np.flatnonzero(copies).tolist() == list(range(100 - min(target, above), 100))


@pytest.mark.parametrize(
    ("rows", "max_copies", "total"),
    [(1000, 5, 1500), (400, 5, 1500), (100, 5, 500), (1000, 1, 1000), (1500, 5, 1500)],
)
def test_rare_classes_are_filled_up_with_copies(rows: int, max_copies: int, total: int) -> None:
    config = SelectConfig(per_class=1500, max_copies=max_copies)
    hashes = np.random.default_rng(1).integers(0, 2**64, rows, dtype=np.uint64)
    labels, confidence = np.zeros(rows, np.int32), np.full(rows, 0.5, np.float32)
    copies = copies_of(config, labels, confidence, hashes)
    assert copies.sum() == pytest.approx(total, rel=0.05)
    assert copies.max() - copies.min() <= 1, "copies are spread evenly"
    assert copies.min() >= 1


def test_thresholds_per_class_name_the_lowest_kept_confidence() -> None:
    labels = np.repeat(np.arange(2, dtype=np.int32), 100)
    confidence = np.tile(np.linspace(0.4, 0.99, 100, dtype=np.float32), 2)[:150]
    labels = labels[:150]
    hashes = np.arange(150, dtype=np.uint64)
    config = SelectConfig(threshold=0.3, per_class=60)
    quotas = plan_rows(config, labels, confidence, hashes, [np.arange(150)])
    lowest = confidence[:100][-60]
    assert quotas.thresholds[0] == pytest.approx(lowest, abs=1 / policy.BINS)
    assert quotas.thresholds[1:].tolist() == [0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    ("per_class", "eligible", "expected"),
    [
        ("auto", [10, 0, 4, 0], 4),
        ("auto", [1, 0, 0, 0], 1),
        (7, [10, 0, 4, 0], 7),
        (None, [10, 0, 4, 0], None),
    ],
)
def test_class_target(per_class: Any, eligible: list[int], expected: int | None) -> None:
    assert policy.class_target(per_class, np.array(eligible)) == expected


def test_statistics_count_all_rows_and_those_above_the_threshold() -> None:
    labels = np.array([0, 0, 1, 1], np.int32)
    confidence = np.array([0.3, 0.31, 0.999, 1.0000002], np.float32)
    statistics = policy.Statistics(2)
    statistics.add(policy.count(labels, confidence, np.full(2, 0.3)))
    assert statistics.coarse.sum(axis=1).tolist() == [2, 2]
    assert statistics.coarse[1, -1] == 2
    assert statistics.eligible.sum(axis=1).tolist() == [1, 2]
    assert statistics.highest == pytest.approx(1.0000002)


def test_ranks_order_by_confidence_then_hash() -> None:
    floats = np.float32(0.7)
    above = np.nextafter(floats, np.float32(1))
    confidence = np.array([0.0, floats, floats, above, 1.0, 1.5], np.float32)
    hashes = np.array([2**64 - 1, 0, 2**64 - 1, 0, 0, 0], np.uint64)
    ranks = policy.rank(confidence, hashes).tolist()
    assert ranks[:5] == sorted(set(ranks[:5]))
    assert ranks[4] == ranks[5]
    assert ranks[0] >= 0
    assert ranks[5] < 2**62
