"""Scores of predictions: numpy in, plain numbers out. scikit-learn and scipy do the work."""

from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

BINS = 15
"""Confidence bins of the calibration error (Guo et al. 2017)."""

MAX_CONFUSION = 200
"""Most classes for which the confusion matrix is kept: it is written as JSON."""

RESAMPLES = 2000
"""Bootstrap samples of an interval."""


def score(
    probs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], classes: tuple[str, ...], top_k: int
) -> dict[str, Any]:
    """Accuracy and its relatives.

    Args:
        probs: float32 [n, classes], rows summing to 1.
        labels: int [n].
        classes: class names.
        top_k: the k of top-k accuracy, at most the number of classes.

    Returns:
        top1, topk, nll, ece, all fractions but nll (nats); `balanced_accuracy`, the mean over
        classes of the share of their images that is right; `top1_interval`, its 95 % Wilson
        interval; `confusion`, counts by true class (row) and predicted class (column), None above
        MAX_CONFUSION classes; `reliability`, a row per confidence bin; `classes`, one per class.
    """
    predicted = probs.argmax(axis=1)
    k = min(top_k, len(classes))
    best = np.argpartition(-probs, k - 1, axis=1)[:, :k]
    clipped = np.clip(probs.astype(np.float64), 1e-12, None)
    clipped /= clipped.sum(axis=1, keepdims=True)
    index = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=index, zero_division=0.0
    )
    return {
        "rows": len(labels),
        "top1": float((predicted == labels).mean()),
        "top1_interval": interval(predicted == labels),
        "balanced_accuracy": float(recall[support > 0].mean()) if len(labels) else 0.0,
        f"top{k}": float((best == labels[:, None]).any(axis=1).mean()),
        "nll": float(log_loss(labels, clipped, labels=index)),
        "ece": expected_calibration_error(probs, labels),
        "confusion": confusion_matrix(labels, predicted, labels=index).tolist()
        if len(classes) <= MAX_CONFUSION
        else None,
        "reliability": reliability(probs, labels),
        "classes": [
            {
                "name": name,
                "rows": int(support[i]),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
            }
            for i, name in enumerate(classes)
        ],
    }


def interval(values: np.ndarray[Any, Any], level: float = 0.95) -> list[float]:
    """Interval of a mean over images, always the same for the same values: Wilson's (1927) for yes
    and no, which keeps its width where all images are right, and otherwise a percentile bootstrap.

    Args:
        values: bool or float [n].
        level: share of the intervals that hold the true mean.

    Returns:
        [low, high]; [0, 1] for no image, and the mean twice where all numbers are equal.
    """
    if values.dtype == bool and len(values):
        wilson = binomtest(int(values.sum()), len(values)).proportion_ci(level, method="wilson")
        return [float(wilson.low), float(wilson.high)]
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or values.min() == values.max():
        return [float(values.mean())] * 2 if len(values) else [0.0, 1.0]
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // len(values)),  # 32 MB at a time
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [float(found.low), float(found.high)]


def reliability(
    probs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], bins: int = BINS
) -> list[dict[str, float]]:
    """Mean confidence and accuracy in equally wide confidence bins (low, high].

    Returns:
        A row per bin: low, high, rows, confidence, accuracy; the last two are 0 in an empty bin.
    """
    confidence = probs.max(axis=1)
    correct = probs.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    size = np.bincount(which, minlength=bins)
    right, sure = (np.bincount(which, v, minlength=bins) for v in (correct, confidence))
    return [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "rows": int(size[b]),
            "confidence": float(sure[b] / max(size[b], 1)),
            "accuracy": float(right[b] / max(size[b], 1)),
        }
        for b in range(bins)
    ]


def expected_calibration_error(
    probs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], bins: int = BINS
) -> float:
    """Mean gap between confidence and accuracy over equally wide confidence bins, weighted by
    their size (Guo et al. 2017; 15 bins as there)."""
    rows = reliability(probs, labels, bins)
    gaps = sum(row["rows"] * abs(row["accuracy"] - row["confidence"]) for row in rows)
    return float(gaps / max(len(labels), 1))
