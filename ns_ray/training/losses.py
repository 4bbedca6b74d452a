"""The loss of the method. Knows nothing about models, data or Ray."""

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
        labels: int64 [n], classes of the labeled images.
        targets: pseudo-labels of the other m: float [m, classes] (soft, rows summing to 1),
            int64 [m] (hard), or None when there are none.
        weight: w in (L_labeled + w * L_unlabeled) / (1 + w). With w = m / n it is the mean over
            the concatenated batch, as the paper's training details have it.
        labeled_weight: takes the place of the 1.
        label_smoothing: on hard targets only (reference code: 0.1); soft targets get none.
        kind: sum leaves out the division, as the reference code does.

    Returns:
        The loss to minimize, and its two terms (each a mean over its own images).
    """
    labeled = F.cross_entropy(logits[: len(labels)], labels, label_smoothing=label_smoothing)
    if targets is None or len(targets) == 0:
        return labeled, labeled, torch.zeros_like(labeled)
    smoothing = 0.0 if targets.is_floating_point() else label_smoothing
    pseudo = F.cross_entropy(logits[len(labels) :], targets, label_smoothing=smoothing)
    total = labeled_weight * labeled + weight * pseudo
    loss = total if kind == "sum" else total / (labeled_weight + weight)
    return loss, labeled, pseudo


def sharpen(probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """p^(1/T), rows renormalized to sum to 1: what the reference code does with stored
    probabilities. T = 1 changes nothing, T < 1 sharpens."""
    if temperature == 1.0:
        return probs
    # Relative to the largest, which cannot vanish at any temperature.
    powered = (probs / probs.amax(dim=-1, keepdim=True)) ** (1.0 / temperature)
    return powered / powered.sum(dim=-1, keepdim=True)
