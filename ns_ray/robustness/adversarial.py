"""Attacks that know the model: FGSM (Goodfellow et al. 2015) and PGD (Madry et al. 2018).

Sizes are on the scale 0 to 255 and the pixels stay on it, at the model's own resolution. As in the
paper (Xie et al. 2019) both raise the loss for the true class. PGD's step isn't given there: here
it is 2.5 * epsilon / steps, from the clean picture, so that nothing is random.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  as everywhere
from torch import nn

from ns_ray.data import Normalize, Preprocess


class Attack:
    """A model in eval mode that is attacked."""

    def __init__(self, model: nn.Module, preprocess: Preprocess, device: torch.device) -> None:
        self._model = model.eval().to(device).requires_grad_(False)
        self._device = device
        self._normalize = Normalize(preprocess, device)

    def images(self, pixels: Any) -> torch.Tensor:
        """uint8 [n, size, size, 3] -> float32 [n, 3, size, size] on the scale 0 to 255."""
        return self._normalize.planes(torch.from_numpy(pixels).to(self._device))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [n, 3, size, size] on the scale 0 to 255 -> [n, classes]."""
        result: torch.Tensor = self._model(self._normalize.scaled(images))
        return result

    def uphill(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sign of the gradient of the cross entropy, [n, 3, size, size]."""
        at = images.detach().requires_grad_(True)
        loss = F.cross_entropy(self.logits(at), labels, reduction="sum")
        return torch.autograd.grad(loss, at)[0].sign()

    @torch.no_grad()
    def correct(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Whether the model is right, bool [n]."""
        return self.logits(images).argmax(dim=1) == labels

    def fgsm(self, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
        """One step of `epsilon` along the sign of the gradient."""
        return (images + epsilon * self.uphill(images, labels)).clamp(0.0, 255.0)

    def pgd(
        self, images: torch.Tensor, labels: torch.Tensor, epsilon: float, steps: int
    ) -> torch.Tensor:
        """`steps` steps of 2.5 * epsilon / steps, each brought back to within epsilon."""
        attacked, step = images, 2.5 * epsilon / steps
        low, high = (images - epsilon).clamp(min=0.0), (images + epsilon).clamp(max=255.0)
        for _ in range(steps):
            attacked = attacked + step * self.uphill(attacked, labels)
            attacked = torch.minimum(torch.maximum(attacked, low), high)
        return attacked

    def outcomes(
        self, pixels: Any, labels: Any, epsilons: Sequence[float], steps: int
    ) -> Iterator[tuple[str, float, Any]]:
        """Attack a batch in every way.

        Args:
            pixels: uint8 [n, size, size, 3].
            labels: int [n], the true classes.

        Yields:
            (fgsm or pgd, epsilon, bool [n]: whether the model is still right); epsilon 0 is clean.
        """
        images = self.images(pixels)
        truth = torch.as_tensor(labels, dtype=torch.long, device=self._device)
        clean = self.correct(images, truth).cpu().numpy()
        direction = self.uphill(images, truth)
        for name in ("fgsm", "pgd"):
            yield name, 0.0, clean
            for epsilon in epsilons:
                if name == "fgsm":  # the same direction for every epsilon
                    attacked = (images + epsilon * direction).clamp(0.0, 255.0)
                else:
                    attacked = self.pgd(images, truth, epsilon, steps)
                yield name, epsilon, self.correct(attacked, truth).cpu().numpy()
