"""Scores of predictions: numpy in, plain numbers out. scikit-learn and scipy do the work."""

from typing import Any

import numpy as np
from scipy.stats import binom
from sklearn.metrics import log_loss, precision_recall_fscore_support


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
        top1, topk, nll, ece, all fractions but nll (nats), and a row per class.
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
        f"top{k}": float((best == labels[:, None]).any(axis=1).mean()),
        "nll": float(log_loss(labels, clipped, labels=index)),
        "ece": expected_calibration_error(probs, labels),
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


def expected_calibration_error(
    probs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equally wide confidence bins, weighted by
    their size (Guo et al. 2017; 15 bins as there)."""
    confidence = probs.max(axis=1)
    correct = probs.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    size = np.bincount(which, minlength=bins)
    gap = np.abs(
        np.bincount(which, correct, minlength=bins) - np.bincount(which, confidence, minlength=bins)
    )
    return float(gap.sum() / max(size.sum(), 1))


def better_p(old_correct: np.ndarray[Any, Any], new_correct: np.ndarray[Any, Any]) -> float:
    """One-sided mid-p McNemar test that the new model is better than the old one (the mid-p form
    is less conservative than the exact one: Fagerland et al. 2013).

    Args:
        old_correct: bool [n], whether the old model is right, image by image.
        new_correct: bool [n], the same for the new model on the same images.

    Returns:
        Probability of more gained images than these among those on which the two differ, were
        both equally good, counting an equal number half. 0.5 when they gain as much as they lose.
    """
    gained = int((new_correct & ~old_correct).sum())
    lost = int((old_correct & ~new_correct).sum())
    if gained == lost:
        return 0.5
    changed = binom(gained + lost, 0.5)
    return float(changed.sf(gained) + 0.5 * changed.pmf(gained))
