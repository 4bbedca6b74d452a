"""Which pseudo-labeled rows to keep, and how many copies of each: arithmetic on class statistics.

Per predicted class the policy keeps the `per_class` rows of highest confidence among those above
the threshold, and fills rarer classes up with copies. No row is ever compared with another. Every
row has a 62-bit rank: its confidence first, a hash of its key to break ties. A histogram of ranks
per class names the bin in which the class is cut; a histogram of that bin alone narrows the cut
2,048-fold, and so on until it is exact. Histograms add up, so the outcome is the same for any
number of files, tasks or nodes, in any order, and the memory is classes x bins whatever the rows.

    level    0        1        2         3        4       5
    bits     61..51   50..40   39..30    29..19   18..8   7..0
             ---- confidence ---------   ---- hash ----------

Knows nothing about files or Ray: selection.py reads, counts in tasks and writes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ns_ray.config import SelectConfig

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]
Array = npt.NDArray[Any]

BINS = 2048
"""Bins per class and level: the first level cuts confidences 0 to 1 into steps of 0.0005."""
STEPS = 2**16
"""Confidences are added up in steps of this part of 1: whole numbers, the same sum in any order."""
COARSE_BINS = 20
"""Bins of the confidence histogram that people look at."""
FOREIGN_BINS, FOREIGN_FIRST = 40, -1.0
"""Bins of the histogram of how foreign rows are, and where it begins; each is 0.1 wide, so that one
begins just above 1. The outer ones hold what lies beyond."""

_SHIFTS = (51, 40, 30, 19, 8, 0)
"""Lowest rank bit that a level looks at; 2 ** 11 = BINS values at most are between two of them."""
_TOP = 62
_HASH_BITS = 30
_UNIT = 2.0**32
"""Confidences are counted in units of 2^-32: exact for float32 values from 0.002 up to 1."""
LAST_CONFIDENCE_LEVEL = 2
"""Later levels split rows of equal confidence, and need hashes."""


@dataclass(frozen=True, eq=False)
class Tally:
    """A sparse histogram: what one task counted.

    Attributes:
        cells: distinct cell numbers, class * bins + bin.
        counts: rows in each of them.
    """

    cells: Ints
    counts: Ints

    @classmethod
    def of(cls, cells: Ints) -> "Tally":
        """Count equal cell numbers."""
        distinct, counts = np.unique(cells, return_counts=True)
        return cls(distinct, counts.astype(np.int64))

    def add_to(self, total: Ints) -> None:
        """Add these counts to a dense histogram [classes, bins], in place."""
        total.reshape(-1)[self.cells] += self.counts


@dataclass(frozen=True, eq=False)
class Counted:
    """Statistics of some rows.

    Attributes:
        eligible: cells of BINS per class, rows above the threshold.
        coarse: cells of COARSE_BINS per class, all rows.
        highest: highest confidence, 0 without rows.
        total, squares: sums of all confidences and of their squares, in STEPS and their squares.
        foreign: int64 [FOREIGN_BINS], all rows by how foreign they are; None where it isn't known.
    """

    eligible: Tally
    coarse: Tally
    highest: float
    total: int
    squares: int
    foreign: Ints | None = None


class Statistics:
    """Statistics of all rows: sums of `Counted`, in any order.

    Attributes:
        eligible: int64 [classes, BINS], rows above the threshold by confidence.
        coarse: int64 [classes, COARSE_BINS], all rows by confidence.
        highest: highest confidence, 0 without rows.
        total, squares: sums of all confidences and of their squares, in STEPS and their squares.
        foreign: int64 [FOREIGN_BINS], all rows of the pile by how foreign they are.
    """

    def __init__(self, num_classes: int) -> None:
        self.eligible: Ints = np.zeros((num_classes, BINS), np.int64)
        self.coarse: Ints = np.zeros((num_classes, COARSE_BINS), np.int64)
        self.foreign: Ints = np.zeros(FOREIGN_BINS, np.int64)
        self.highest = 0.0
        self.total = self.squares = 0

    def add(self, part: Counted) -> None:
        """Count the rows of a part, too."""
        part.eligible.add_to(self.eligible)
        part.coarse.add_to(self.coarse)
        self.highest = max(self.highest, part.highest)
        self.total += part.total
        self.squares += part.squares
        if part.foreign is not None:
            self.foreign += part.foreign


def count(labels: Array, confidence: Array, least: Floats) -> Counted:
    """Statistics of some rows.

    Args:
        labels: predicted classes [n].
        confidence: float32 [n], finite; rounding may have lifted it above 1.
        least: float64 [classes], rows must be above that of their class, compared as float32.
    """
    above = eligible(labels, confidence, least)
    ranks = rank(confidence[above])
    classes = labels.astype(np.int64)
    steps = np.rint(np.clip(confidence, 0, 1) * STEPS).astype(np.int64)
    coarse = np.clip(confidence * COARSE_BINS, 0, COARSE_BINS - 1).astype(np.int64)
    return Counted(
        eligible=Tally.of(classes[above] * BINS + (ranks >> _SHIFTS[0])),
        coarse=Tally.of(classes * COARSE_BINS + coarse),
        highest=float(confidence.max(initial=0.0)),
        total=int(steps.sum()),
        squares=int((steps**2).sum()),
    )


def count_foreign(foreign: Array) -> Ints:
    """int64 [FOREIGN_BINS] of float32 [n]; a row at the upper edge of a bin belongs to it."""
    bins = np.ceil((foreign.astype(np.float64) - FOREIGN_FIRST) * 10) - 1
    counts = np.bincount(np.clip(bins, 0, FOREIGN_BINS - 1).astype(np.int64), None, FOREIGN_BINS)
    return counts.astype(np.int64)


def eligible(labels: Array, confidence: Array, least: Floats) -> Mask:
    """Rows above the threshold of their class."""
    return np.asarray(confidence > least.astype(np.float32)[labels], dtype=np.bool_)


def rank(confidence: Array, hashes: Hashes | None = None) -> Ints:
    """Ranks of rows, the higher the better: confidence first, then the upper bits of the hash
    (zeros without hashes). Confidences above 1 count as 1."""
    units = np.clip(confidence.astype(np.float64) * _UNIT, 0, _UNIT - 1).astype(np.int64)
    ranks = units << _HASH_BITS
    if hashes is not None:
        ranks |= (hashes >> np.uint64(64 - _HASH_BITS)).astype(np.int64)
    return np.asarray(ranks, dtype=np.int64)


def class_target(per_class: int | Literal["auto"] | None, eligible_rows: Ints) -> int | None:
    """Rows that each class should end up with; `auto` is the mean of the eligible rows.

    Args:
        per_class: the setting `select.per_class`.
        eligible_rows: int64 [classes].
    """
    if per_class == "auto":
        return max(1, round(int(eligible_rows.sum()) / len(eligible_rows)))
    return per_class


@dataclass(frozen=True, eq=False)
class Cut:
    """Where each class is cut, as far as that is known yet.

    Attributes:
        level: the level that the next histogram looks at.
        undecided: bool [classes], whether the cut still has to be narrowed.
        prefix: int64 [classes], upper rank bits of the rows among which the cut lies.
        missing: int64 [classes], how many of those rows to keep.
        lowest: int64 [classes], lowest rank that is kept; 0 keeps all.
    """

    level: int
    undecided: Mask
    prefix: Ints
    missing: Ints
    lowest: Ints

    @property
    def open(self) -> bool:
        """Whether some class needs another histogram."""
        return bool(self.undecided.any())

    @property
    def needs_hashes(self) -> bool:
        """Whether the next histogram looks at hashes."""
        return self.level > LAST_CONFIDENCE_LEVEL

    def rows(self, labels: Array, confidence: Array) -> Mask:
        """Rows that the next histogram may count, as far as labels and confidences tell. Rows
        below the threshold may be among them: they rank below every cut and change none."""
        shift = max(self._upper, _HASH_BITS)
        same = (rank(confidence) >> shift) == (self.prefix >> (shift - self._upper))[labels]
        return np.asarray(same & self.undecided[labels], dtype=np.bool_)

    def count(self, labels: Array, ranks: Ints) -> Tally:
        """Cells (BINS per class) of the rows among which the cut lies."""
        among = self.undecided[labels] & ((ranks >> self._upper) == self.prefix[labels])
        shift = _SHIFTS[self.level]
        digits = (ranks[among] >> shift) & ((1 << (self._upper - shift)) - 1)
        return Tally.of(labels[among].astype(np.int64) * BINS + digits)

    @property
    def _upper(self) -> int:
        """Lowest rank bit that is decided."""
        return _TOP if self.level == 0 else _SHIFTS[self.level - 1]


def first_cut(counts: Ints, target: int | None) -> Cut:
    """The bin in which each class with more than `target` rows is cut.

    Args:
        counts: int64 [classes, BINS], eligible rows by confidence.
        target: rows to keep per class; None keeps all.
    """
    total = counts.sum(axis=1)
    zeros = np.zeros_like(total)
    if target is None:
        return Cut(0, np.zeros(len(total), np.bool_), zeros, zeros, zeros)
    start = Cut(0, total > target, zeros, np.full_like(total, target), zeros)
    return narrow(start, counts)


def narrow(cut: Cut, counts: Ints) -> Cut:
    """Take the next histogram into account. After the last level, rows that still tie with the
    cut (equal confidence and 30 equal hash bits) are left out: never more than the target.

    Args:
        cut: what is known so far.
        counts: int64 [classes, BINS], the sum of `cut.count` over all rows.
    """
    classes = np.flatnonzero(cut.undecided)
    shift, last = _SHIFTS[cut.level], cut.level == len(_SHIFTS) - 1
    from_top = counts[classes, ::-1].cumsum(axis=1)
    whole = (from_top < cut.missing[classes, None]).sum(axis=1)
    digit = BINS - 1 - whole
    inside = counts[classes, digit]
    missing = cut.missing[classes] - (from_top[np.arange(len(classes)), whole] - inside)
    prefix = (cut.prefix[classes] << (cut._upper - shift)) + digit
    full = inside == missing
    lowest = np.where(full, prefix, prefix + 1) << shift
    return Cut(
        level=cut.level + 1,
        undecided=_put(cut.undecided, classes, np.logical_not(full | last)),
        prefix=_put(cut.prefix, classes, prefix),
        missing=_put(cut.missing, classes, missing),
        lowest=_put(cut.lowest, classes, np.where(full | last, lowest, 0)),
    )


def _put(values: Array, where: Ints, new: Array) -> Array:
    changed = values.copy()
    changed[where] = new
    return changed


@dataclass(frozen=True, eq=False)
class Quotas:
    """What happens to the rows of each class.

    Attributes:
        least: float64 [classes], rows must be above this confidence.
        target: rows that each class should end up with; None when classes are not balanced.
        eligible: int64 [classes], rows above the threshold.
        lowest: int64 [classes], lowest rank that is kept; 0 keeps all eligible rows.
        copies: float64 [classes], mean copies per kept row, from 1 to `select.max_copies`.
    """

    least: Floats
    target: int | None
    eligible: Ints
    lowest: Ints
    copies: Floats

    @property
    def thresholds(self) -> Floats:
        """Lowest confidence that is kept, per class: the threshold, or higher where it is cut."""
        return np.maximum((self.lowest >> _HASH_BITS) / _UNIT, self.least)

    def needs_hash(self, labels: Array, confidence: Array) -> Mask:
        """Rows [n] that are not decided by their confidence: those of just the confidence at which
        their class is cut, and those whose copies are drawn."""
        cut, ranks = self.lowest[labels], rank(confidence)
        tied = (ranks < cut) & (ranks >> _HASH_BITS == cut >> _HASH_BITS)
        drawn = np.modf(self.copies)[0][labels] > 0
        above = eligible(labels, confidence, self.least)
        return np.asarray((tied | drawn) & above, dtype=np.bool_)

    def apply(self, labels: Array, confidence: Array, hashes: Hashes) -> Ints:
        """Copies of each row, 0 for those that are dropped.

        Args:
            labels: predicted classes [n].
            confidence: float32 [n].
            hashes: uint64 [n]; read only where `needs_hash` says so.
        """
        keep = eligible(labels, confidence, self.least)
        keep &= rank(confidence, hashes) >= self.lowest[labels]
        part, whole = np.modf(self.copies[labels])
        drawn = (hashes & np.uint64(2**32 - 1)).astype(np.float64) / _UNIT
        return np.where(keep, whole + (drawn < part), 0).astype(np.int64)


def quotas(
    config: SelectConfig, least: Floats, counts: Ints, cut: Cut, target: int | None
) -> Quotas:
    """What is decided.

    Args:
        config: gives the most copies of a row.
        least: float64 [classes], the thresholds.
        counts: int64 [classes, BINS], eligible rows by confidence.
        cut: where classes are cut; no longer open.
        target: rows that each class should end up with.
    """
    assert not cut.open
    rows = counts.sum(axis=1)
    copies = np.ones(len(rows))
    if target is not None:
        rare = rows < target
        wanted = target / np.maximum(rows, 1)
        copies[rare] = np.minimum(wanted, config.max_copies)[rare]
    return Quotas(least, target, rows, cut.lowest, copies)
