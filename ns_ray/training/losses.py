"""The loss of the method, and what makes up for rare classes. Knows nothing about models, data or
Ray."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention


def mixed_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor | None,
    *,
    weight: float,
    label_smoothing: float,
    labeled_weight: float = 1.0,
    kind: Literal["mean", "sum"] = "mean",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross entropy over a batch of labeled images followed by pseudo-labeled ones.

    Args:
        logits: float [n + m, classes], the labeled images first.
        labels: classes of the labeled images: int64 [n], or float [n, classes] where they are mixed
            or weighted (see `dense`); a row sums to the weight of its image.
        targets: pseudo-labels of the other m: float [m, classes] (soft, or weighted likewise),
            int64 [m] (hard), or None when there are none.
        weight: w in (L_labeled + w * L_unlabeled) / (1 + w). With w = m / n it is the mean over
            the concatenated batch, as the paper's training details have it.
        labeled_weight: takes the place of the 1.
        label_smoothing: on int64 targets only (reference code: 0.1); float ones get none.
        kind: sum leaves out the division, as the reference code does.

    Returns:
        The loss to minimize, and its two terms (each a mean over its own images).
    """
    labeled = _cross_entropy(logits[: len(labels)], labels, label_smoothing)
    if targets is None or len(targets) == 0:
        return labeled, labeled, torch.zeros_like(labeled)
    pseudo = _cross_entropy(logits[len(labels) :], targets, label_smoothing)
    total = labeled_weight * labeled + weight * pseudo
    loss = total if kind == "sum" else total / (labeled_weight + weight)
    return loss, labeled, pseudo


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    smoothing = 0.0 if targets.is_floating_point() else smoothing
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def dense(targets: torch.Tensor, classes: int, label_smoothing: float) -> torch.Tensor:
    """Targets as float [n, classes], for which the loss is the same: hard ones (int64 [n])
    smoothed, soft ones as they are."""
    if targets.is_floating_point():
        return targets
    return F.one_hot(targets, classes) * (1.0 - label_smoothing) + label_smoothing / classes


def balanced_weights(counts: Sequence[int]) -> torch.Tensor:
    """The weight of an image of each class, inverse to its frequency: images / (classes * images of
    the class), as scikit-learn's `balanced`, with which the mean over all images is 1.

    Args:
        counts: images of each class. One that has none does not count, and weighs 0.

    Returns:
        float32 [classes].
    """
    images = torch.tensor(counts, dtype=torch.float32)
    weights = images.sum() / (images.count_nonzero() * images)
    return torch.where(images > 0, weights, 0.0)


def log_prior(counts: Sequence[int], at_least: Sequence[int] | None = None) -> torch.Tensor:
    """The logarithm of the share of each class.

    Args:
        counts: images of each class; one that has none counts as if it had one.
        at_least: other images of these classes. No class counts for less, beside the most frequent
            one, than it does among these.

    Returns:
        float32 [classes].
    """
    images = torch.tensor(counts, dtype=torch.float32).clamp(min=1.0)
    if at_least is not None:
        others = torch.tensor(at_least, dtype=torch.float32).clamp(min=1.0)
        images = torch.maximum(images, others * (images.max() / others.max()))
    return (images / images.sum()).log()


def sharpen(probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """p^(1/T), rows renormalized to sum to 1: what the reference code does with stored
    probabilities. T = 1 changes nothing, T < 1 sharpens."""
    if temperature == 1.0:
        return probs
    # Relative to the largest, which cannot vanish at any temperature.
    powered = (probs / probs.amax(dim=-1, keepdim=True)) ** (1.0 / temperature)
    return powered / powered.sum(dim=-1, keepdim=True)
