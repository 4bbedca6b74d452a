"""How near an image is to images that a model has learnt from, beside what it says of its class.

A softmax shares its probability among the known classes whatever it is shown, and is as sure of a
handwritten digit as of a shirt. Where an image lies among the features of labeled images tells more
(Sun et al. 2022, arXiv 2204.06507; measured: docs/foreign.md). It is read off the same forward
pass. Knows nothing about files or Ray.
"""

from typing import Any

import torch
from torch import nn

from ns_ray.compute import no_memory


class Known(nn.Module):
    """A model that also says how near images are to labeled ones, in its pooled features."""

    def __init__(self, model: nn.Module, features: torch.Tensor) -> None:
        """
        Args:
            model: of timm.
            features: of labeled images, float32 [images, features].
        """
        super().__init__()
        self.model = model
        self.register_buffer("labeled", nn.functional.normalize(features, dim=1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, classes]; and [n, 1], from -2 to 0: the cosine of the angle between an image's
        features and those of the labeled image that is nearest, less 1."""
        model: Any = self.model
        maps = model.forward_features(images)
        pooled = nn.functional.normalize(model.forward_head(maps, pre_logits=True).float(), dim=1)
        cosines = pooled @ self.labeled.T  # type: ignore[operator]
        return model.forward_head(maps), cosines.float().amax(dim=1, keepdim=True) - 1.0


def has_pooled_features(model: nn.Module, images: torch.Tensor) -> bool:
    """Whether a model's logits follow from one vector an image, in the way of timm's models; other
    ones have ways of their own, and some fail when asked.

    Args:
        model: in eval mode.
        images: normalized, float32 [n, 3, height, width].
    """
    try:
        features = pooled_features(model, images)
        with torch.no_grad():
            maps = model.forward_features(images)  # type: ignore[operator]
            same = torch.allclose(model.forward_head(maps), model(images), atol=1e-4)  # type: ignore[operator]
    except (AttributeError, TypeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and no_memory(error):
            raise
        return False
    return same and features.ndim == 2


def pooled_features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a model's classifier sees of normalized images: float32 [n, features]."""
    with torch.no_grad():
        maps = model.forward_features(images)  # type: ignore[operator]
        return model.forward_head(maps, pre_logits=True).float()  # type: ignore[operator, no-any-return]
