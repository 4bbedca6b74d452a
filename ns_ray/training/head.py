"""The first classifier of a model that starts from pretrained weights, fitted on frozen features.

A random classifier sends gradients through the network that distort what it has learnt before it
has seen anything (Kumar et al. 2022), and a few labeled images are soon over: a fine-tuning from it
can end far below logistic regression on the features as they are. So training starts from that.
Knows nothing about Ray.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import nn

from ns_ray.config import FEW_LABELS, ModelConfig
from ns_ray.model import build_started
from ns_ray.store import Corpus
from ns_ray.training.forward import forward

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the L2 term that are tried on features of unit variance."""
USUAL = 0.1
"""What is best for most sets of a few images a class; taken where no image can be held out."""
FOLDS = 5
CLEARLY = 0.1
"""One-sided p from which on a fine-tuning is taken to have made a model worse: four images lost
and none gained."""
UNSEEN = 5.0
"""How far the logit of a class without images lies below the lowest intercept."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Head:
    """A linear classifier on features.

    Attributes:
        weight, bias: float64 [classes, features] and [classes].
        strength: which of STRENGTHS.
        right: share of images that were classified rightly by a fit without them; None where none
            could be held out.
    """

    weight: Array
    bias: Array
    strength: float
    right: float | None

    def __str__(self) -> str:
        right = "" if self.right is None else f": {self.right:.0%} of them right when held out"
        return f"the classifier starts as logistic regression on the labeled images{right}"


def start_head(
    model: nn.Module, corpus: Corpus, device: torch.device, prior: torch.Tensor | None = None
) -> Head | None:
    """Fit a model's classifier on its features of a corpus, and put it in.

    Args:
        model: of timm, on the device; its classifier may be anything.
        corpus: labeled images.
        device: where the features are computed, in fp32.
        prior: float32 [classes], what training adds to the logits of labeled images: the model's
            own are the fitted ones without it. None: nothing.

    Returns:
        What was fitted; None, and the model as it was, where the images are many or the classifier
        is not one linear layer on pooled features.
    """
    classifier = model.get_classifier()  # type: ignore[operator]
    if corpus.rows > FEW_LABELS or not isinstance(classifier, nn.Linear):
        return None
    features, labels = _features(model, corpus, device)
    if features.ndim != 2 or features.shape[1] != classifier.in_features or len(set(labels)) < 2:
        return None
    head = fit(features, labels, len(corpus.classes))
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(head.weight))
        if classifier.bias is not None:
            classifier.bias.copy_(torch.from_numpy(head.bias))
            if prior is not None:  # a class without images stays below all others
                has_images = torch.tensor(corpus.class_counts, device=prior.device) > 0
                classifier.bias.sub_(torch.where(has_images, prior, prior.max()))
    return head


def clearly_better(
    one: nn.Module,
    other: nn.Module,
    corpus: Corpus,
    device: torch.device,
    prior: torch.Tensor | None = None,
) -> bool:
    """Whether a paired exact test on labeled images that neither has seen prefers the one model.

    Args:
        one, other: of timm, on the device.
        corpus: the images.
        device: where they are looked at.
        prior: float32 [classes], added to the logits of both: the images are as uneven as the
            labeled ones, and the models take all classes for alike. None: nothing.
    """
    right, added = [], 0.0 if prior is None else prior.cpu().numpy()
    for model in (one, other):
        logits, labels = forward(model, corpus, device, model)
        logits = logits + added
        right.append(logits.argmax(axis=1) == labels)
    gained, differ = int((right[0] & ~right[1]).sum()), int((right[0] != right[1]).sum())
    if not differ:
        return False
    return bool(binomtest(gained, differ, alternative="greater").pvalue <= CLEARLY)


def _features(model: nn.Module, corpus: Corpus, device: torch.device) -> tuple[Array, Array]:
    """Pooled features float32 [rows, n], as in evaluation, and labels int64 [rows]."""

    def pooled(images: torch.Tensor) -> torch.Tensor:
        maps = model.forward_features(images)  # type: ignore[operator]
        return model.forward_head(maps, pre_logits=True)  # type: ignore[operator, no-any-return]

    return forward(model, corpus, device, pooled)


def fit(features: Array, labels: Array, classes: int) -> Head:
    """Logistic regression, its strength chosen by the log loss of images that are held out in turn.

    Args:
        features: float32 [n, features].
        labels: int64 [n], of at least two classes.
        classes: of the classifier; one without images gets no weights and a low bias.
    """
    rows, directions, mean, scale = _reduced(features)
    known, counts = np.unique(labels, return_counts=True)
    folds, strength, right = min(FOLDS, int(counts.min())), USUAL, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if folds > 1:
            tried = {s: _held_out(rows, labels, s, folds) for s in STRENGTHS}
            strength = min(tried, key=lambda s: log_loss(labels, tried[s]))
            right = float((known[tried[strength].argmax(axis=1)] == labels).mean())
        fitted = _regression(strength).fit(rows, labels)
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(known) == 2:  # one row for both
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    used = coefficients @ directions / scale
    weight, bias = np.zeros((classes, features.shape[1])), np.zeros(classes)
    weight[known], bias[known] = used, intercepts - used @ mean
    unknown = np.setdiff1d(np.arange(classes), known)
    bias[unknown] = intercepts.min() - UNSEEN
    return Head(weight, bias, strength, right)


def _reduced(features: Array) -> tuple[Array, Array, Array, float]:
    """Rows, directions, mean and scale: the features are mean + scale * rows @ directions. With
    fewer images than features, a fit lies in the directions that they span."""
    mean = features.mean(axis=0, dtype=np.float64)
    centered = features - mean
    scale = float(centered.std()) or 1.0
    left, sizes, directions = np.linalg.svd(centered / scale, full_matrices=False)
    return left * sizes, directions, mean, scale


def out_of_fold(model: ModelConfig, corpus: Corpus, device: str) -> Array | None:
    """Probabilities of labeled images by logistic regression on frozen features, each image by a
    fit without its fold.

    Args:
        model: with pretrained weights.
        corpus: labeled images.
        device: where the features are computed, cpu or cuda.

    Returns:
        float32 [rows, classes], in the order of the corpus; None where the classifier is not one
        linear layer on pooled features, or no class has two images.
    """
    place = torch.device(device)
    built = build_started(model, len(corpus.classes)).to(place)
    if not isinstance(built.get_classifier(), nn.Linear):  # type: ignore[operator]
        return None
    features, labels = _features(built, corpus, place)
    known, counts = np.unique(labels, return_counts=True)
    folds = min(FOLDS, int(counts.max()))
    if features.ndim != 2 or len(known) < 2 or folds < 2:
        return None
    rows = _reduced(features)[0]
    strengths = STRENGTHS if len(rows) <= FEW_LABELS else (USUAL,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)  # of a class with less images than folds
        warnings.simplefilter("ignore", RuntimeWarning)  # of one that is all in one fold
        tried = [_held_out(rows, labels, strength, folds) for strength in strengths]
    best = min(tried, key=lambda probs: log_loss(labels, np.clip(probs, 1e-9, 1), labels=known))
    found = np.zeros((len(rows), len(corpus.classes)), np.float32)
    found[:, known] = best
    return found


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=300)


def _held_out(rows: Array, labels: Array, strength: float, folds: int) -> Array:
    """Probabilities [n, classes] of each image by a fit without its fold."""
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    probs: Array = cross_val_predict(
        _regression(strength), rows, labels, cv=split, method="predict_proba"
    )
    return probs
