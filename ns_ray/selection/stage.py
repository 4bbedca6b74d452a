"""The selection stage: pseudo-labels in, the rows that train the student out.

    pass 1      statistics per predicted class
    pass 2..    a narrower histogram, as long as policy.py cannot tell where a class is cut
    last pass   one file of kept rows and their copies per corpus shard

Each pass (passes.py) takes some label files at a time, in Ray tasks where they are many; what
comes back is counts, never rows, so the driver needs the same memory for a thousand rows as for
a billion. Knows nothing about images or models.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ns_ray import log, store
from ns_ray.compute import tasks
from ns_ray.config import SelectConfig
from ns_ray.errors import ConfigError, DataError
from ns_ray.selection import passes, policy
from ns_ray.selection.passes import LabelFile, LabelFiles, Write, Written
from ns_ray.selection.printing import say
from ns_ray.selection.validation import Validated, validated
from ns_ray.selection.weighting import gaussian_of
from ns_ray.store import (
    FOREIGN_LEVEL,
    FORMAT,
    Corpus,
    Evaluation,
    PseudoLabels,
    Selection,
    open_selection,
)

SECONDS_PER_FILE, SECONDS_PER_ROW = 5e-3, 6e-7
"""What the passes over label files take in one process (measured: 489 files of 1,024 rows in 2.4 s,
10 of 100,000 in 0.65 s)."""
TASK_FILES, TASK_ROWS = 64, 1_000_000
"""Most label files, and about the most rows, that one task handles."""

T = TypeVar("T")


def select(
    config: SelectConfig,
    labels: PseudoLabels,
    *,
    seed: int,
    labeled_counts: Sequence[int] | None = None,
    previous: Selection | None = None,
    evaluation: Evaluation | None = None,
    validation: Corpus | None = None,
    out: str,
) -> Selection:
    """Decide which pseudo-labeled rows train the student, and how many copies of each.

    Args:
        config: threshold, balance and copies.
        labels: the teacher's pseudo-labels.
        seed: with the key it decides ties and copies.
        labeled_counts: labeled images per class, for the printed table only.
        previous: the last generation's selection; with `config.reassign` its keys and copies stay,
            and get the labels and confidences of `labels`.
        evaluation, validation: the teacher's scores on validation images, and these images.
        out: folder or URI of the selection. Run again with the same inputs, it is returned as is.

    Raises:
        ConfigError: the settings need validation images or what is foreign, which isn't known.
        DataError: no row is selected, or the labels cannot be used.
        StageError: a task failed; running again continues.
    """
    start = time.monotonic()
    out = store.absolute(out)
    kept_from = previous if config.reassign else None
    inputs = _inputs(config, labels, kept_from, evaluation)
    made_of = [value for name, value in inputs.items() if name != "config"]
    fingerprint = store.fingerprint("select", FORMAT, inputs["config"], seed, *made_of)
    with store.claimed(out, fingerprint) as done:
        if done is not None:
            return open_selection(out)
        found = validated(config, labels, evaluation, validation, anew=kept_from is None)
        statistics = _statistics(config, found, labels, seed)
        gaussian = gaussian_of(statistics) if config.weights else None
        quotas = None
        if kept_from is None:
            quotas = _quotas(config, found, labels, statistics, seed)
            write = partial(passes.selected, config, quotas, gaussian, seed)
        else:
            write = partial(passes.reassigned, _same_corpus(kept_from, labels), gaussian)
        written = _write(labels, write, out, fingerprint)
        facts = _facts(config, found, labels, statistics, quotas, written, labeled_counts)
        facts |= {"seed": seed, "reassigned": kept_from.path if kept_from else None}
        store.publish(
            out,
            stage="select",
            fingerprint=fingerprint,
            files=written.files,
            facts=facts,
            inputs=inputs,
            seconds=time.monotonic() - start,
        )
    say(selection := open_selection(out))
    return selection


def _check_foreign(config: SelectConfig, labels: PseudoLabels) -> None:
    """
    Raises:
        ConfigError: `select.max_foreign` is set, and the labels don't say.
    """
    if config.max_foreign is not None and not labels.foreign:
        raise ConfigError(
            f"select.max_foreign={config.max_foreign}: {labels.path} does not say how foreign its "
            "images are, which the labels of a run do with 20 validation images or more and a "
            "teacher that has pooled features; label again, or set select.max_foreign=null"
        )


def _inputs(
    config: SelectConfig,
    labels: PseudoLabels,
    kept_from: Selection | None,
    evaluation: Evaluation | None,
) -> dict[str, Any]:
    """What a selection is made from.

    Raises:
        ConfigError: `select.max_foreign` is set, and the labels don't say what is foreign.
    """
    _check_foreign(config, labels)
    inputs = {
        "labels": labels.fingerprint,
        "previous": kept_from.fingerprint if kept_from else None,
        "config": config.model_dump(mode="json"),
    }
    if evaluation is not None and config.needs_validation:
        inputs["evaluation"] = evaluation.fingerprint
    return inputs


# ----------------------------------------------------------------------------------- passes


def _statistics(
    config: SelectConfig, found: Validated, labels: PseudoLabels, seed: int
) -> policy.Statistics:
    """Pass 1."""
    statistics = policy.Statistics(len(labels.classes))
    work = partial(passes.count, config, found.least, labels.foreign, seed)
    for part in _each(work, labels, "select: count"):
        statistics.add(part)
    return statistics


def _quotas(
    config: SelectConfig,
    found: Validated,
    labels: PseudoLabels,
    statistics: policy.Statistics,
    seed: int,
) -> policy.Quotas:
    """What to do with each class, after as many further passes as the cuts need.

    Raises:
        DataError: no row is above the threshold.
    """
    counts = statistics.eligible
    if not counts.any():
        limit, lower = f"select.threshold={config.threshold}", "select.threshold"
        if found.thresholds is not None:
            lower = "select.precision"
            limit = f"the thresholds of {lower}={config.precision} (from {found.least.min():.4f})"
        raise DataError(
            f"no pseudo-label is above {limit}: of {labels.rows:,} "
            f"rows in {labels.path} the highest confidence is {statistics.highest:.4f} (with "
            f"max_confidence={config.max_confidence} and share={config.share}); lower "
            f"{lower}, or label with a better teacher"
        )
    target = policy.class_target(config.per_class, counts.sum(axis=1))
    cut = policy.first_cut(counts, target)
    while cut.open:
        narrower = np.zeros_like(counts)
        work = partial(passes.count_cut, config, cut, len(labels.classes), seed)
        for tally in _each(work, labels, f"select: cut {cut.level}"):
            tally.add_to(narrower)
        cut = policy.narrow(cut, narrower)
    return policy.quotas(config, found.least, counts, cut, target)


def _write(
    labels: PseudoLabels,
    write: Write,
    out: str,
    fingerprint: str,
) -> Written:
    """The last pass: a file per corpus shard."""
    classes = len(labels.classes)
    work = partial(passes.write, write, classes, labels.foreign, out, fingerprint)
    total = Written({}, [], np.zeros(classes, np.int64), np.zeros(classes, np.int64))
    for part in _each(work, labels, "select: write"):
        total.copies.update(part.copies)
        total.files.extend(part.files)
        total.kept_per_class[:] += part.kept_per_class
        total.copies_per_class[:] += part.copies_per_class
    total.files.sort()
    return total


def _same_corpus(previous: Selection, labels: PseudoLabels) -> Selection:
    missing = sorted(set(previous.files) - set(labels.files))
    if previous.corpus != labels.corpus or missing:
        raise DataError(
            f"select.reassign: the selection {previous.path} is of {previous.corpus}, the "
            f"pseudo-labels {labels.path} are of {labels.corpus}"
            + (f" and lack shard {missing[0]!r}" if missing else "")
            + "; label the same corpus, or set select.reassign=false"
        )
    return previous


def _facts(
    config: SelectConfig,
    found: Validated,
    labels: PseudoLabels,
    statistics: policy.Statistics,
    quotas: policy.Quotas | None,
    written: Written,
    labeled_counts: Sequence[int] | None,
) -> dict[str, Any]:
    rows, eligible = statistics.coarse.sum(axis=1), statistics.eligible.sum(axis=1)
    unknown = [None] * len(labels.classes)
    columns = {
        "class": labels.classes,
        "labeled": unknown if labeled_counts is None else [int(n) for n in labeled_counts],
        "rows": rows.tolist(),
        "eligible": eligible.tolist(),
        "kept": written.kept_per_class.tolist(),
        "copies": written.copies_per_class.tolist(),
        "threshold": quotas.thresholds.tolist() if quotas else unknown,
    }
    return {
        "labels": labels.path,
        "corpus": labels.corpus,
        "targets": config.targets,
        "temperature": found.temperature,
        "threshold": config.threshold,
        "per_class": quotas.target if quotas else None,
        "rows": int(rows.sum()),
        "eligible": int(eligible.sum()),
        "kept": int(written.kept_per_class.sum()),
        "copies": int(written.copies_per_class.sum()),
        "highest": statistics.highest,
        "table": [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ],
        "histogram": statistics.coarse.tolist(),
        "counts": dict(sorted(written.copies.items())),
        **found.facts(),
        **(_foreign(statistics) if labels.foreign else {}),
        **(gaussian_of(statistics).facts() if config.weights else {}),
    }


def _foreign(statistics: policy.Statistics) -> dict[str, Any]:
    """How much of the pile is foreign: `rows` are above 1, as is the share `expected` of images of
    the classes. `least` is the share of the pile that is then of no class: more, where the score
    tells not all of it."""
    total, expected = int(statistics.foreign.sum()), 1 - FOREIGN_LEVEL
    above = int(statistics.foreign[round(-10 * policy.FOREIGN_FIRST) + 10 :].sum())
    least = max(0.0, (above / max(total, 1) - expected) / (1 - expected))
    return {
        "foreign": {
            "rows": above,
            "of": total,
            "expected": round(expected, 6),
            "least": round(least, 6),
            "histogram": statistics.foreign.tolist(),
        }
    }


# -------------------------------------------------------------------- over all label files


def _each(work: Callable[[LabelFiles], T], labels: PseudoLabels, title: str) -> Iterator[T]:
    """`work` on all label files, some at a time, in any order."""
    shares = _shares(labels)
    here = tasks.done_here(seconds(labels))
    with nullcontext() if here else log.progress(title, len(labels.files), "label files") as meter:
        for n, result in tasks.each(work, [(files,) for files in shares], here=here, doing=title):
            if meter is not None:
                meter.add(len(shares[n]))
            yield result


def seconds(labels: PseudoLabels) -> float:
    """What selecting takes in one process."""
    return len(labels.files) * SECONDS_PER_FILE + labels.rows * SECONDS_PER_ROW


def _shares(labels: PseudoLabels) -> list[list[LabelFile]]:
    files = [
        LabelFile(shard, store.join(labels.path, name))
        for shard, name in sorted(labels.files.items())
    ]
    rows_per_file = max(labels.rows // max(len(files), 1), 1)
    size = min(TASK_FILES, max(TASK_ROWS // rows_per_file, 1))
    return [files[i : i + size] for i in range(0, len(files), size)]
