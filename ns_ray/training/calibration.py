"""The temperature of a trained model, fitted on validation images (Guo et al. 2017).

It is divided into the classifier's weights, so that whoever loads the model (labeling, scoring,
ONNX, a server, timm) gets probabilities that are as sure as they are right. No answer changes.
Knows nothing about Ray.
"""

import torch
from torch import nn

from ns_ray.model import BELIEF, BELIEF_PRETRAINED, fit_temperature
from ns_ray.store import Corpus
from ns_ray.training.forward import forward

LINEAR = (nn.Linear, nn.Conv2d)


def calibrate(
    model: nn.Module, corpus: Corpus, device: torch.device, *, pretrained: bool
) -> float | None:
    """Divide a model's logits by the temperature that labeled images like best, for good.

    Args:
        model: of timm, on the device; fp32.
        corpus: labeled images that it was not trained on.
        device: where the forward passes are made.
        pretrained: whether it is pretrained weights, fine-tuned: few images change less then.

    Returns:
        The temperature; None, and the model as it was, where its classifier is not one linear
        layer.
    """
    if not isinstance(model.get_classifier(), LINEAR):  # type: ignore[operator]
        return None
    belief = BELIEF_PRETRAINED if pretrained else BELIEF
    temperature = fit_temperature(*forward(model, corpus, device, model), belief)
    divide(model, temperature)
    return temperature


def divide(model: nn.Module, temperature: float) -> None:
    """Divide a model's logits by a temperature, for good; not where its classifier is not one
    linear layer."""
    classifier = model.get_classifier()  # type: ignore[operator]
    if isinstance(classifier, LINEAR):
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.div_(temperature)
